"""A mixture of experts against its reference, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.moe import mix_experts, route
from llmopt_kernels.moe.reference import mixture_reference

WIDTH = 6


def make_experts(count: int, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, WIDTH, WIDTH, generator=generator)
    return [lambda x, m=matrix: (x.float() @ m).tanh().to(x.dtype) for matrix in matrices]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 12),
    count=st.integers(1, 9),
    share=st.floats(0, 1),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_mixture_equals_its_reference(tokens, count, share, normalize, seed):
    chosen = 1 + round(share * (count - 1))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, WIDTH, generator=generator)
    logits = 3 * torch.randn(tokens, count, generator=generator)
    experts = make_experts(count, seed)
    weights, ids = route(logits, chosen, normalize)
    assert weights.shape == ids.shape == (tokens, chosen)
    out = mix_experts(x, weights, ids, experts)
    expected = mixture_reference(x, logits, chosen, normalize, experts)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_experts_that_nobody_chose_are_not_computed():
    computed: list[tuple[int, int]] = []

    def expert(index: int):
        def run(x: torch.Tensor) -> torch.Tensor:
            computed.append((index, len(x)))
            return x

        return run

    ids = torch.tensor([[3, 1], [1, 3], [1, 0]])
    x = torch.arange(18.0).view(3, WIDTH)
    weights = torch.full((3, 2), 0.5)
    out = mix_experts(x, weights, ids, [expert(i) for i in range(5)])
    assert computed == [(0, 1), (1, 3), (3, 2)]
    assert torch.equal(out, x)


def test_a_token_gets_the_same_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, WIDTH, generator=generator).bfloat16()
    weights, ids = route(torch.randn(20, 8, generator=generator), 3, normalize=False)
    experts = make_experts(8, seed=1)
    together = mix_experts(x, weights, ids, experts)
    for token in (slice(i, i + 1) for i in range(20)):
        alone = mix_experts(x[token], weights[token], ids[token], experts)
        torch.testing.assert_close(together[token], alone, rtol=1e-2, atol=1e-3)
    assert together.dtype == torch.bfloat16


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_of_a_token(normalize):
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    weights, ids = route(logits.bfloat16(), 2, normalize)
    probabilities = logits.softmax(dim=-1)[0, [1, 2]]
    assert ids.tolist() == [[1, 2]]
    assert weights.dtype == torch.float32
    expected = probabilities / probabilities.sum() if normalize else probabilities
    torch.testing.assert_close(weights[0], expected)
