"""A result at the price of the reader's machine.

Knows nothing about layout. The law: the price changes the cost, and nothing that was measured.
"""

from dataclasses import replace

from llmopt.bench.metrics import cost_per_million_tokens
from llmopt.results.schema import CellResult


def priced(result: CellResult, price_per_hour: float) -> CellResult:
    """The result with its cost per million output tokens at this price, in the price's unit."""
    summary = result.summary
    if summary is not None:
        cost = cost_per_million_tokens(summary.output_throughput, price_per_hour)
        summary = replace(summary, cost_per_million_tokens=cost)
    return replace(result, price_per_hour=price_per_hour, summary=summary)
