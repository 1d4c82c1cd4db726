from dataclasses import replace
from typing import Any

import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.engine import Engine
from llmopt.engine.preflight import Preflight, check_fit
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder

CPU = torch.device("cpu")


def check(model: Decoder, config: EngineConfig, **more: Any) -> Preflight:
    return check_fit(
        model.config, config, weight_bytes=12345, dtype=torch.float32, device=CPU, **more
    )


def test_what_fits_is_what_the_engine_allocates(tiny_model: Decoder) -> None:
    config = EngineConfig(block_size=4, num_blocks=100, max_num_seqs=8)
    fit = check(tiny_model, config, request_tokens=50)
    engine = Engine(tiny_model, config)
    tensors = [cache for layer in engine.kv.layers for cache in layer]
    assert fit.kv_bytes == sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
    assert fit.kv_bytes_per_token * fit.num_kv_tokens == fit.kv_bytes
    assert fit.num_requests == 100 // 13  # 49 slots each


def test_that_many_requests_run_together_without_preemption(tiny_model: Decoder) -> None:
    config = EngineConfig(block_size=4, num_blocks=100, max_num_seqs=8)
    fit = check(tiny_model, config, request_tokens=50)
    for extra, preempted in [(0, False), (1, True)]:
        engine = Engine(tiny_model, replace(config, prefix_caching=False))
        for i in range(fit.num_requests + extra):
            engine.add_request(str(i), [5] * 40, SamplingParams(max_tokens=10, ignore_eos=True))
        waited = False
        while engine.has_unfinished():
            engine.step()
            waited |= bool(engine.scheduler.waiting)
        assert (waited or engine.stats.num_preemptions > 0) == preempted


def test_each_advice_lets_the_largest_batch_fit(tiny_model: Decoder) -> None:
    config = EngineConfig(block_size=4, kv_memory_bytes=500_000, max_num_seqs=4)
    fit = check(tiny_model, config)
    assert 0 < fit.num_requests < 4
    memory, length, dtype = fit.advice
    assert memory == "--kv-memory 1MiB would hold 4"
    per_request = 64 * 4 * fit.kv_bytes_per_token
    assert check(tiny_model, replace(config, kv_memory_bytes=4 * per_request)).advice == ()
    shorter = int(length.split()[1])
    assert check(tiny_model, replace(config, max_model_len=shorter)).advice == ()
    longer = check(tiny_model, replace(config, max_model_len=shorter + 4))
    assert longer.num_requests == 3
    assert dtype == "--kv-dtype int8 would make 4 fit in the same memory"
    assert check(tiny_model, replace(config, kv_dtype="int8")).num_requests == 4


def test_there_is_no_advice_where_everything_fits(tiny_model: Decoder) -> None:
    fit = check(tiny_model, EngineConfig(max_num_seqs=2))
    assert (fit.num_requests, fit.advice) == (2, ())
    assert len(fit.lines) == 2


def test_the_words_have_the_numbers(tiny_model: Decoder) -> None:
    fit = check(tiny_model, EngineConfig(block_size=4, num_blocks=100, max_num_seqs=8))
    assert fit.lines[0] == ("weights 0.00 GiB, key/value cache 0.00 GiB: 400 tokens of 0.5 KiB")
    assert fit.lines[1] == "1 of 8 requests of 256 tokens fit at once"


def test_fewer_requests_than_the_largest_batch_need_no_advice(tiny_model: Decoder) -> None:
    config = EngineConfig(block_size=4, kv_memory_bytes=500_000, max_num_seqs=4)
    whole = check(tiny_model, config)
    fit = check(tiny_model, config, num_requests=whole.num_requests)
    assert (fit.num_requests, fit.max_num_seqs) == (whole.num_requests, whole.num_requests)
    assert fit.advice == ()
    assert fit.kv_bytes == whole.kv_bytes
    assert check(tiny_model, config, num_requests=100) == whole
