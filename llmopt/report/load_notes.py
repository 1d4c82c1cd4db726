"""Notes on how a load was measured: the search of its rate, and why its runs ended.

Knows nothing about layout: each note is one line of plain text. The law: a rate is shown with the
rates around it that were measured, and what they were judged by.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from llmopt.report.columns import three_digits
from llmopt.report.rows import Row
from llmopt.results.schema import SearchRecord, SloTerm


def load_notes(rows: Sequence[Row], name: Callable[[Row], str]) -> Iterator[str]:
    """Yield the searches of all rows, and once for each sweep why it ended."""
    for row in rows:
        if row.search is not None and row.load is not None:
            yield f"{name(row)}: {_search(row.search, row.load.slo)}"
    yield from dict.fromkeys(
        f"Repeats: {row.stopping.reason}." for row in rows if row.stopping is not None
    )


def slo_text(terms: Sequence[SloTerm]) -> str:
    """The bounds, such as "ttft p95 <= 500 ms"."""
    return ", ".join(
        f"{term.metric}{'' if term.percent is None else f' p{term.percent:g}'} "
        f"<= {term.limit_ms:g} ms"
        for term in terms
    )


def _search(search: SearchRecord, slo: Sequence[SloTerm]) -> str:
    probes = {probe.rate: probe for probe in search.probes}
    total = sum(probe.num_requests for probe in search.probes)
    tried = f"{len(probes)} rates, {total} requests"
    if search.rate is None:
        return f"no rate keeps {slo_text(slo)}, down to {min(probes):.3g} requests/s ({tried})."
    ends = f"{search.rate:.3g} held{_seen(probes[search.rate].terms_ms, slo)}"
    if search.failing_rate is None:
        ends += ", no higher one was seen to fail"
    else:
        failing = probes[search.failing_rate]
        ends += f", {search.failing_rate:.3g} failed{_seen(failing.terms_ms, slo)}"
        if failing.has_backlog:
            ends += " with a growing queue"
    return (
        f"highest rate that keeps {slo_text(slo)}: {search.rate:.3g} requests/s [{ends}; {tried}]."
    )


def _seen(terms_ms: Sequence[float], slo: Sequence[SloTerm]) -> str:
    """The latencies beside the bounds, in their order."""
    shown = [
        f"{three_digits(value)} ms" if math.isfinite(value) else "of failed requests"
        for value in terms_ms
    ]
    pairs = zip(slo, shown, strict=True)
    return " at " + ", ".join(f"{term.metric} {value}" for term, value in pairs)
