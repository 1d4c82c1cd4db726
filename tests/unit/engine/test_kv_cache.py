from itertools import pairwise
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llmopt.engine import kv_cache
from llmopt.engine.block_space import BlockMove
from llmopt.engine.kv_cache import (
    KVLayout,
    PagedKV,
    block_runs,
    choose_layout,
    choose_num_blocks,
    fill_memory,
)
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.errors import EngineError
from llmopt.models.decoder import Decoder
from llmopt_kernels.store_kv import Int8Cache, cache_tensors

CPU = torch.device("cpu")
BOTH = [LayerGroup((0, 1))]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8]


def choose(groups: list[LayerGroup] = BOTH, most: int = 28, **given: Any) -> list[int]:
    defaults = {
        "layer_block_bytes": 500,
        "block_size": 16,
        "num_blocks": None,
        "kv_memory_bytes": None,
        "device": CPU,
    }
    return choose_num_blocks(groups, [most] * len(groups), **{**defaults, **given})


def layout(dtype: torch.dtype = torch.float32, block_size: int = 4, head_dim: int = 16) -> KVLayout:
    return KVLayout(num_kv_heads=2, head_dim=head_dim, block_size=block_size, dtype=dtype)


def all_tensors(kv: PagedKV) -> list[torch.Tensor]:
    return [t for layer in kv.layers for cache in layer for t in cache_tensors(cache)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_block_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    kv = PagedKV(BOTH, [3], layout(dtype), CPU)
    assert sum(t.nbytes for t in all_tensors(kv)) == 3 * 2 * layout(dtype).block_bytes


def test_int8_takes_a_byte_for_each_value_and_two_for_each_token_and_head() -> None:
    assert layout(torch.int8).block_bytes == 2 * 4 * 2 * (16 + 2)
    assert layout(torch.float8_e4m3fn).block_bytes == 2 * 4 * 2 * 16


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.bfloat16), ("fp8", torch.float8_e4m3fn), ("int8", torch.int8)],
)
def test_the_layout_is_that_of_the_model(tiny_model: Decoder, name: Any, dtype: Any) -> None:
    chosen = choose_layout(tiny_model.config, 4, name, torch.bfloat16)
    assert chosen == layout(dtype)


def test_the_cache_is_zeros_of_the_asked_shape() -> None:
    kv = PagedKV(BOTH, [5], layout(), CPU)
    tensors = all_tensors(kv)
    assert {tuple(tensor.shape) for tensor in tensors} == {(5, 4, 2, 16)}
    assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in tensors)
    tensors[0].fill_(1.0)
    assert [int(tensor.count_nonzero()) for tensor in tensors[1:]] == [0, 0, 0]


def test_each_group_has_blocks_of_its_own() -> None:
    kv = PagedKV([LayerGroup((0, 2)), LayerGroup((1,), window=4)], [7, 3], layout(), CPU)
    assert [cache_tensors(keys)[0].shape[0] for keys, _ in kv.layers] == [7, 3, 7]


def test_untouched_blocks_take_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    kv = PagedKV(BOTH, [200_000], layout(block_size=16), CPU)
    assert all_tensors(kv)[0].nbytes > 4e8
    assert psutil.Process().memory_info().rss - before < 1e8


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves_copy_keys_values_and_scales_within_and_between_memories(dtype: torch.dtype) -> None:
    groups = [LayerGroup((0,)), LayerGroup((1,), window=4)]
    kv = PagedKV(groups, [4, 4], layout(dtype), CPU, [2, 2])
    for number, tensor in enumerate(all_tensors(kv)):
        for block in range(4):
            tensor[block] = number + 10 * block
    before = [t.double() for t in all_tensors(kv)]
    kv.move(
        SchedulerOutput(
            (),
            swap_outs=(BlockMove(1, 3, 0),),
            copies=(BlockMove(0, 0, 1), BlockMove(0, 1, 2), BlockMove(1, 1, 3)),
            swap_ins=(BlockMove(1, 0, 1),),
        )
    )
    per_layer = len(before) // 2
    for number, (old, new) in enumerate(zip(before, all_tensors(kv), strict=True)):
        order = [0, 0, 1, 3] if number < per_layer else [0, 3, 2, 1]
        assert torch.equal(new.double(), old[order])


def test_copies_read_before_they_write() -> None:
    kv = PagedKV(BOTH, [3], layout(), CPU)
    for tensor in all_tensors(kv):
        tensor.copy_(torch.arange(3.0)[:, None, None, None].expand_as(tensor))
    kv.move(SchedulerOutput((), copies=(BlockMove(0, 0, 1), BlockMove(0, 1, 2))))
    assert {tuple(t[:, 0, 0, 0].tolist()) for t in all_tensors(kv)} == {(0.0, 0.0, 1.0)}


