"""A recommendation as sentences, and as JSON values.

Knows nothing about choosing. The law: every number that decided is said, and what could not be told
apart is said to be so.
"""

from collections.abc import Iterator, Sequence

from llmopt.report.columns import kld_interval_text, three_digits
from llmopt.report.measures import Estimate
from llmopt.report.recommend import Candidate, Recommendation, missed

_NEVER_MEASURED = "Nothing that could be recommended was measured: no row is valid."


def recommendation_lines(found: Sequence[Recommendation]) -> Iterator[str]:
    """Yield the lines of all recommendations; an empty line between two."""
    if not found:
        yield _NEVER_MEASURED
    for number, each in enumerate(found):
        if number:
            yield ""
        yield f"{each.subject}:"
        yield from (f"  {line}" for line in (_ship(each) if each.ship else _none(each)))


def recommendation_values(each: Recommendation) -> dict[str, object]:
    """The recommendation as JSON values."""
    return {
        "subject": each.subject,
        "by": each.by,
        "ship": _values(each.ship),
        "is_sure": None if each.ship is None else each.ship.is_sure,
        "runner_up": _values(each.runner_up),
        "is_distinguishable": None if each.ship is None else len(each.tied) == 1,
        "not_distinguishable": [_values(one) for one in each.tied[1:]],
        "nearest": _values(each.nearest),
        "num_candidates": each.num_candidates,
        "num_within_bounds": each.num_kept,
        "num_surely_within_bounds": each.num_sure,
    }


def _ship(each: Recommendation) -> Iterator[str]:
    ship = each.ship
    assert ship is not None, "the caller asks only where there is one"
    yield f"Ship {ship.name}."
    sure = "" if each.num_sure in (0, each.num_kept) else f", {each.num_sure} of them surely"
    yield f"{each.num_kept} of {each.num_candidates} cells keep every bound{sure}."
    if len(each.tied) == 1:
        goal = "highest throughput" if each.by == "throughput" else "smallest weight files"
        yield f"Why: it has the {goal} of these: {_gain(ship, each.by)}; {_quality(ship)}."
    else:
        others = ", ".join(one.name for one in each.tied if one is not ship)
        yield f"Why: in {each.by}, {_gain(ship, each.by)}, it is not distinguishable from {others};"
        yield f"  of these it loses the least quality: {_quality(ship)}."
    for check in ship.checks:
        yield f"Keeps: {check.text}{'' if check.standing == 'keeps' else ', not surely'}."
    runner_up = each.runner_up
    if runner_up is None:
        yield "Runner-up: none, no other cell keeps every bound."
    else:
        yield f"Runner-up: {runner_up.name}: {_gain(runner_up, each.by)}; {_quality(runner_up)}."
    if not ship.is_sure:
        yield "No cell keeps every bound with the whole of its 95 % interval; measure more."


def _none(each: Recommendation) -> Iterator[str]:
    nearest = each.nearest
    assert nearest is not None, "where nothing keeps the bounds, something is nearest"
    yield f"None of {each.num_candidates} cells keeps every bound."
    yield f"Nearest is {nearest.name} ({_gain(nearest, each.by)}), which does not keep:"
    yield from (f"  {check.text}" for check in missed(nearest))


def _gain(candidate: Candidate, by: str) -> str:
    if by == "size":
        return f"{three_digits(candidate.gain.value)} MB"
    return f"{_estimate(candidate.gain)} tok/s"


def _estimate(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{three_digits(estimate.value)} (no interval)"
    low, high = (three_digits(max(end, 0)) for end in estimate.interval)
    return f"{three_digits(estimate.value)} [{low}, {high}]"


def _quality(candidate: Candidate) -> str:
    if candidate.row.is_base:
        return "it is the base, without a loss"
    quality = candidate.quality
    if quality is None:
        return "its loss of quality was not measured"
    return f"KLD {kld_interval_text(quality.kld_mean, quality.kld_mean_ci)}"


def _values(candidate: Candidate | None) -> dict[str, object] | None:
    if candidate is None:
        return None
    interval = candidate.gain.interval
    return {
        "cell_id": candidate.result.cell_id,
        "target": candidate.row.target,
        "backend": candidate.row.backend,
        "recipe": candidate.row.recipe,
        "concurrency": candidate.row.load.concurrency if candidate.row.load else None,
        "rate_per_s": candidate.row.load.rate if candidate.row.load else None,
        "gain": candidate.gain.value,
        "gain_low": interval[0] if interval else None,
        "gain_high": interval[1] if interval else None,
        "kld_mean": None if candidate.kld == float("inf") else candidate.kld,
        "checks": [
            {
                "name": check.name,
                "value": check.value,
                "limit": check.limit,
                "unit": check.unit,
                "standing": check.standing,
            }
            for check in candidate.checks
        ],
    }
