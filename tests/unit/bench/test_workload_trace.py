import json

import pytest

from llmopt.bench.workload_trace import TracedRequest, read_trace
from llmopt.errors import LLMOptError, ResultError, UsageError
from llmopt.results.codec import to_json
from llmopt.results.schema import BackendFacts, CellResult, Environment

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:50.1805900,879,55
"""


def cell_of(runs):
    words = ["cpu", 2, 10**9, "Linux", "3.12", "2.11", "5.0", "0.1", None, None, 1]
    return CellResult(
        cell_id="c",
        recipe_name="r",
        recipe={},
        target="t",
        base_target="t",
        model=None,
        backend=BackendFacts("llmopt", "0.1", {}),
        load=None,
        environment=Environment(*words),
        ceilings=None,
        cost=None,
        runs=tuple(runs),
        quality=None,
        validity=(),
        summary=None,
        error=None,
        created_at="2026-01-01T00:00:00+00:00",
    )


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_azures_csv_begins_at_zero_and_ascends(tmp_path):
    rows = read_trace(write(tmp_path, "a.csv", AZURE))
    assert [row.at_s for row in rows] == pytest.approx([0, 3.5, 4.314579], abs=1e-6)
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [
        (374, 44),
        (879, 55),
        (396, 109),
    ]


def test_the_newer_azure_times_have_a_zone(tmp_path):
    text = AZURE.replace("18:15:46.6805900", "18:15:46.680590+00:00")
    assert read_trace(write(tmp_path, "a.csv", text))[1].at_s == pytest.approx(3.5, abs=1e-6)


def test_mooncakes_jsonl_has_milliseconds_and_blocks(tmp_path):
    lines = [
        {"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [46, 47]},
        {"timestamp": 27482, "input_length": 10, "output_length": 3},
        {"timestamp": 27500, "input_length": 10, "output_length": 0},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    assert read_trace(write(tmp_path, "m.jsonl", text)) == [
        TracedRequest(0.0, 6758, 500, (46, 47)),
        TracedRequest(pytest.approx(24.482), 10, 3, ()),
    ]


def test_a_result_file_of_ours_is_a_trace(tmp_path, make):
    requests = [
        make.request(scheduled_s=2.0, num_prompt_tokens=7, max_tokens=9),
        make.request(scheduled_s=0.5, num_prompt_tokens=5, num_prompt_tokens_sent=6),
    ]
    result = cell_of([make.run(requests), make.run(requests * 2)])
    path = write(tmp_path, "r.json", json.dumps(to_json(result)))
    assert read_trace(path) == [TracedRequest(0.0, 6, 3), TracedRequest(1.5, 7, 9)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens\n1,2\n", r"a\.csv:1: the trace lacks the columns Gener"),
        ("a.csv", AZURE.replace("396", "many"), r"a\.csv:3: not a row of a trace"),
        ("a.csv", AZURE.replace(",55", ""), r"a\.csv:4: not a row"),
        (
            "a.csv",
            AZURE.replace("2023-11-16 18:15:50.9951690", "yesterday"),
            r"a\.csv:3: not a row",
        ),
        ("a.csv", AZURE.splitlines()[0], "has no requests"),
        ("a.csv", "", "lacks the columns"),
        ("m.jsonl", "{}\n", r"m\.jsonl:1: not a row"),
        ("m.jsonl", "[1]\n", r"m\.jsonl:1: not a row"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 1\n', r"m\.jsonl:1: not a row"),
        ("t.txt", "", r"suffix '\.txt'"),
    ],
)
def test_what_is_no_trace_is_named_with_its_line(tmp_path, name, text, message):
    with pytest.raises(UsageError, match=message):
        read_trace(write(tmp_path, name, text))


def test_files_that_are_not_there(tmp_path):
    for name in ("a.csv", "m.jsonl", "r.json"):
        with pytest.raises(LLMOptError):
            read_trace(tmp_path / name)
    with pytest.raises(ResultError):
        read_trace(write(tmp_path, "other.json", "{}"))
