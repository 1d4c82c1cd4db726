"""Request files: what is read, and that everything wrong is said with its place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmopt.errors import UsageError
from llmopt.quality.tasks.requests import TaskRequest, read_requests

CHOICE = {"id": "a", "context": "One and", "choices": [" two", " six"], "gold": 1}
TARGET = {"id": 7, "context": "", "target": "word", "task": "lambada"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_rows(*rows: object, name: str = "piqa.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write_rows


def test_items_keep_their_order_and_their_tasks(write):
    path = write(CHOICE, "", TARGET, {**CHOICE, "id": "b", "gold": 0})
    assert read_requests([path]) == {
        "piqa": (
            TaskRequest("a", "piqa", "One and", (" two", " six"), 1),
            TaskRequest("b", "piqa", "One and", (" two", " six"), 0),
        ),
        "lambada": (TaskRequest("7", "lambada", "", ("word",), None),),
    }


def test_the_same_id_may_come_in_two_tasks_and_files(write):
    first = write(CHOICE, {**CHOICE, "task": "other"})
    second = write({**CHOICE, "id": "b"}, name="more.jsonl")
    assert list(read_requests([first, second])) == ["piqa", "other", "more"]


def test_line_separators_inside_a_text_do_not_end_the_item(write):
    path = write(json.dumps({**TARGET, "target": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read_requests([path])["lambada"][0].continuations == ("a\u2028b\x85c",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ([1], "JSON object"),
        ({**CHOICE, "golds": 1}, "unknown field 'golds'"),
        ({**CHOICE, "id": None}, "'id' must be a text"),
        ({**CHOICE, "id": True}, "'id' must be a text"),
        ({**CHOICE, "task": ""}, "'task' must be a text"),
        ({**CHOICE, "context": None}, "'context' must be a text"),
        ({"id": "x", "context": ""}, "either 'choices' and 'gold' or 'target'"),
        ({**CHOICE, "target": " x"}, "either 'choices' and 'gold' or 'target'"),
        ({**TARGET, "gold": 0}, "'gold' belongs to 'choices'"),
        ({**TARGET, "target": ""}, "'target' must be a text"),
        ({**CHOICE, "choices": [" two"]}, "at least 2"),
        ({**CHOICE, "choices": " two"}, "at least 2"),
        ({**CHOICE, "choices": [" two", 6]}, "every choice must be a text"),
        ({**CHOICE, "gold": 2}, "'gold' is 2 and must count from 0 to 1"),
        ({**CHOICE, "gold": -1}, "'gold' is -1"),
        ({**CHOICE, "gold": True}, "'gold' is True"),
        (CHOICE, "has the item 'a' twice"),
    ],
)
def test_a_malformed_item_is_refused_with_its_line(write, row, message):
    path = write(CHOICE, "", row)
    with pytest.raises(UsageError, match=message) as caught:
        read_requests([path])
    assert caught.value.message.startswith(f"{path}:3: ")


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(UsageError, match="cannot be read"):
        read_requests([tmp_path / "absent.jsonl"])
    with pytest.raises(UsageError, match="no items"):
        read_requests([write("", " ")])
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(UsageError, match=r"not UTF-8 \(byte 8\)"):
        read_requests([tmp_path / "latin.jsonl"])


def sample(doc_id: int = 0, target: str = "1", filter_name: str = "none") -> dict[str, object]:
    texts = [" two", " six"]
    arguments = {
        f"gen_args_{i}": {"arg_0": "One and", "arg_1": text} for i, text in enumerate(texts)
    }
    return {"doc_id": doc_id, "target": target, "arguments": arguments, "filter": filter_name}


def test_samples_of_the_harness_are_named_after_their_file(write):
    path = write(sample(), sample(4, "0"), name="samples_arc_easy_2026-01-02T03-04-05.678901.jsonl")
    assert read_requests([path]) == {
        "arc_easy": (
            TaskRequest("0", "arc_easy", "One and", (" two", " six"), 1),
            TaskRequest("4", "arc_easy", "One and", (" two", " six"), 0),
        )
    }


def test_an_item_logged_again_behind_another_filter_counts_once(write):
    path = write(sample(), sample(filter_name="strict"))
    assert len(read_requests([path])["piqa"]) == 1
    with pytest.raises(UsageError, match="twice"):
        read_requests([write(sample(), sample())])
    with pytest.raises(UsageError, match="twice"):
        read_requests([write(sample(), sample(target="0", filter_name="strict"))])


def test_a_sample_that_cannot_be_replayed_is_refused_with_its_line(write):
    path = write(sample(), sample(1, "9"))
    with pytest.raises(UsageError, match=r":2: this sample .* is none of its choices"):
        read_requests([path])
