"""`llmopt eval`."""

from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="Directory, GGUF file, hub id or `smollm2-135m`.")],
    base: Annotated[str, typer.Option(help="The model that it was made from.")],
    text: Annotated[str, typer.Option(help="A UTF-8 text file, or `bundled`.")] = "bundled",
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    num_windows: Annotated[int, typer.Option(help="Windows, from the start of the text.")] = 16,
    dtype: Annotated[str, typer.Option(help="Of the model's activations.")] = "auto",
    base_dtype: Annotated[str, typer.Option(help="Of the base's activations.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Measure what a model lost against its base: KL divergence, agreement, perplexity.

    Examples:

        llmopt eval ./smollm2-w4 --base smollm2-135m

        llmopt eval ./my-model-w8 --base ./my-model --text wiki.test.raw --num-windows 32
    """
    from llmopt.cli.output import print_json
    from llmopt.cli.progress import StageProgress
    from llmopt.models.resolve import resolve_model
    from llmopt.quality.compare import compare
    from llmopt.quality.options import QualityOptions

    options = QualityOptions(text=text, window=window, num_windows=num_windows)
    with StageProgress() as progress:
        with progress.stage(f"find {base}") as advance:
            base_path = resolve_model(base, advance)
        with progress.stage(f"find {model}") as advance:
            model_path = resolve_model(model, advance)
        with progress.stage("compare them"):
            record = compare(
                model_path,
                base_path,
                options,
                base_name=base,
                dtype=dtype,
                base_dtype=base_dtype,
                device=device,
                on_window=lambda done, total: progress.stage_advanced(done, total, "windows"),
            )
    if json:
        print_json(record)
        return
    low, high = record.kld_mean_ci
    typer.echo(f"KL divergence   {record.kld_mean:.4f} nats per token  [{low:.4f}, {high:.4f}]")
    typer.echo(f"                median {record.kld_median:.4f}, 99 % {record.kld_p99:.3f}")
    low, high = record.top1_agreement_ci
    typer.echo(f"top-1 agreement {record.top1_agreement:.1%}  [{low:.1%}, {high:.1%}]")
    low, high = record.ppl_ratio_ci
    typer.echo(
        f"perplexity      {record.ppl:.3f}, base {record.base_ppl:.3f}, ratio "
        f"{record.ppl_ratio:.4f}  [{low:.4f}, {high:.4f}]"
    )
    typer.echo(
        f"{record.num_tokens:,} positions of {record.text_name}: {record.protocol}; "
        f"{record.confidence:.0%} intervals over windows"
    )
