"""`llmopt bench-kernels`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch


def bench_kernels(
    kernel: Annotated[
        list[str] | None,
        typer.Option(help="Only this one; repeat for more. All if absent."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu; the GPU if there is one.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer shapes, and shorter measurements.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Hold outputs against their definitions; time nothing.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Search the fastest launch configurations of this GPU, and keep them."
        ),
    ] = False,
    shapes: Annotated[
        str | None,
        typer.Option(help="real, quick, cpu or tiny; what suits the device if absent."),
    ] = None,
    time: Annotated[float | None, typer.Option(help="Seconds for all kernels together.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory for the result file; printed only if absent."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the kernels beside cuBLAS, torch's attention and other libraries.

    Outputs are held against the kernels' definitions before anything is timed; a wrong one of ours
    makes the exit code 1. Percentages are of ceilings that the same run measures. Runs from a
    checkout of the source.

    Examples:

        llmopt bench-kernels --kernel wna16 --kernel paged_attention

        llmopt bench-kernels --device cpu --quick

        llmopt bench-kernels --tune --time 1200
    """
    _find_bench()
    from bench.kernel_run import KernelOptions, check_kernels, run_kernels
    from bench.shapes import SHAPES
    from bench.table import kernel_table
    from bench.timing import Effort
    from llmopt.cli.output import print_json
    from llmopt.errors import UsageError
    from llmopt.results.codec import to_json
    from llmopt.results.kernels import OURS, KernelRow, write_kernel_result

    names, target = tuple(kernel or ()), _device(device)
    check_kernels(names)
    if shapes is not None and shapes not in SHAPES:
        raise UsageError(f"there are no shapes {shapes!r}", f"Use one of {', '.join(SHAPES)}.")
    if tune:
        _tune(names, target, shapes or "real", time)
        return
    usual = "cpu" if target.type == "cpu" else "real"
    options = KernelOptions(
        names,
        target,
        shapes or ("quick" if quick and target.type == "cuda" else usual),
        None if check else Effort(budget_s=0.1 if quick else 0.5),
        time,
    )

    def show(row: KernelRow) -> None:
        problem = f": {row.problem}" if row.problem else ""
        line = f"{row.kernel} {row.shape} batch {row.num_tokens} {row.contender}{problem}"
        print(line, file=sys.stderr)

    result = run_kernels(options, show)
    if json:
        print_json(to_json(result))
    else:
        print("\n".join(kernel_table(result)))
    if out is not None:
        typer.echo(f"written to {write_kernel_result(out, result)}", err=True)
    wrong = [row for row in result.rows if row.contender == OURS and row.problem is not None]
    if wrong:
        typer.echo(f"{len(wrong)} outputs of ours are wrong; their rows say how", err=True)
        raise typer.Exit(1)


def _find_bench() -> None:
    """Make `bench` importable. Raises UsageError where there is no checkout."""
    import llmopt
    from llmopt.errors import UsageError

    kernels = Path(llmopt.__file__).resolve().parents[1] / "kernels"
    if not (kernels / "bench" / "__init__.py").is_file():
        raise UsageError(
            "the benchmarks of kernels are part of the source tree, and this llmopt is installed"
            " without it",
            "Clone the repository, and run llmopt there.",
        )
    if str(kernels) not in sys.path:
        sys.path.insert(0, str(kernels))


def _device(name: str) -> "torch.device":
    import torch

    from llmopt.models.loader import resolve_device

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_device(name)


def _tune(names: tuple[str, ...], device: "torch.device", shapes: str, time: float | None) -> None:
    from bench.shapes import SHAPES
    from llmopt.errors import UsageError

    if device.type != "cuda":
        raise UsageError(
            "launch configurations were to be tuned, and there is no GPU to launch on",
            "Run it on a machine with a CUDA device, or leave out --tune.",
        )
    from bench.tune import TUNED_KERNELS, tune

    fixed = [name for name in names if name not in TUNED_KERNELS]
    if fixed:
        raise UsageError(
            f"the kernel {fixed[0]!r} has nothing to tune", f"Use {', '.join(TUNED_KERNELS)}."
        )
    path = tune(names, device, SHAPES[shapes], time, lambda line: typer.echo(line, err=True))
    typer.echo(f"configurations in {path}", err=True)
