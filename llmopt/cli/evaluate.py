"""`llmopt eval`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

TEXT_PANEL = "Text and protocol"
COMPARISON_PANEL = "Comparison"
RUNTIME_PANEL = "Runtime"
FURTHER_PANEL = "Further measurements"
OUTPUT_PANEL = "Output"


class Protocol(StrEnum):
    """How a text is cut and scored."""

    WINDOWS = "windows"
    PAPER = "paper"
    LLAMA_CPP = "llama.cpp"
    ROLLING = "rolling"


class Activations(StrEnum):
    """What bfloat16 activations are rounded to before quantized weights."""

    AUTO = "auto"
    INT8 = "int8"
    INT16 = "int16"
    BF16 = "bf16"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Directory, GGUF file, hub id or `smollm2-135m`; with `--backend vllm:URL` the "
            "name of the model there."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The model that it was made from. Without it only perplexity is measured.",
            rich_help_panel=COMPARISON_PANEL,
        ),
    ] = None,
    noise: Annotated[
        bool,
        typer.Option(
            help="Run the base in 16 bits too, and judge the loss by that noise floor.",
            rich_help_panel=COMPARISON_PANEL,
        ),
    ] = True,
    cache: Annotated[
        bool,
        typer.Option(
            help="Keep the base's log-probabilities for later runs ($LLMOPT_CACHE).",
            rich_help_panel=COMPARISON_PANEL,
        ),
    ] = True,
    divergence: Annotated[
        bool,
        typer.Option(
            help="Measure perplexity and divergence; without it only what is asked for below.",
            rich_help_panel=COMPARISON_PANEL,
        ),
    ] = True,
    text: Annotated[
        str,
        typer.Option(
            help="A UTF-8 text file, `bundled` or `wikitext-2`.", rich_help_panel=TEXT_PANEL
        ),
    ] = "bundled",
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="windows: all positions of windows side by side. paper: GPTQ's perplexity, in "
            "windows of 2048. llama.cpp: its perplexity tool's, second half of 512. rolling: "
            "lm-eval's word perplexity of whole documents.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = Protocol.WINDOWS,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens per window [the protocol's own].", rich_help_panel=TEXT_PANEL),
    ] = None,
    num_windows: Annotated[
        str | None,
        typer.Option(
            help="Windows from the start of the text, or `all` [16; with --until-ci: all].",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    until_ci: Annotated[
        str | None,
        typer.Option(
            "--until-ci",
            help="Stop once the interval of the mean divergence is this narrow, such as 5%: plus "
            "or minus 5 % of the mean.",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="Whose log-probabilities the model's are: llmopt, transformers, llama.cpp (a GGUF "
            "file) or vllm:URL. The base runs in llmopt.",
            rich_help_panel=RUNTIME_PANEL,
        ),
    ] = "llmopt",
    dtype: Annotated[
        str,
        typer.Option(help="Of the model's activations.", rich_help_panel=RUNTIME_PANEL),
    ] = "auto",
    base_dtype: Annotated[
        str,
        typer.Option(help="Of the base's activations.", rich_help_panel=RUNTIME_PANEL),
    ] = "float32",
    activations: Annotated[
        Activations,
        typer.Option(
            help="Before the model's quantized weights, on a CPU in bfloat16: int8, int16, bf16 "
            "(not rounded), or auto: int8 where the weights have fewer than 8 bits, else int16.",
            rich_help_panel=RUNTIME_PANEL,
        ),
    ] = Activations.AUTO,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=RUNTIME_PANEL)
    ] = "cpu",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, such as hellaswag,arc_easy "
            "(pip install 'llmopt[tasks]').",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = None,
    requests: Annotated[
        list[Path] | None,
        typer.Option(
            help="A JSON lines file of ready log-likelihood requests; repeat for several.",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Items per task, from its start.", rich_help_panel=FURTHER_PANEL),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Where the greedy output first departs from the base's, and whether that was a "
            "near tie.",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts of --greedy: a text file, one per line, or JSON lines [pieces of the "
            "text].",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = None,
    atlas: Annotated[
        bool,
        typer.Option(
            "--atlas",
            help="Which layers cause the loss, and at which tokens it shows (4 windows unless "
            "--num-windows says otherwise).",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = False,
    atlas_detail: Annotated[
        bool,
        typer.Option(
            "--atlas-detail",
            help="The atlas with attention and MLP of each block on their own.",
            rich_help_panel=FURTHER_PANEL,
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the atlas as a page with plots.", rich_help_panel=FURTHER_PANEL),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the JSON here.", rich_help_panel=OUTPUT_PANEL),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, not tables.", rich_help_panel=OUTPUT_PANEL),
    ] = False,
) -> None:
    """Measure what a model lost against its base, and whether that is more than noise.

    Examples:

        llmopt eval ./smollm2-w4 --base smollm2-135m

        llmopt eval smollm2-135m --text wikitext-2 --protocol paper --num-windows all

        llmopt eval ./my-w8 --base ./my-model --text wikitext-2 --until-ci 5% --out my-w8.json

        llmopt eval ./my-model.gguf --base ./my-model --protocol llama.cpp --backend llama.cpp

        llmopt eval ./my-w4 --base ./my-model --requests hellaswag.jsonl --greedy

        llmopt eval ./my-w4 --base ./my-model --no-divergence --atlas --html atlas.html
    """
    from llmopt.cli.evaluate_command import run
    from llmopt.cli.evaluate_options import Evaluation

    run(
        Evaluation(
            model=model,
            base=base,
            text=text,
            protocol=protocol.value,
            window=window,
            num_windows=num_windows,
            until_ci=until_ci,
            divergence=divergence,
            noise=noise,
            cache=cache,
            backend=backend,
            dtype=dtype,
            base_dtype=base_dtype,
            activations=activations.value,
            device=device,
            tasks=tasks,
            requests=tuple(requests or ()),
            limit=limit,
            greedy=greedy or prompts is not None,
            prompts=prompts,
            atlas=atlas or atlas_detail or html is not None,
            atlas_detail=atlas_detail,
            html=html,
            out=out,
            json=json,
        )
    )
