"""The product with bfloat16 rows: every instruction set against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_case import EVERY_SET, libraries, library_of

from llmopt_kernels.bf16_gemv.native import takes_rows, view_rows
from llmopt_kernels.bf16_gemv.reference import bf16_gemv_reference
from llmopt_kernels.native.linear_weight import multiply


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(torch.bfloat16)


@pytest.mark.parametrize("number", EVERY_SET)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 12).map(lambda n: 32 * n),
    tokens=st.integers(1, 19),
    seed=st.integers(0, 99),
)
def test_every_shape_equals_the_reference(number, rows, columns, tokens, seed):
    library = library_of(number)
    matrix = random_matrix(rows, columns, seed)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed + 1))
    expected = bf16_gemv_reference(x, matrix)
    terms = bf16_gemv_reference(x.abs(), matrix.abs())
    out = multiply(library, view_rows(matrix), x, 1)
    assert out.shape == expected.shape
    assert ((out - expected).abs() <= 1e-5 * terms).all()


@pytest.mark.parametrize("number", EVERY_SET)
def test_columns_and_rows_are_told_apart(number):
    library = library_of(number)
    matrix = torch.eye(64, dtype=torch.bfloat16)[:50] * 3
    x = torch.arange(1.0, 65).repeat(5, 1) + 64 * torch.arange(5).unsqueeze(1)
    x = x.to(torch.bfloat16)
    assert torch.equal(multiply(library, view_rows(matrix), x, 1), x[:, :50] * 3)


@pytest.mark.parametrize("number", EVERY_SET)
def test_bias_is_added_before_the_output_is_rounded(number):
    library = library_of(number)
    matrix, bias = random_matrix(21, 64, 0), torch.randn(21)
    x = torch.randn(6, 64).to(torch.bfloat16)
    plain = multiply(library, view_rows(matrix), x.float(), 1)
    out = multiply(library, view_rows(matrix, bias), x, 1)
    assert torch.equal(out, (plain + bias).to(torch.bfloat16))


def test_the_number_of_threads_and_of_tokens_changes_little_and_threads_nothing():
    library, matrix = libraries()[-1], random_matrix(90, 512, 1)
    x = torch.randn(11, 512)
    weight = view_rows(matrix)
    together = multiply(library, weight, x, 1)
    alone = torch.cat([multiply(library, weight, row.unsqueeze(0), 1) for row in x])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-4)
    for threads in (2, 3):
        assert torch.equal(multiply(library, weight, x, threads), together)


def test_the_matrix_is_used_where_it_is():
    matrix = random_matrix(32, 64, 2)
    assert view_rows(matrix).tensors["data"].data_ptr() == matrix.data_ptr()
    assert view_rows(matrix).num_bytes == 32 * 64 * 2


def test_only_contiguous_bfloat16_of_whole_vectors_is_taken():
    assert takes_rows(random_matrix(3, 64, 0))
    assert not takes_rows(random_matrix(3, 48, 0))
    assert not takes_rows(random_matrix(64, 64, 0).T)
    assert not takes_rows(torch.zeros(3, 64))
