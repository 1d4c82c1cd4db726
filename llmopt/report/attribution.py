"""Where the time of each row went, and one line on why it is, or is not, faster than its base.

Knows nothing about how times were measured. The laws: a row without an attribution is not in the
table; a part that was not measured is a dash, and one that no row has is no column.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.bench.attribution import attribute_cell
from llmopt.bench.explanation import Explanation, Subject, explain
from llmopt.report.columns import MISSING, load_text, three_digits
from llmopt.report.rows import Row, load_shape, machine, make_rows, newest
from llmopt.results.attribution import Attribution, PartName, StepProfile
from llmopt.results.codec import to_json
from llmopt.results.schema import CellResult

TITLE = "Where the time went, in percent of the wall time"
DEFINITIONS = (
    "weights, matmul: linear layers at the roofline, in steps that are bound by reading weights or "
    "by FLOPs; KV, attention: attention, bound by its cache or by FLOPs; lm_head: the output head. "
    "These need the ceilings measured on this machine; above roofline: what the forward passes "
    "took longer than that.",
    "host: scheduling, drafting and recording; client: requests were due and none had been sent; "
    "idle: none was due; rest: measured by nobody. waits: of the time that requests were in "
    "flight, that in which no step had them.",
)
_COLUMNS: tuple[tuple[str, tuple[PartName, ...]], ...] = (
    ("wei-\nghts", ("weights",)),
    ("mat-\nmul", ("matmul",)),
    ("KV", ("kv",)),
    ("atten-\ntion", ("attention",)),
    ("lm_\nhead", ("lm_head",)),
    ("above\nroofl.", ("operators",)),
    ("samp-\nling", ("sampling",)),
    ("host", ("drafting", "scheduling", "update")),
    ("cli-\nent", ("client",)),
    ("idle", ("idle",)),
    ("rest", ("unattributed",)),
)
_WIDTH = 100
_ABOVE = (
    "Faster than the bytes of their linear layers allow, as the base is further from its own "
    "roofline"
)
_NUM_PROFILED = 3  # parts of a step that its note names


@dataclass(frozen=True, slots=True)
class AttributedRow:
    """A row of the report with its attribution."""

    result: CellResult
    row: Row
    attribution: Attribution

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds of wall time per output token of all requests together."""
        num_tokens = self.attribution.num_output_tokens
        return 1000 * self.attribution.wall_s / num_tokens if num_tokens else None


def attributed(results: Sequence[CellResult], rows: Sequence[Row]) -> list[AttributedRow]:
    """The rows that can be believed and have an attribution, in their order."""
    found = []
    for result, row in zip(results, rows, strict=True):
        attribution = attribute_cell(result) if row.status == "ok" else None
        if attribution is not None:
            found.append(AttributedRow(result, row, attribution))
    return found


def explanation_notes(
    results: Sequence[CellResult], rows: Sequence[Row], name: Callable[[Row], str]
) -> Iterator[str]:
    """Yield one line for each row whose weights are not in the base's scheme, and one for all that
    are faster than their bytes allow.
    """
    known = attributed(results, rows)
    above = []
    for each in known:
        found = _explanation(each, known)
        if found is None:
            continue
        if found.is_above:
            above.append(f"{name(each.row)} ({found.speedup:.2f}x of {found.allowed:.2f}x)")
        else:
            yield f"{name(each.row)}: {found}."
    if above:
        yield f"{_ABOVE}: {', '.join(above)}."


def _explanation(each: AttributedRow, known: Sequence[AttributedRow]) -> Explanation | None:
    base = next((other for other in known if _is_base_of(other, each)), None)
    speedup = each.row.speed.speedup if each.row.speed else None
    subject = _subject(each)
    reference = None if base is None else _subject(base)
    if subject is None or reference is None or speedup is None:
        return None
    if subject.model.scheme == reference.model.scheme:
        return None
    return explain(subject, reference, speedup)


def profile_notes(
    results: Sequence[CellResult], rows: Sequence[Row], name: Callable[[Row], str]
) -> Iterator[str]:
    """Yield one line for each profiled step: what takes most of it, against what that needs."""
    for result, row in zip(results, rows, strict=True):
        for profile in result.profile:
            yield f"{name(row)}, {profile_title(profile)}: {_largest_parts(profile)}."


