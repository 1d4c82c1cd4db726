"""A mixture of experts by grouped products, against the definition token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers import stacked_experts
from llmopt.layers.activation import GATED
from llmopt.layers.linear import DenseLinear, make_linear
from llmopt.layers.stacked_experts import stack_experts
from llmopt.layers.triton_linear import make_triton_linear
from llmopt.models.config import Experts
from llmopt.models.mlp import MLP, MixtureOfExperts
from llmopt_kernels.moe import route
from llmopt_kernels.moe.blocks import expert_blocks, max_blocks
from llmopt_kernels.moe.reference import mixture_reference
from llmopt_kernels.moe.triton import (
    DenseStack,
    candidates,
    combine_triton,
    expert_config,
    expert_matmul_triton,
    shape_class,
)

WIDTH, INNER = 96, 80


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stack experts under the interpreter, too."""
    monkeypatch.setattr(stacked_experts, "takes_packed", lambda dtype, _: dtype.itemsize == 2)


def randn(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    num_experts=st.integers(1, 9),
    share=st.floats(0, 1),
    block_size=st.sampled_from([1, 2, 16]),
    seed=st.integers(0, 999),
)
def test_every_pair_is_in_one_block_of_its_expert(tokens, num_experts, share, block_size, seed):
    num_chosen = 1 + round(share * (num_experts - 1))
    logits = 4 * randn(torch.device("cpu"), tokens, num_experts, seed=seed)
    weights, chosen = route(logits, num_chosen, normalize=True)
    blocks = expert_blocks(chosen, weights, num_experts, block_size)
    assert len(blocks.expert) == max_blocks(tokens * num_chosen, num_experts, block_size)
    seen: list[int] = []
    pairs: list[tuple[int, int]] = []
    for expert, first, end in zip(
        blocks.expert.tolist(), blocks.first.tolist(), blocks.end.tolist(), strict=True
    ):
        if expert == num_experts:
            continue
        members = range(first, min(first + block_size, end))
        assert len(members) >= 1
        seen += members
        pairs += [(int(blocks.tokens[p]), expert) for p in members]
    assert seen == list(range(tokens * num_chosen))
    assert sorted(pairs) == sorted((t, e) for t in range(tokens) for e in chosen[t].tolist())
    for token in range(tokens):
        expected = sorted(zip(chosen[token].tolist(), weights[token].tolist(), strict=True))
        positions = blocks.positions[token].tolist()
        assert [pairs[position] for position in positions] == [(token, e) for e, _ in expected]
        assert blocks.weights[token].tolist() == [weight for _, weight in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "num_chosen"), [(1, 4, 2), (7, 5, 1), (40, 3, 2), (20, 8, 8)]
)
def test_grouped_products(device, tokens, num_experts, num_chosen, dtype):
    x = randn(device, tokens, WIDTH).to(dtype)
    stack = DenseStack(randn(device, num_experts, 37, WIDTH, seed=1).to(dtype))
    logits = randn(device, tokens, num_experts, seed=2)
    if num_experts > num_chosen:
        logits[:, 0] = -100  # an expert that nobody chose
    weights, chosen = route(logits, num_chosen, normalize=False)
    config = expert_config(chosen.numel(), num_experts, stack)
    blocks = expert_blocks(chosen, weights, num_experts, config["BLOCK_T"])
    out = expert_matmul_triton(x, blocks, stack, config, gather=True)
    expected = torch.einsum("tk,eok->teo", x.double(), stack.weight.double())
    sorted_pairs = sorted((e, t) for t in range(tokens) for e in chosen[t].tolist())
    per_pair = torch.stack([expected[t, e] for e, t in sorted_pairs])
    assert_close(out, per_pair)
    gathered = x[[t for _, t in sorted_pairs]]
    again = expert_matmul_triton(gathered, blocks, stack, config, gather=False)
    assert torch.equal(again, out)
    mixed = combine_triton(out, blocks)
    assert_close(
        mixed,
        torch.stack(
            [(weights[t].double()[:, None] * expected[t, chosen[t]]).sum(0) for t in range(tokens)]
        ),
        num_terms=num_chosen,
        magnitude=WIDTH**0.5,
    )


