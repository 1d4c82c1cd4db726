"""The compiled forward pass against its reference, with every instruction set of this machine."""

import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from native_batch import BatchCase, build_batch
from tolerances import assert_close

from llmopt_kernels.bf16_gemv.native import view_rows
from llmopt_kernels.native.library import INSTRUCTION_SETS, NativeLibrary, native_library
from llmopt_kernels.native.linear_weight import NativeWeight, multiply
from llmopt_kernels.native_step.native import CacheAddresses, NativeStep, StepProfile
from llmopt_kernels.native_step.parts import DecoderParts, LayerParts, NormPart
from llmopt_kernels.native_step.reference import forward_reference, logits_reference
from llmopt_kernels.native_step.structs import OPERATIONS
from llmopt_kernels.paged_attention import AttentionMetadata

VOCAB, LAYERS = 50, 2
MAX_ERROR = 2**-6  # of a row's length: what rounding to bfloat16 by a hair to the other side does


@dataclass(frozen=True)
class Shape:
    """Parts of a tiny decoder."""

    hidden: int = 64
    inner: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    activation: str = "silu"
    gated: bool = True
    layer_norm: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    bias: bool = False
    learned_positions: bool = False
    rotated: int = 16
    rope_scale: float = 1.0
    window: int | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float = 1.0
    split: bool = False


