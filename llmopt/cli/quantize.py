"""`llmopt quantize`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.quantize.options import QuantizeSummary


class Format(StrEnum):
    """Checkpoint formats."""

    GPTQ = "gptq"
    AWQ = "awq"
    COMPRESSED_TENSORS = "compressed-tensors"


class Method(StrEnum):
    """Quantization methods."""

    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"
    AWQ_GPTQ = "awq+gptq"


def quantize(
    model: Annotated[str, typer.Argument(help="Directory, hub id, or `smollm2-135m`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create.")],
    method: Annotated[Method, typer.Option(help="How codes are chosen.")] = Method.GPTQ,
    bits: Annotated[int, typer.Option(help="Bits per weight: 4 or 8.")] = 4,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale; -1: one scale per output channel.")
    ] = 64,
    asymmetric: Annotated[
        bool,
        typer.Option(
            "--asymmetric",
            help="Give every group a zero point of its own (GPTQ: version 2, for fewer readers).",
        ),
    ] = False,
    format: Annotated[Format, typer.Option(help="How the checkpoint is stored.")] = Format.GPTQ,
    text: Annotated[
        Path | None, typer.Option(help="Calibration text (UTF-8); the bundled one if absent.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 32,
    sample_tokens: Annotated[int, typer.Option(help="Tokens per calibration sample.")] = 512,
    damping: Annotated[
        float, typer.Option(help="Share of the mean Hessian diagonal that GPTQ adds to it.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Chooses the calibration windows.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Quantize a model's linear layers into a checkpoint that other engines load.

    Examples:

        llmopt quantize smollm2-135m --bits 4 --group-size 64 --out smollm2-w4

        llmopt quantize ./my-model --method rtn --bits 8 --out my-model-w8

        llmopt quantize ./my-model --method awq+gptq --asymmetric --format awq --out my-model-awq
    """
    from llmopt.cli.output import print_json
    from llmopt.cli.progress import StageProgress
    from llmopt.errors import QuantizationError
    from llmopt.formats.checkpoint import check_writable
    from llmopt.formats.quantized import QuantSpec
    from llmopt.formats.weights import choose_format
    from llmopt.models.resolve import resolve_model
    from llmopt.models.tokenizer import load_tokenizer
    from llmopt.quantize.calibration import load_calibration
    from llmopt.quantize.gptq import GPTQOptions
    from llmopt.quantize.options import QuantizeOptions
    from llmopt.quantize.pipeline import quantize_checkpoint

    if bits not in (4, 8):
        raise QuantizationError(f"{bits} bits were asked for", "Choose --bits 4 or --bits 8.")
    spec = QuantSpec(bits, None if group_size == -1 else group_size, not asymmetric)
    choose_format(format.value, spec)
    check_writable(out, expected_bytes=0)
    with StageProgress() as progress:
        progress.stage_started(f"find {model}")
        source = resolve_model(
            model, lambda what, share: progress.stage_advanced(round(100 * share), 100, what)
        )
        progress.stage_finished()
        calibration = None
        if method is not Method.RTN:
            tokenizer = load_tokenizer(source)
            calibration = load_calibration(
                tokenizer, text, num_samples=samples, sample_tokens=sample_tokens, seed=seed
            )
        options = QuantizeOptions(
            method.value, spec, calibration, GPTQOptions(damping=damping), format=format.value
        )
        progress.stage_started(f"quantize to {spec.label(method)}")
        summary = quantize_checkpoint(
            source,
            out,
            options,
            on_progress=lambda block, blocks, module, loss: progress.stage_advanced(
                block, blocks, module if loss is None else f"{module}, loss {loss:.3g}"
            ),
        )
        progress.stage_finished()
    if json:
        print_json(summary)
    else:
        typer.echo(_sentence(summary, spec.label(method)))


def _sentence(summary: "QuantizeSummary", scheme: str) -> str:
    return (
        f"{summary.out}: {scheme}, {len(summary.modules)} layers at "
        f"{summary.bits_per_weight:.3f} bits per weight, {summary.file_bytes / 1e6:.1f} MB, "
        f"{summary.seconds:.0f} s"
    )
