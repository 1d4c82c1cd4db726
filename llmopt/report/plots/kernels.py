"""Up to which batch a kernel pays: the time of others over ours, by tokens of the batch.

Knows nothing about how kernels were measured. The law: a point is of one matrix, where both
contenders were right; above 1 ours is faster.
"""

from collections.abc import Sequence
from typing import Any

from llmopt.report.plots.style import dashes, look, new_figure
from llmopt.results.kernels import OURS, Crossover, KernelResult, crossovers

_SIZE = (5.4, 3.8)  # inches of a panel
_MAX_ACROSS = 2
_FINE_TICKS = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.6, 1.8)
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 30.0, 50.0)


def kernel_figure(results: Sequence[KernelResult]) -> Any:
    """A panel for each device, kernel and contender with several batches; None without any."""
    panels: dict[str, list[Crossover]] = {}
    for result in results:
        peers = dict.fromkeys(row.contender for row in result.rows if row.contender != OURS)
        for peer in peers:
            for crossover in crossovers(result.rows, peer):
                if len(crossover.speedups) > 1:
                    title = f"{crossover.kernel} against {peer}\n{result.environment.device}"
                    panels.setdefault(title, []).append(crossover)
    if not panels:
        return None
    figure, grid = new_figure(len(panels), _MAX_ACROSS, _SIZE)
    for axes, (title, members) in zip(grid, panels.items(), strict=True):
        axes.axhline(1, color="#444444", linewidth=1)
        for index, each in enumerate(members):
            axes.plot(
                [tokens for tokens, _ in each.speedups],
                [speedup for _, speedup in each.speedups],
                **look(index),
                linestyle=dashes(index),
                linewidth=1.3,
                markersize=5,
                label=f"{each.shape}: {_verdict(each)}",
            )
        tokens = sorted({tokens for each in members for tokens, _ in each.speedups})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(tokens, [str(each) for each in tokens])
        speedups = [speedup for each in members for _, speedup in each.speedups]
        inside = _ticks(min(1.0, *speedups), max(1.0, *speedups))
        axes.set_yticks(inside, [f"{tick:g}" for tick in inside])
        axes.minorticks_off()
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("tokens of the batch")
        axes.set_ylabel("speed-up (above 1: ours is faster)")
        axes.legend(fontsize=8, framealpha=0.85, handlelength=3.5)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two speed-ups, 1 among them; finer ones where they are close."""
    inside = [tick for tick in _TICKS if low / 1.1 <= tick <= 1.1 * high]
    fine = [tick for tick in _FINE_TICKS if low / 1.05 <= tick <= 1.05 * high]
    return inside if len(inside) > 2 else sorted({*inside, *fine})


def _verdict(crossover: Crossover) -> str:
    return f"faster up to {crossover.up_to}" if crossover.up_to else "slower at the smallest"