CASES = {
    "llama": Shape(),
    "gemma": Shape(
        activation="gelu_tanh",
        head_norms=True,
        branch_norms=True,
        window=5,
        attention_soft_cap=2.0,
        logit_soft_cap=1.5,
        embedding_scale=8.0,
    ),
    "opt": Shape(
        activation="relu",
        gated=False,
        layer_norm=True,
        bias=True,
        learned_positions=True,
        rotated=0,
    ),
    "gpt2": Shape(activation="gelu", gated=False, layer_norm=True, bias=True, rotated=0),
    "partial rotary": Shape(rotated=6, rope_scale=1.2, head_dim=24, kv_heads=1),
    "wide heads": Shape(head_dim=128, heads=4, kv_heads=4, rotated=128, split=True),
    "many queries per key": Shape(head_dim=32, heads=64, kv_heads=1, rotated=32),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    from llmopt.hardware.cache import kernels_directory

    found = native_library(kernels_directory())
    if found is None:
        pytest.skip("there are no compiled kernels here")
    return found


@pytest.fixture(params=INSTRUCTION_SETS)
def each_library(library: NativeLibrary, request: pytest.FixtureRequest) -> NativeLibrary:
    number = INSTRUCTION_SETS.index(request.param)
    if number > library.instruction_set:
        pytest.skip(f"this processor has no {request.param}")
    return NativeLibrary(library.handle, number)


def make_parts(shape: Shape, seed: int = 0) -> DecoderParts:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def norm(size: int) -> NormPart:
        gain = (1 + 0.2 * random(size)).bfloat16()
        return NormPart(gain, 1e-5, 0.1 * random(size) if shape.layer_norm else None)

    def linear(rows: int, columns: int) -> NativeWeight:
        bias = 0.1 * random(rows) if shape.bias else None
        return view_rows((random(rows, columns) / columns**0.5).bfloat16(), bias)

    def stacked(*rows: int, columns: int) -> list[NativeWeight]:
        if shape.split:
            return [linear(n, columns) for n in rows]
        return [linear(sum(rows), columns)]

    def layer(index: int) -> LayerParts:
        query_gain, key_gain = 1 + 0.5 * random(2, shape.head_dim)
        width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        inner = (shape.inner, shape.inner) if shape.gated else (shape.inner,)
        return LayerParts(
            input_norm=norm(shape.hidden),
            qkv=stacked(width, kv, kv, columns=shape.hidden),
            query_norm=NormPart(query_gain, 1e-6) if shape.head_norms else None,
            key_norm=NormPart(key_gain, 1e-6) if shape.head_norms else None,
            rope=0 if shape.rotated else None,
            window=shape.window if index % 2 == 0 else None,
            output=stacked(shape.hidden, columns=width),
            attention_branch_norm=norm(shape.hidden) if shape.branch_norms else None,
            post_norm=norm(shape.hidden),
            gate_up=stacked(*inner, columns=shape.hidden),
            down=stacked(shape.hidden, columns=shape.inner),
            mlp_branch_norm=norm(shape.hidden) if shape.branch_norms else None,
        )

    frequencies = 0.5 ** torch.arange(shape.rotated // 2).float()
    embedding = (random(VOCAB, shape.hidden) / shape.embedding_scale).bfloat16()
    return DecoderParts(
        embedding=embedding,
        positions=random(1200, shape.hidden).bfloat16() if shape.learned_positions else None,
        embedding_scale=shape.embedding_scale,
        ropes=[(frequencies, shape.rope_scale)] if shape.rotated else [],
        layers=[layer(index) for index in range(LAYERS)],
        final_norm=norm(shape.hidden),
        lm_head=[view_rows(embedding)],
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        activation=shape.activation,
        gated=shape.gated,
        attention_scale=shape.head_dim**-0.5,
        attention_soft_cap=shape.attention_soft_cap,
        logit_soft_cap=shape.logit_soft_cap,
    )


def make_caches(shape: Shape, num_blocks: int, block_size: int) -> list:
    """Caches full of what earlier tokens may have left."""
    generator = torch.Generator().manual_seed(1)
    size = (num_blocks, block_size, shape.kv_heads, shape.head_dim)

    def cache() -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16()

    return [(cache(), cache()) for _ in range(LAYERS)]


def copies(caches: list) -> list:
    return [(key.clone(), value.clone()) for key, value in caches]


def assert_rows_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Both [T, C]."""
    errors = (out.double() - expected).norm(dim=1) / expected.double().norm(dim=1)
    assert errors.max() < MAX_ERROR


def assert_same_step(library: NativeLibrary, shape: Shape, case: BatchCase) -> None:
    """Hidden states, logits and the caches afterwards."""
    parts, batch = make_parts(shape), build_batch(case, VOCAB)
    caches = make_caches(shape, batch.num_blocks, case.block_size) if case.cached else None
    expected_caches = None if caches is None else copies(caches)
    step = NativeStep(library, parts)
    addresses = None if caches is None else CacheAddresses(caches)
    hidden = step.forward(
        batch.token_ids, batch.positions, batch.metadata, addresses, num_threads=2
    )
    expected = forward_reference(
        parts, batch.token_ids, batch.positions, batch.metadata, expected_caches
    )
    assert hidden.dtype is torch.float32
    assert_rows_close(hidden, expected)
    logits = step.logits(hidden, num_threads=2)
    assert_close(
        logits,
        logits_reference(parts, hidden).double(),
        dtype=torch.bfloat16,
        magnitude=float(logits.std()),
    )
    for new, old in zip(caches or [], expected_caches or [], strict=True):
        for a, b in zip(new, old, strict=True):
            assert_rows_close(a.flatten(0, 1).flatten(1), b.flatten(0, 1).flatten(1))


MIXED = BatchCase(query_lens=(1, 7, 1, 3), seq_lens=(1, 9, 30, 17))


@pytest.mark.parametrize("name", CASES)
def test_the_step_is_its_reference(each_library, name):
    assert_same_step(each_library, CASES[name], MIXED)


@pytest.mark.parametrize(
    "case",
    [
        BatchCase(query_lens=(1,), seq_lens=(1,)),
        BatchCase(query_lens=(1,), seq_lens=(1100,)),  # three pieces
        BatchCase(query_lens=(5, 1), seq_lens=(512, 513)),
        BatchCase(query_lens=(130,), seq_lens=(130,)),  # several tiles and blocks of keys
        BatchCase(query_lens=(40, 90), seq_lens=(200, 333), block_size=7),
        BatchCase(query_lens=(9, 33), seq_lens=(9, 33), cached=False),
    ],
    ids=str,
)
def test_lengths(library, case):
    assert_same_step(library, CASES["llama"], case)


@pytest.mark.parametrize("query_lens", [(1, 1), (20, 150)])
def test_a_capped_cache_shows_sinks_and_a_window(library, query_lens):
    case = BatchCase(query_lens, seq_lens=(290, 150), max_window=70, num_sinks=3)
    assert_same_step(library, CASES["gemma"], case)


def test_what_is_hidden_may_be_anything(library):
    """Blocks that left the window hold numbers of others, or none at all."""
    shape = replace(CASES["llama"], window=6)
    case = BatchCase(query_lens=(2,), seq_lens=(40,), block_size=4)
    parts, batch = make_parts(shape), build_batch(case, VOCAB)
    parts = replace(parts, layers=[replace(layer, window=6) for layer in parts.layers])
    step, results = NativeStep(library, parts), []
    for garbage in (0.0, float("nan")):
        caches = make_caches(shape, batch.num_blocks, case.block_size)
        tables = batch.metadata.block_tables
        for key, value in caches:
            for cache in (key, value):
                cache[tables[0, :8].long()] = garbage
        results.append(
            step.forward(
                batch.token_ids, batch.positions, batch.metadata, CacheAddresses(caches), 1
            )
        )
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)


def test_threads_and_other_requests_change_nothing(library):
    shape = CASES["llama"]
    batch = build_batch(MIXED, VOCAB)
    step = NativeStep(library, make_parts(shape))
    caches = make_caches(shape, batch.num_blocks, MIXED.block_size)

    def run(num_threads: int) -> torch.Tensor:
        own = copies(caches)
        return step.forward(
            batch.token_ids, batch.positions, batch.metadata, CacheAddresses(own), num_threads
        )

    together = run(1)
    assert torch.equal(run(2), together)
    assert torch.equal(run(3), together)
    first = 1  # the rows of the second request
    alone = AttentionMetadata(
        query_lens=(7,),
        seq_lens=(9,),
        slot_mapping=batch.metadata.slot_mapping[first:8],
        block_tables=batch.metadata.block_tables[1:2],
        block_size=MIXED.block_size,
    )
    own = copies(caches)
    rows = step.forward(
        batch.token_ids[first:8], batch.positions[first:8], alone, CacheAddresses(own), 2
    )
    assert torch.equal(rows, together[first:8])


def test_a_number_that_is_none_reaches_the_logits(library):
    parts = make_parts(CASES["llama"])
    parts.embedding[3] = float("nan")
    case = BatchCase(query_lens=(2, 2), seq_lens=(2, 2))
    batch = build_batch(case, VOCAB)
    token_ids = torch.tensor([3, 1, 4, 5])
    caches = make_caches(CASES["llama"], batch.num_blocks, case.block_size)
    hidden = NativeStep(library, parts).forward(
        token_ids, batch.positions, batch.metadata, CacheAddresses(caches), num_threads=1
    )
    assert torch.isfinite(hidden).all(dim=1).tolist() == [False, False, True, True]


def test_tokens_outside_the_vocabulary_are_caught(library):
    batch = build_batch(BatchCase(query_lens=(1,), seq_lens=(1,)), VOCAB)
    step = NativeStep(library, make_parts(CASES["llama"]))
    caches = make_caches(CASES["llama"], batch.num_blocks, 16)
    addresses = CacheAddresses(caches)
    for bad in (-1, VOCAB):
        with pytest.raises(AssertionError, match="tables"):
            step.forward(torch.tensor([bad]), batch.positions, batch.metadata, addresses, 1)


def test_an_empty_batch_is_none(library):
    step = NativeStep(library, make_parts(CASES["llama"]))
    empty = torch.empty(0, dtype=torch.int64)
    assert step.forward(empty, empty, AttentionMetadata.dense(()), None, 1).shape == (0, 64)
    assert step.logits(torch.empty(0, 64), 1).shape == (0, VOCAB)


def test_the_addresses_of_caches_are_theirs_and_do_not_keep_them():
    caches = make_caches(CASES["llama"], 2, 16)
    addresses = CacheAddresses(caches)
    assert addresses.are_of(caches)
    assert addresses.are_of(tuple(caches))
    (key, value), *rest = caches
    for others in (rest, [(value, key), *rest], [*caches, (key, value)], copies(caches)):
        assert not addresses.are_of(others)
    seen = weakref.ref(key)
    del caches, key, value, rest, others
    assert seen() is None
    assert not addresses.are_of(make_caches(CASES["llama"], 2, 16))  # where those were, may be


def test_results_are_float32_whatever_torch_makes_by_default():
    """The compiled functions are left out: they would write behind the end of anything smaller."""
    functions = SimpleNamespace(
        llmopt_step_forward=lambda *_: 0,
        llmopt_step_logits=lambda *_: 0,
        llmopt_linear=lambda *_: 0,
    )
    nothing = NativeLibrary(functions, 0)
    parts, batch = make_parts(CASES["llama"]), build_batch(replace(MIXED, cached=False), VOCAB)
    step = NativeStep(nothing, parts)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            hidden = step.forward(batch.token_ids, batch.positions, batch.metadata, None, 1)
            logits = step.logits(hidden, 1)
            product = multiply(nothing, parts.lm_head[0], hidden, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    for made in (hidden, logits, product):
        assert made.dtype is torch.float32
        assert made.device.type == "cpu"


def test_the_profile_counts_every_operation(library):
    batch = build_batch(MIXED, VOCAB)
    step, profile = NativeStep(library, make_parts(CASES["llama"])), StepProfile()
    caches = make_caches(CASES["llama"], batch.num_blocks, MIXED.block_size)
    addresses = CacheAddresses(caches)
    hidden = step.forward(batch.token_ids, batch.positions, batch.metadata, addresses, 2, profile)
    assert profile.seconds["output head"] == 0
    step.logits(hidden, 2, profile)
    assert tuple(profile.seconds) == OPERATIONS
    assert all(seconds > 0 for seconds in profile.seconds.values())
