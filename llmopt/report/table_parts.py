"""A wide table as several that fit: the columns that tell rows apart, and some of the others.

Knows nothing about terminals. The law: every column is in one part, in its order, and a part is
wider than the limit only if a single column beside the keys is.
"""

from collections.abc import Sequence

from llmopt.report.column_choice import KEYS
from llmopt.report.columns import Column
from llmopt.report.rows import Row


def table_parts(
    columns: Sequence[Column], rows: Sequence[Row], width: int
) -> list[tuple[Column, ...]]:
    """The columns of each part, at most `width` characters with a space between columns."""
    keys = tuple(column for column in columns if column.name in KEYS)
    taken = sum(_width(column, rows) + 1 for column in keys)
    parts: list[list[Column]] = []
    room = 0
    for column in columns:
        if column in keys:
            continue
        needed = _width(column, rows) + 1
        if not parts or needed > room:
            parts.append([])
            room = width + 1 - taken
        parts[-1].append(column)
        room -= needed
    return [(*keys, *part) for part in parts] or [keys]


def _width(column: Column, rows: Sequence[Row]) -> int:
    texts = [*column.header.splitlines(), *(column.text(row) for row in rows)]
    return max(map(len, texts))