def make_mixture(device: torch.device, spec: QuantSpec | None) -> MixtureOfExperts:
    """Six experts of two layers, dense or quantized."""

    def linear(rows: int, columns: int, seed: int) -> DenseLinear:
        generator = torch.Generator().manual_seed(seed)
        if spec is None:
            weight = torch.randn(rows, columns, generator=generator) / columns**0.5
            return make_linear([weight], [None], dtype=torch.bfloat16, device=device)
        codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
        groups = (rows, spec.num_groups(columns))
        zeros = torch.randint(0, 16, groups, generator=generator, dtype=torch.uint8)
        scales = torch.full(groups, 2.0**-6)
        stored = QuantizedWeight(codes, scales, None if spec.symmetric else zeros, None, spec)
        return make_triton_linear([stored], None, dtype=torch.bfloat16, device=device)

    experts = [
        MLP(linear(2 * INNER, WIDTH, 2 * e), linear(WIDTH, INNER, 2 * e + 1), GATED["silu"])
        for e in range(6)
    ]
    router = DenseLinear(randn(device, 6, WIDTH, seed=99).bfloat16(), None)
    return MixtureOfExperts(router, experts, Experts(count=6, per_token=2, normalized=True))


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    "spec", [None, QuantSpec(4, 16), QuantSpec(4, 16, symmetric=False)], ids=str
)
@pytest.mark.parametrize("tokens", [1, 11])
def test_stacked_experts_are_the_experts(device, tokens, spec):
    x = randn(device, tokens, WIDTH).bfloat16()
    mixture = make_mixture(device, spec)
    apart = mixture.forward(x)
    weight_bytes = mixture.weight_bytes_per_token
    mixture.stack()
    stacked = mixture.forward(x)
    assert not torch.equal(stacked, torch.zeros_like(stacked))
    logits = mixture.router(x)
    expected = mixture_reference(x, logits, 2, True, [e.forward for e in mixture.experts])
    assert_close(stacked, expected.double(), num_terms=WIDTH)
    assert_close(stacked, apart.double(), num_terms=WIDTH)
    assert torch.equal(stacked, mixture.forward(x))
    assert mixture.weight_bytes_per_token == weight_bytes
    words = [getattr(e.down.weight, "words", e.down.weight) for e in mixture.experts]
    assert len({w.untyped_storage().data_ptr() for w in words}) == 1, "views of one stack"


@pytest.mark.usefixtures("on_gpu")
def test_experts_that_are_not_alike_are_not_stacked():
    def stack(*layers: DenseLinear) -> object:
        return stack_experts(layers, layers, GATED["silu"])

    half = DenseLinear(torch.zeros(4, 4, dtype=torch.bfloat16), None)
    assert stack(half, half) is not None
    assert stack(half, DenseLinear(half.weight, torch.zeros(4))) is None
    assert stack(DenseLinear(torch.zeros(4, 4), None)) is None


def test_classes_go_by_the_tokens_of_an_expert():
    assert shape_class(3, 14336, 4096) == "t16-o16384-k4096-w16"
    for bits, block_ks in ((16, {64, 128}), (4, {128})):
        found = candidates(shape_class(3, 14336, 4096, bits))
        assert {config["BLOCK_K"] for config in found} == block_ks
        assert all("SPLIT_K" not in config for config in found)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_real_shapes(device, tokens):
    x = randn(device, tokens, 4096).bfloat16()
    stack = DenseStack(randn(device, 8, 1792, 4096, seed=1).bfloat16())
    weights, chosen = route(randn(device, tokens, 8, seed=2), 2, normalize=True)
    config = expert_config(chosen.numel(), 8, stack)
    blocks = expert_blocks(chosen, weights, 8, config["BLOCK_T"])
    out = expert_matmul_triton(x, blocks, stack, config, gather=True)
    experts = chosen.flatten().sort(stable=True).values
    expected = torch.empty(out.shape, dtype=torch.float64, device=device)
    for expert in range(8):
        rows = experts == expert
        product = x[blocks.tokens[rows].long()].double() @ stack.weight[expert].double().T
        expected[rows] = product
    assert_close(out, expected)