def profile_title(profile: StepProfile) -> str:
    """Return "decode step of 8 tokens, 12.3 ms"."""
    size = f"{profile.num_tokens} token{'' if profile.num_tokens == 1 else 's'}"
    kind = "decode step" if profile.kind == "decode" else "prefill chunk"
    return f"{kind} of {size}, {three_digits(1000 * profile.step_s)} ms"


def write_attribution(results: Sequence[CellResult], out: TextIO, *, markdown: bool) -> None:
    """Write the table of the newest result of each cell; says so where there is none."""
    shown = newest(results)
    found = attributed(shown, make_rows(shown))
    if not found:
        out.write("No valid row says where its time went: only llmopt's own runtime counts it.\n")
        return
    headers, lines = _table(found)
    if markdown:
        out.write(_markdown(headers, lines))
    else:
        _print(headers, lines, out)


def explained_json(report: str, results: Sequence[CellResult]) -> str:
    """The JSON report with the attributions of its rows, times in seconds, as "attribution"."""
    shown = newest(results)
    attributions = [
        {
            "recipe": each.row.recipe,
            "target": each.row.target,
            "cell_id": each.result.cell_id,
            "attribution": to_json(each.attribution),
        }
        for each in attributed(shown, make_rows(shown))
    ]
    document = {**json.loads(report), "attribution": attributions}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _table(found: Sequence[AttributedRow]) -> tuple[list[str], list[list[str]]]:
    columns = [
        (header, [_percent(each.attribution, names) for each in found])
        for header, names in _COLUMNS
    ]
    columns = [(header, cells) for header, cells in columns if set(cells) - {MISSING, "0"}]
    headers = ["target", "load", "ms/\ntoken", *(header for header, _ in columns), "waits"]
    lines = []
    for index, each in enumerate(found):
        ms = each.ms_per_token
        load = each.row.load
        lines.append(
            [
                each.row.target,
                MISSING if load is None else load_text(load),
                MISSING if ms is None else three_digits(ms),
                *(cells[index] for _, cells in columns),
                _waits(each.attribution),
            ]
        )
    return headers, lines


def _percent(attribution: Attribution, names: Sequence[PartName]) -> str:
    if not any(part.name in names for part in attribution.parts):
        return MISSING
    return _share(attribution.share(*names))


def _waits(attribution: Attribution) -> str:
    if attribution.in_flight_s <= 0:
        return MISSING
    return _share(attribution.waiting_s / attribution.in_flight_s)


def _share(share: float) -> str:
    if share < 0.0005:
        return "0"
    return f"{100 * share:.{1 if share < 0.0995 else 0}f}"


def _print(headers: Sequence[str], lines: Sequence[Sequence[str]], out: TextIO) -> None:
    table = Table(
        title=Text(TITLE, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for index, header in enumerate(headers):
        table.add_column(
            header, justify="right" if index else "left", vertical="bottom", overflow="fold"
        )
    for line in lines:
        table.add_row(*map(Text, line))
    console = Console(file=out, highlight=False, width=_WIDTH)
    with console.capture() as capture:
        console.print(table)
        for definition in DEFINITIONS:
            console.print(Text(definition), style="dim")
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    names = [header.replace("-\n", "").replace("_\n", "_").replace("\n", " ") for header in headers]
    rules = ["---", *("---:" for _ in headers[1:])]
    rows = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rules, *rows))
    notes = "\n".join(f"* {definition}" for definition in DEFINITIONS)
    return f"**{TITLE}**\n\n{text}\n\n{notes}\n"


def _largest_parts(profile: StepProfile) -> str:
    parts = sorted(profile.parts, key=lambda part: part.seconds, reverse=True)[:_NUM_PROFILED]
    texts = []
    for part in parts:
        text = f"{part.name} {100 * part.seconds / profile.profiled_s:.0f} %"
        if part.ideal_s:
            text += f" ({part.seconds / part.ideal_s:.1f}x its ideal)"
        texts.append(text)
    return ", ".join(texts)


def _subject(each: AttributedRow) -> Subject | None:
    model, cost = each.result.model, each.result.cost
    return None if model is None or cost is None else Subject(each.attribution, model, cost)


def _is_base_of(base: AttributedRow, other: AttributedRow) -> bool:
    """Whether the speed-up of `other` is against `base`."""
    is_named = base.row.target == other.row.baseline != other.row.target
    return is_named and _site(base.result) == _site(other.result)


def _site(result: CellResult) -> tuple[object, ...]:
    """What a base and its rows have in common."""
    return machine(result), result.recipe_name, result.backend.name, load_shape(result.load)
