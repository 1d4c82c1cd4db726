"""One question to a server and its answer, as a fixture keeps them.

A fixture is a JSON object: `source` (the pages it was written from, or what it was recorded from),
`method`, `path`, `status`, `content_type`, `pieces` (of the body, each sent as one chunk) and
`expected`, which is the test's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Exchange:
    server: str
    situation: str
    source: tuple[str, ...]
    method: str
    path: str
    status: int
    content_type: str
    pieces: tuple[str, ...]
    expected: Any

    @property
    def body(self) -> str:
        return "".join(self.pieces)


def read_exchanges(directory: Path) -> dict[str, Exchange]:
    """What is known of one server, by situation."""
    return {path.stem: _read(path) for path in sorted(directory.glob("*.json"))}


def _read(path: Path) -> Exchange:
    found = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(found.pop(name)) for name in ("source", "pieces")}
    return Exchange(path.parent.name, path.stem, **lists, **found)
