"""A sum and its norm together are bit for bit what the two are one after the other."""

from collections.abc import Callable

import pytest
import torch

from llmopt.layers.norm import LayerNorm, RMSNorm, add_norm

Norm = Callable[[torch.Tensor], torch.Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.fixture(params=["gain", "gain around 1", "layer norm", "function"])
def make_norm(request: pytest.FixtureRequest) -> Callable[[torch.dtype], Norm]:
    def make(dtype: torch.dtype) -> Norm:
        weight = randn(33, seed=2, dtype=dtype)
        norms: dict[str, Norm] = {
            "gain": RMSNorm(weight, 1e-5),
            "gain around 1": RMSNorm(weight, 1e-5, offset=1.0),
            "layer norm": LayerNorm(weight, randn(33, seed=3, dtype=dtype), 1e-5),
            "function": lambda x: 2 * x,
        }
        return norms[request.param]

    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norm_is_a_sum_and_its_norm(
    make_norm: Callable[[torch.dtype], Norm], dtype: torch.dtype
) -> None:
    norm = make_norm(dtype)
    hidden = randn(5, 33, seed=0, dtype=dtype)
    branch = 3 * randn(5, 33, seed=1, dtype=dtype)
    before = hidden.clone(), branch.clone()
    normed, total = add_norm(norm, hidden, branch)
    assert normed.dtype == total.dtype == dtype
    assert torch.equal(total, before[0] + before[1])
    assert torch.equal(normed, norm(before[0] + before[1]))
    assert torch.equal(hidden, before[0]), "a recorded graph reads its inputs again"
    assert torch.equal(branch, before[1])


def test_without_a_branch_there_is_nothing_to_add(
    make_norm: Callable[[torch.dtype], Norm],
) -> None:
    norm, hidden = make_norm(torch.float32), randn(5, 33, seed=0, dtype=torch.float32)
    normed, total = add_norm(norm, hidden, None)
    assert total is hidden
    assert torch.equal(normed, norm(hidden))
