from dataclasses import fields
from pathlib import Path

import pytest

from llmopt.cli.bench_loads import LoadOptions, loads_of_options
from llmopt.errors import UsageError
from llmopt.recipe.load import recipe_from_targets
from llmopt.recipe.loads import Lengths, Load, Workload

ABSENT = {field.name: None for field in fields(LoadOptions)} | {
    "concurrency": None,
    "time_scale": 1.0,
    "random_tokens": False,
    "turns": 1,
    "think_s": 0.0,
}


def loads(**given):
    found = loads_of_options(LoadOptions(**(ABSENT | given)))
    recipe_from_targets(["m"], found)  # a command line makes only loads that a recipe may have
    return found


def test_without_options_it_is_a_closed_loop_at_two_levels():
    assert loads() == [Load(1, 4, 128, 64), Load(8, 16, 128, 64)]
    assert loads(concurrency="4", requests=6, prompt_tokens="32", output_tokens="9") == [
        Load(4, 6, 32, 9)
    ]


def test_a_rate_makes_an_open_loop_and_each_rate_a_load():
    assert loads(rate="0.5,2") == [
        Load(8, 100, 128, 64, "poisson", 0.5),
        Load(8, 100, 128, 64, "poisson", 2.0),
    ]
    assert loads(rate="2", burstiness=0.5, requests=7, concurrency="3") == [
        Load(3, 7, 128, 64, "gamma", 2.0, burstiness=0.5)
    ]
    assert loads(rate="4", start_rate=1.0, num_steps=3, duration_s=9.0) == [
        Load(8, None, 128, 64, "ramp", 4.0, 1.0, 3, duration_s=9.0)
    ]
    assert loads(kind="constant", rate="4")[0].kind == "constant"
    assert loads(kind="burst", concurrency="2")[0] == Load(2, 4, 128, 64, "burst")


def test_an_slo_without_a_rate_is_a_search():
    (load,) = loads(slo="ttft_p95<1s")
    assert (load.is_searched, load.num_requests) == (True, 100)
    (load,) = loads(slo="ttft_p95<1s", rate="3", concurrency="32")
    assert (load.is_searched, load.num_requests) == (False, 100)
    (load,) = loads(slo="ttft_p95<1s", concurrency="64")
    assert (load.is_searched, load.num_requests) == (True, 128)


def test_a_trace_has_its_own_lengths():
    assert loads(trace=Path("t.csv"), time_scale=0.1, prompt_tokens="<512") == [
        Load(8, None, Lengths("source", 512), kind="trace", trace="t.csv", time_scale=0.1)
    ]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("77", 77),
        ("64-256", Lengths("uniform", 256, 64)),
        ("200~100", Lengths("lognormal", 600, mean=200.0, std=100.0)),
        ("200~100<512", Lengths("lognormal", 512, mean=200.0, std=100.0)),
        ("t/sharegpt.json<512", Lengths("empirical", 512, table="t/sharegpt.json")),
        ("t.csv", Lengths("empirical", 1 << 30, table="t.csv")),
    ],
)
def test_lengths_are_written_shortly(text, lengths):
    for load in loads(prompt_tokens=text, output_tokens=text):
        assert (load.prompt_tokens, load.output_tokens) == (lengths, lengths)


def test_the_workload_is_what_was_asked_for():
    (load, _) = loads(prefix="4x64", turns=3, think_s=0.5, random_tokens=True)
    assert load.workload == Workload(
        source="random", prefix_groups=4, prefix_tokens=64, turns=3, think_s=0.5
    )
    (load, _) = loads(prompts=Path("p.jsonl"))
    assert (load.workload.prompts, load.output_tokens) == ("p.jsonl", None)


@pytest.mark.parametrize(
    "given",
    [
        {"concurrency": "a"},
        {"concurrency": "1.5"},
        {"concurrency": "nan"},
        {"concurrency": "0"},
        {"rate": "fast"},
        {"rate": "0"},
        {"rate": "nan"},
        {"kind": "poison"},
        {"kind": "closed", "rate": "2"},
        {"kind": "poisson"},
        {"prompt_tokens": "many"},
        {"prompt_tokens": "9-3"},
        {"prompt_tokens": "<512"},
        {"output_tokens": "t.txt"},
        {"prefix": "4"},
        {"prefix": "4x128"},
        {"think_s": 1.0},
        {"trace": Path("t.csv"), "prompt_tokens": "8-9"},
    ],
)
def test_what_makes_no_sense_is_refused(given):
    with pytest.raises(UsageError):
        loads(**given)


def test_every_concurrency_that_was_given_is_a_load_and_otherwise_there_is_one_default():
    assert [load.concurrency for load in loads()] == [1, 8]
    assert [load.concurrency for load in loads(rate="2")] == [8]
    assert [load.concurrency for load in loads(rate="2", concurrency="4,16")] == [4, 16]
