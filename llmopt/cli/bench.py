"""`llmopt bench`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:
    from llmopt.recipe.schema import Dtype, Load


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(help="A recipe (.yaml), or models: directories, GGUF files, ids."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for result files.")] = Path(
        "llmopt-results"
    ),
    work: Annotated[
        Path | None,
        typer.Option(help="Directory for checkpoints that a recipe makes; in the cache if absent."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model to compare with; the first target if absent.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of all targets' activations: auto, float32, bfloat16, float16.")
    ] = "auto",
    concurrency: Annotated[str, typer.Option(help="Requests in flight, such as 1,8.")] = "1,8",
    requests: Annotated[
        int | None, typer.Option(help="Requests per run; the larger of 4 and 2 x concurrency.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens per prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens generated per request.")] = 64,
    repeats: Annotated[int, typer.Option(help="Interleaved runs per cell.")] = 3,
    quality: Annotated[
        bool, typer.Option(help="Measure the quality loss against the base.")
    ] = True,
    text: Annotated[str, typer.Option(help="Quality text: a file, or `bundled`.")] = "bundled",
    seed: Annotated[int, typer.Option(help="Chooses the prompts.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure quality and speed of several models or methods side by side.

    Writes one result file per cell and prints the table. An interrupted run goes on where it
    stopped when the same command is given again. A cell that fails is a row that says why; the
    others go on, and the exit code is 1.

    Examples:

        llmopt bench recipes/demo.yaml --out my-results

        llmopt bench recipes/methods-smollm2.yaml --out my-methods

        llmopt bench ./smollm2-w4 ./smollm2-w8 --base smollm2-135m --concurrency 1,4,16
    """
    from llmopt.bench.quantization import quantization_problems
    from llmopt.bench.sweep import run_recipe
    from llmopt.cli.progress import StageProgress
    from llmopt.hardware.cache import cache_directory
    from llmopt.recipe.load import load_recipe, recipe_from_targets
    from llmopt.recipe.schema import Quality
    from llmopt.report.render import render
    from llmopt.results.store import read_results

    if len(targets) == 1 and Path(targets[0]).suffix in (".yaml", ".yml"):
        recipe = load_recipe(targets[0], quantization_problems)
    else:
        recipe = recipe_from_targets(
            targets,
            _loads(concurrency, requests, prompt_tokens, output_tokens),
            base=base,
            dtype=_dtype(dtype),
            repeats=repeats,
            seed=seed,
            quality=Quality(text) if quality else None,
        )
    with StageProgress() as progress:
        checkpoints = work or cache_directory() / "checkpoints"
        paths = run_recipe(recipe, out, checkpoints, progress, device=device)
    results, errors = read_results(paths)
    render(results, errors, "json" if json else "terminal", sys.stdout)
    typer.echo(f"{len(paths)} result files in {out}", err=True)
    failed = sum(result.error is not None for result in results)
    if failed:
        typer.echo(f"{failed} of {len(results)} cells failed; their rows say why", err=True)
        raise typer.Exit(1)


def _loads(
    concurrency: str, requests: int | None, prompt_tokens: int, output_tokens: int
) -> list["Load"]:
    from llmopt.errors import UsageError
    from llmopt.recipe.schema import Load

    try:
        levels = [int(part) for part in concurrency.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--concurrency is {concurrency!r}", "Give whole numbers with commas, such as 1,8."
        ) from error
    return [
        Load(level, requests or max(4, 2 * level), prompt_tokens, output_tokens) for level in levels
    ]


def _dtype(name: str) -> "Dtype":
    from llmopt.errors import UsageError
    from llmopt.recipe.schema import Dtype

    choices: tuple[Dtype, ...] = get_args(Dtype)
    for choice in choices:
        if name == choice:
            return choice
    raise UsageError(f"the dtype {name} is not supported", f"Use {', '.join(choices)}.")