class Recorded(TorchDispatchMode):
    """The operations that move data, with what they are told about waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view:
            self.calls.append((name, name == "copy_" and bool(args[2])))
        return func(*args, **(kwargs or {}))


def test_a_gpu_would_wait_for_no_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices go through the staging buffers, once for each group; what is swapped, by copies that
    do not wait, one for each run of blocks; there is nothing else.
    """
    groups = [LayerGroup((0,)), LayerGroup((1, 2), window=4)]
    kv = PagedKV(groups, [4, 4], layout(), CPU, [4, 4])
    staged: list[list[list[int]]] = []

    def to_device(array: Any, device: torch.device) -> torch.Tensor:
        assert device == CPU
        staged.append(array.tolist())
        return torch.from_numpy(array)

    monkeypatch.setattr(kv_cache, "to_device", to_device)
    with Recorded() as copied:
        kv.move(
            SchedulerOutput((), copies=(BlockMove(0, 0, 1), BlockMove(1, 1, 3), BlockMove(0, 2, 3)))
        )
    assert staged == [[[0, 2], [1, 3]], [[1], [3]]]
    assert copied.calls == [("index_select", False), ("index_copy_", False)] * (2 * 3)
    moves = (BlockMove(1, 0, 2), BlockMove(1, 1, 3), BlockMove(1, 3, 0))
    for output in (SchedulerOutput((), swap_outs=moves), SchedulerOutput((), swap_ins=moves)):
        with Recorded() as swapped:
            kv.move(output)
        assert swapped.calls == [("copy_", True)] * (2 * 2 * 2)
    assert len(staged) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_runs_are_the_moves_in_order_and_as_long_as_can_be(pairs: list[tuple[int, int]]) -> None:
    runs = block_runs(pairs)
    assert [(a + i, b + i) for a, b, count in runs for i in range(count)] == pairs
    for (a, b, count), after in pairwise(runs):
        assert (a + count, b + count) != after[:2]


def test_int8_blocks_come_with_scales() -> None:
    keys, values = PagedKV(BOTH, [2], layout(torch.int8), CPU).layers[0]
    assert isinstance(keys, Int8Cache)
    assert isinstance(values, Int8Cache)
    assert keys.scales.shape == (2, 4, 2)


def test_a_number_of_blocks_is_taken_as_it_is() -> None:
    assert choose(num_blocks=1234, kv_memory_bytes=1) == [1234]


def test_a_windowed_group_gets_no_more_than_the_largest_batch_needs() -> None:
    groups = [LayerGroup((0,)), LayerGroup((1,), window=8)]
    assert choose(groups, most=28, num_blocks=1234) == [1234, 28]


def test_memory_is_filled_with_blocks_up_to_what_the_largest_batch_needs() -> None:
    assert choose(kv_memory_bytes=9999) == [9]
    assert choose(kv_memory_bytes=10**9) == [28]


def test_what_a_windowed_group_does_not_need_goes_to_the_others() -> None:
    assert fill_memory(100, costs=[1, 1], most=[1000, 10]) == [90, 10]
    assert fill_memory(100, costs=[1, 1], most=[1000, 70]) == [50, 50]


@given(
    budget=st.integers(20, 1000),
    groups=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40)), min_size=1, max_size=3),
)
def test_filled_memory_holds_what_was_chosen_and_not_one_more(
    budget: int, groups: list[tuple[int, int]]
) -> None:
    costs, most = [c for c, _ in groups], [m for _, m in groups]
    chosen = fill_memory(budget, costs, most)
    spent = sum(c * n for c, n in zip(costs, chosen, strict=True))
    assert spent <= budget
    level = max(chosen)
    assert chosen == [min(level, m) for m in most]
    growing = [c for c, n, m in zip(costs, chosen, most, strict=True) if n < m]
    assert not growing or spent + sum(growing) > budget


def test_free_memory_counts_when_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    now = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: now._replace(available=20_000))
    assert choose() == [8]  # 0.4 of it


def test_memory_below_one_block_is_refused_with_what_a_block_takes() -> None:
    with pytest.raises(EngineError, match="at least 1000") as caught:
        choose(kv_memory_bytes=999)
    assert "kv_memory_bytes leaves 999 bytes" in caught.value.message


def test_a_cache_beyond_all_memory_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no memory on cpu .* of 1048576 blocks"):
        PagedKV(BOTH, [2**20], layout(block_size=16, head_dim=2**20), CPU)
