from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from llmopt.engine.kv_cache import allocate_kv_cache, choose_num_blocks, kv_block_bytes
from llmopt.errors import EngineError
from llmopt.models.decoder import Decoder

CPU = torch.device("cpu")


def choose(**given: Any) -> int:
    defaults = {
        "block_bytes": 1000,
        "block_size": 16,
        "max_num_seqs": 4,
        "max_model_len": 100,
        "num_blocks": None,
        "kv_memory_bytes": None,
        "device": CPU,
    }
    return choose_num_blocks(**{**defaults, **given})


def test_block_bytes_are_those_of_the_tensors(tiny_model: Decoder) -> None:
    cache = allocate_kv_cache(tiny_model.config, 3, 8, torch.bfloat16, CPU)
    num_bytes = sum(tensor.nbytes for layer in cache for tensor in layer)
    assert num_bytes == 3 * kv_block_bytes(tiny_model.config, 8, torch.bfloat16)


def test_the_cache_is_zeros_of_the_asked_shape(tiny_model: Decoder) -> None:
    cache = allocate_kv_cache(tiny_model.config, 5, 4, torch.float32, CPU)
    assert len(cache) == 2
    tensors = [tensor for layer in cache for tensor in layer]
    assert {tuple(tensor.shape) for tensor in tensors} == {(5, 4, 2, 16)}
    assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in tensors)
    tensors[0].fill_(1.0)
    assert [int(tensor.count_nonzero()) for tensor in tensors[1:]] == [0, 0, 0]


def test_untouched_blocks_take_no_memory(tiny_model: Decoder) -> None:
    before = psutil.Process().memory_info().rss
    cache = allocate_kv_cache(tiny_model.config, 200_000, 16, torch.float32, CPU)
    assert cache[0][0].nbytes > 4e8
    assert psutil.Process().memory_info().rss - before < 1e8


def test_a_number_of_blocks_is_taken_as_it_is() -> None:
    assert choose(num_blocks=1234, kv_memory_bytes=1) == 1234


def test_memory_is_filled_with_blocks_up_to_what_the_largest_batch_needs() -> None:
    assert choose(kv_memory_bytes=9999) == 9
    assert choose(kv_memory_bytes=10**9) == 4 * 7


def test_free_memory_counts_when_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    now = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: now._replace(available=20_000))
    assert choose() == 8  # 0.4 of it


def test_memory_below_one_block_is_refused_with_what_a_block_takes() -> None:
    with pytest.raises(EngineError, match="at least 1000") as caught:
        choose(kv_memory_bytes=999)
    assert "kv_memory_bytes leaves 999 bytes" in caught.value.message


def test_a_cache_beyond_all_memory_is_refused(tiny_model: Decoder) -> None:
    config = replace(tiny_model.config, head_dim=2**20)
    with pytest.raises(EngineError, match=r"no memory on cpu .* of 1048576 blocks"):
        allocate_kv_cache(config, 2**20, 16, torch.float32, CPU)
