import signal
import threading
from typing import Any

import pytest

from llmopt.bench.speed import backend_facts, measure_run
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.results.schema import LoadSpec

LOAD = LoadSpec(concurrency=3, num_requests=6, prompt_tokens=20, output_tokens=5, warmup_requests=2)
TEXT = [2 + (7 * index) % 101 for index in range(2000)]


@pytest.fixture
def model(tiny_llama: Any) -> Decoder:
    return load_model(tiny_llama, dtype="float32")


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llmopt-engine"]


def test_the_engine_serves_the_load_it_was_sized_for(model):
    served: list[int] = []
    run = measure_run(model, TEXT, LOAD, repeat=1, seed=5, on_request=served.append)
    assert served == [1, 2, 3, 4, 5, 6]
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
        measure_run(model, TEXT[:10], LOAD, repeat=0, seed=0, on_request=lambda done: None)
    assert engine_threads() == []


def test_ctrl_c_stops_the_engine(model):
    def interrupt(done: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure_run(model, TEXT, LOAD, repeat=0, seed=0, on_request=interrupt)
    assert engine_threads() == []
