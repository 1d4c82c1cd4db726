from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.engine.speculation.self_draft import first_layers, quantize_copy
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata

TOKENS = torch.randint(2, 128, (40,), generator=torch.Generator().manual_seed(0))


def run(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        metadata = AttentionMetadata.dense([40])
        return model.compute_logits(model.forward(TOKENS, torch.arange(40), metadata)).float()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text", "gpt2", "mixtral"])
def test_a_quantized_copy_is_near_and_more_bits_are_nearer(
    architecture: str, make_tiny_model: Callable[..., Path]
) -> None:
    model = load_model(make_tiny_model(architecture), dtype="float32")
    exact = run(model)
    errors = [(run(quantize_copy(model, bits)) - exact).std() / exact.std() for bits in (4, 8)]
    assert 0.001 < errors[1] < 0.05
    assert 2 * errors[1] < errors[0] < 0.7
    assert torch.equal(run(model), exact)


def test_a_quantized_copy_is_small_in_bfloat16(
    make_tiny_llama: Callable[..., Path], dense_kernel: str, int4_kernel: str, int8_kernel: str
) -> None:
    path = make_tiny_llama(hidden_size=128, intermediate_size=256)
    model = load_model(path, dtype="bfloat16")
    copy = quantize_copy(model, 4)
    assert copy.kernels == (int4_kernel, int8_kernel)
    assert copy.lm_head.kernel == int8_kernel
    assert copy.weight_bytes < 0.4 * model.weight_bytes
    assert quantize_copy(model, 8).kernels == (int8_kernel,)
    assert copy.embedding is model.embedding
    assert set(model.kernels) == {dense_kernel}


def test_layers_that_do_not_divide_into_groups_are_shared(
    make_tiny_llama: Callable[..., Path],
) -> None:
    model = load_model(make_tiny_llama(intermediate_size=72), dtype="float32")
    copy = quantize_copy(model, 4)
    assert copy.blocks[0].linears[3] is model.blocks[0].linears[3]
    assert copy.blocks[0].linears[0] is not model.blocks[0].linears[0]


def test_first_layers_are_those_of_the_model_with_its_head(tiny_model: Decoder) -> None:
    short = first_layers(tiny_model, 1)
    assert short.config.num_layers == len(short.config.layers) == 1
    assert short.blocks == tiny_model.blocks[:1]
    with torch.inference_mode():
        positions, metadata = torch.arange(40), AttentionMetadata.dense([40])
        hidden = tiny_model.embed(TOKENS, positions)
        hidden = tiny_model.blocks[0].forward(hidden, tiny_model.rotary(positions), metadata, None)
        assert torch.equal(run(short), tiny_model.compute_logits(hidden))


def test_more_layers_than_there_are_is_refused(tiny_model: Decoder) -> None:
    with pytest.raises(UsageError, match="a draft of 2 layers was asked for and the model has 2"):
        first_layers(tiny_model, 2)
