"""`llmopt bench`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:
    from llmopt.recipe.load import Rule
    from llmopt.recipe.schema import Dtype, Recipe

WHEN = "When requests come"
WHAT = "What they ask"
HOW = "What serves them"
# what a recipe leaves open, or lets the command line decide
BESIDE_RECIPE = frozenset(
    ("targets", "out", "work", "until_ci", "max_repeats", "device", "profile", "json")
)


def bench(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe (.yaml), or models: directories, GGUF files, ids."),
    ] = None,
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
    load: Annotated[
        str | None,
        typer.Option(
            help="When requests come: closed, constant, poisson, gamma, burst, ramp or trace.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Requests in flight (1,8 if absent), or in an open loop served at a time (8).",
            rich_help_panel=WHEN,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests per run; the larger of 4 and 2 x concurrency, 100 in an open loop (in a"
            " search at least 2 x concurrency).",
            rich_help_panel=WHEN,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds of arrivals, in place of --requests.", rich_help_panel=WHEN),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Requests per second, such as 1,2,4: an open loop.", rich_help_panel=WHEN
        ),
    ] = None,
    start_rate: Annotated[
        float | None, typer.Option(help="Where a ramp to --rate begins.", rich_help_panel=WHEN)
    ] = None,
    ramp_steps: Annotated[
        int | None, typer.Option(help="Steps of the ramp; steady if absent.", rich_help_panel=WHEN)
    ] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(
            help="Shape of gamma gaps; 1 is poisson, less in bursts.", rich_help_panel=WHEN
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay: Azure's CSV, Mooncake's JSONL, a result file.", rich_help_panel=WHEN
        ),
    ] = None,
    time_scale: Annotated[
        float,
        typer.Option(help="Of a trace's times: 0.1 is ten times as fast.", rich_help_panel=WHEN),
    ] = 1.0,
    slo: Annotated[
        str | None,
        typer.Option(
            help="Bounds such as ttft_p95<500ms,tpot_p95<50ms; without --rate, the highest rate"
            " that keeps them is searched.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            help="128 (as if absent), 64-256, 200~100 (mean~deviation), or a table of lengths;"
            " with a limit: 200~100<1024. Of a trace: <512.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    output_tokens: Annotated[
        str | None,
        typer.Option(help="The same for outputs; 64 if absent.", rich_help_panel=WHAT),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='JSONL with your own prompts: {"prompt": ...}.', rich_help_panel=WHAT),
    ] = None,
    random_tokens: Annotated[
        bool, typer.Option(help="Prompts of random tokens, not of text.", rich_help_panel=WHAT)
    ] = False,
    distinct_prompts: Annotated[
        int | None,
        typer.Option(help="Draw from so many prompts; all differ if absent.", rich_help_panel=WHAT),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Shared beginnings: groups x tokens, such as 4x256.", rich_help_panel=WHAT
        ),
    ] = None,
    turns: Annotated[
        int, typer.Option(help="Requests per conversation.", rich_help_panel=WHAT)
    ] = 1,
    think: Annotated[
        float, typer.Option(help="Seconds between its turns.", rich_help_panel=WHAT)
    ] = 0.0,
    dummy_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONFIG[@SCHEME]",
            help="Random weights for a config.json or a model's, such as config.json@w4g128;"
            " repeat for more. Their quality is n/a.",
            rich_help_panel=HOW,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Settings of the engine for all targets, as in a recipe:"
            ' "kv_dtype: int8, speculation: ngram".',
            rich_help_panel=HOW,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="What serves the targets: llmopt,vllm (`llmopt backend list`).",
            rich_help_panel=HOW,
        ),
    ] = "llmopt",
    url: Annotated[
        str | None,
        typer.Option(
            help="Of a server that runs already; else one is started.", rich_help_panel=HOW
        ),
    ] = None,
    server_model: Annotated[
        str | None,
        typer.Option(help="What it calls the model; its only one.", rich_help_panel=HOW),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds its key.", rich_help_panel=HOW),
    ] = None,
    server_args: Annotated[
        str | None,
        typer.Option(help='More arguments: "--enforce-eager".', rich_help_panel=HOW),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Interleaved runs per cell.")] = 3,
    until_ci: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Run on until the 95 % interval of every main number is within it: 3%.",
        ),
    ] = None,
    max_repeats: Annotated[
        int | None, typer.Option(help="Runs at most with --until-ci; 20 if absent.")
    ] = None,
    quality: Annotated[
        bool, typer.Option(help="Measure the quality loss against the base.")
    ] = True,
    text: Annotated[str, typer.Option(help="Quality text: a file, or `bundled`.")] = "bundled",
    seed: Annotated[int, typer.Option(help="Chooses the prompts.")] = 0,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine: gives the cost of a million tokens.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Also time the parts of a decode step and of a prefill chunk."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure quality and speed of several models or methods side by side.

    Writes one result file per cell and prints the table. The same command goes on where an
    interrupted run stopped. A cell that fails is a row that says why, and the exit code is 1.

    Examples:

        llmopt bench recipes/demo.yaml --out my-results

        llmopt bench ./smollm2-w4 ./smollm2-w8 --base smollm2-135m --concurrency 1,4,16

        llmopt bench smollm2-135m --backend llmopt,vllm --concurrency 1,16
    """
    from llmopt.cli.bench_backends import backends_of_options
    from llmopt.cli.bench_loads import LoadOptions, loads_of_options
    from llmopt.cli.bench_repeats import with_repeats
    from llmopt.recipe.load import load_recipe, read_engine, recipe_from_targets
    from llmopt.recipe.schema import Quality

    targets = [*(targets or ()), *(f"dummy:{config}" for config in dummy_weights or ())]
    if len(targets) == 1 and Path(targets[0]).suffix in (".yaml", ".yml"):
        _refuse_options_of_recipes(context)
        recipe = load_recipe(targets[0], *_rules())
    else:
        options = LoadOptions(
            kind=load,
            concurrency=concurrency,
            requests=requests,
            duration_s=duration,
            rate=rate,
            start_rate=start_rate,
            num_steps=ramp_steps,
            burstiness=burstiness,
            trace=trace,
            time_scale=time_scale,
            slo=slo,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prompts=prompts,
            random_tokens=random_tokens,
            distinct_prompts=distinct_prompts,
            prefix=prefix,
            turns=turns,
            think_s=think,
        )
        recipe = recipe_from_targets(
            targets,
            loads_of_options(options),
            price_per_hour=price_per_hour,
            rules=_rules(),
            engine=None if engine is None else read_engine("--engine", engine),
            backends=backends_of_options(backend, url, server_model, api_key_env, server_args),
            base=base,
            dtype=_dtype(dtype),
            repeats=repeats,
            seed=seed,
            quality=Quality(text) if quality else None,
        )
    recipe = with_repeats(recipe, until_ci, max_repeats)
    _measure(recipe, out, work, device, profile=profile, as_json=json)


