"""The rows of a gate in words: the same for the terminal, Markdown and JUnit.

Knows nothing about layouts. The law: changes are shown as the metric moves (a throughput that
fell by 9 % is "-9.0 %"), with their interval, and nothing is shown without the verdict's reason.
"""

import math

from llmopt.report.gate.verdict import GateReport, Row

MISSING = "–"
_THOUSANDS = 10_000


def headline(report: GateReport) -> str:
    """One sentence: the verdict and how many comparisons it is from."""
    regressed, open_ = report.count("REGRESSED"), report.count("INCONCLUSIVE")
    counts = f"{regressed} regressed, {open_} inconclusive, {report.count('PASS')} passed"
    return f"{report.verdict}: {counts} of {len(report.rows)} comparisons"


def value_text(value: float | None) -> str:
    """A value with four significant digits."""
    if value is None or math.isnan(value):
        return MISSING
    if abs(value) >= _THOUSANDS:
        return f"{value:.4g}" if abs(value) >= 1e7 else f"{value:,.0f}"
    return f"{value:.4g}"


def change_text(row: Row) -> str:
    """The change as the metric moves, with its interval: "-9.1 % [-10.2, -8.0]"."""
    if row.change is None or math.isnan(row.change):
        return MISSING
    if row.low is None or row.high is None or row.low == row.high:
        return f"{_signed(row.change, row)} %"
    ends = sorted((_natural(row.low, row), _natural(row.high, row)))
    low, high = (f"{100 * end:+.1f}" for end in ends)
    return f"{_signed(row.change, row)} % [{low}, {high}]"


def tolerance_text(row: Row) -> str:
    """The change that is tolerated, as the metric moves: "-5 %"."""
    if row.tolerance is None or math.isnan(row.tolerance):
        return MISSING
    return f"{'-' if row.is_higher_better else '+'}{100 * row.tolerance:.3g} %"


def reason_text(row: Row) -> str:
    """Why the verdict is as it is, and what would decide it if it is open."""
    if row.change is None:
        return row.reason
    parts = [row.reason]
    if row.adjusted_p is not None and row.verdict != "PASS":
        parts.append(f"p = {row.adjusted_p:.2g} after correction")
    if row.verdict == "INCONCLUSIVE":
        parts.append(_what_decides(row))
    return "; ".join(parts)


def _what_decides(row: Row) -> str:
    if row.further is None:
        return f"no number of further {row.unit} up to 1,000 would decide"
    if row.low is not None and row.high is not None and math.inf in (row.high, -row.low):
        return f"at least {row.further} more {row.unit} are needed"
    return f"about {row.further} more {row.unit} would decide"


def _natural(value: float, row: Row) -> float:
    return -value if row.is_higher_better else value


def _signed(value: float, row: Row) -> str:
    return f"{100 * _natural(value, row):+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")
