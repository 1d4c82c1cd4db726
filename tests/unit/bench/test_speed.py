import signal
import threading
from typing import Any

import pytest

from llmopt.bench.speed import Served, backend_facts, measure_run
from llmopt.bench.workload_spec import open_load
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.recipe.loads import Lengths, Load, Workload

LOAD = open_load(Load(3, 6, 20, 5), warmup_requests=2)
TEXT = [2 + (7 * index) % 101 for index in range(2000)]


@pytest.fixture
def model(tiny_llama: Any) -> Decoder:
    return load_model(tiny_llama, dtype="float32")


@pytest.fixture
def served(model: Decoder) -> Served:
    return Served(model, TEXT)


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llmopt-engine"]


def test_the_engine_serves_the_load_it_was_sized_for(served):
    done: list[int] = []
    run = measure_run(served, LOAD, repeat=1, seed=5, on_request=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert (run.repeat, run.seed, run.num_warmup_requests) == (1, 5, 2)
    for request in run.requests:
        assert request.error is None
        assert (request.num_prompt_tokens, request.num_output_tokens) == (20, 5)
        assert list(request.token_times_s) == sorted(request.token_times_s)
        assert request.scheduled_s <= request.sent_s < request.first_token_s <= request.done_s
    assert run.step_stats["num_generated_tokens"] == 30
    assert run.step_stats["num_scheduled_tokens"] == 6 * (20 + 5 - 1)
    assert run.step_stats["num_preemptions"] == 0
    assert run.step_stats["peak_used_blocks"] <= backend_facts(LOAD).settings["num_blocks"]
    assert engine_threads() == []


def test_settings_say_what_served(model):
    facts = backend_facts(LOAD)
    assert facts.name == "llmopt"
    assert facts.settings["num_blocks"] == 3 * 2  # 25 tokens in blocks of 16
    assert facts.settings["max_num_seqs"] == 3


def test_a_text_that_is_too_short_is_refused(model):
    with pytest.raises(UsageError, match="8 prompts"):
        measure_run(Served(model, TEXT[:10]), LOAD, repeat=0, seed=0)
    assert engine_threads() == []


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_engine(served):
    def interrupt(done: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure_run(served, LOAD, repeat=0, seed=0, on_request=interrupt)
    assert engine_threads() == []


@pytest.mark.parametrize(
    "load",
    [
        Load(2, 5, 20, 5, "poisson", rate=200.0),
        Load(2, 5, Lengths("uniform", 40, 10), Lengths("uniform", 6, 2), "burst"),
        Load(2, 6, 20, 5, workload=Workload(turns=3)),
    ],
    ids=["poisson", "burst", "turns"],
)
def test_every_shape_is_served_without_preemption(served, load):
    plan = open_load(load, 1)
    run = measure_run(served, plan, repeat=0, seed=0)
    assert [request.error for request in run.requests] == [None] * plan.spec.num_requests
    for request in run.requests:
        assert request.num_output_tokens == request.max_tokens
        assert request.num_prompt_tokens == request.num_prompt_tokens_sent
        assert request.scheduled_s <= request.sent_s
    assert run.step_stats["num_preemptions"] == 0
    assert run.cache_emptied
    assert run.startup_s > 0
    assert run.peak_memory_bytes > 2**20
    assert run.machine_before is not None
    assert run.machine_after is not None


@pytest.mark.parametrize(
    ("workload", "num_hits"),
    [
        (Workload(), 0),
        # the second and the third request find the two whole blocks of the prefix
        (Workload(prefix_groups=1, prefix_tokens=32), 2 * 32),
        (Workload(distinct_prompts=1), 2 * 32),
    ],
)
def test_the_cache_is_hit_exactly_where_the_workload_says_so(served, workload, num_hits):
    load = Load(1, 3, 40, 5, workload=workload)
    run = measure_run(served, open_load(load, 1), repeat=0, seed=0)
    assert run.step_stats["num_prefix_hit_tokens"] == num_hits