def _measure(
    recipe: "Recipe",
    out: Path,
    work: Path | None,
    device: str,
    *,
    profile: bool,
    as_json: bool,
) -> None:
    """Run the recipe and print its table; exit code 1 when a cell failed."""
    from llmopt.bench.sweep import run_recipe
    from llmopt.cli.profile_view import print_profiles
    from llmopt.cli.progress import StageProgress
    from llmopt.hardware.cache import cache_directory
    from llmopt.report.render import render
    from llmopt.results.store import read_results

    with StageProgress() as progress:
        checkpoints = work or cache_directory() / "checkpoints"
        paths = run_recipe(recipe, out, checkpoints, progress, device=device, profile=profile)
    results, errors = read_results(paths)
    render(results, errors, "json" if as_json else "terminal", sys.stdout)
    if not as_json:
        print_profiles(results, sys.stdout)
    typer.echo(f"{len(paths)} result files in {out}", err=True)
    failed = sum(result.error is not None and not result.skipped for result in results)
    if failed:
        typer.echo(f"{failed} of {len(results)} cells failed; their rows say why", err=True)
        raise typer.Exit(1)


def _rules() -> "tuple[Rule, ...]":
    """What a recipe must keep in the view of those who measure it."""
    from llmopt.bench.dummy import dummy_problems
    from llmopt.bench.engine_settings import engine_problems
    from llmopt.bench.foreign import backend_problems
    from llmopt.bench.quantization import quantization_problems
    from llmopt.bench.slo import slo_problems
    from llmopt.bench.trace_files import trace_problems

    return (
        quantization_problems,
        dummy_problems,
        engine_problems,
        slo_problems,
        trace_problems,
        backend_problems,
    )


def _refuse_options_of_recipes(context: typer.Context) -> None:
    """A recipe says what it measures: an option that says otherwise would be ignored."""
    from llmopt.errors import UsageError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and parameter.name not in BESIDE_RECIPE:
            raise UsageError(
                f"{parameter.opts[0]} was given, and a recipe says that itself",
                "Change the recipe, or name models in its place.",
            )


def _dtype(name: str) -> "Dtype":
    from llmopt.errors import UsageError
    from llmopt.recipe.schema import Dtype

    choices: tuple[Dtype, ...] = get_args(Dtype)
    for choice in choices:
        if name == choice:
            return choice
    raise UsageError(f"the dtype {name} is not supported", f"Use {', '.join(choices)}.")
