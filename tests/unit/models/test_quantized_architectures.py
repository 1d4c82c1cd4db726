"""Every architecture runs from quantized weights, and what cannot be quantized is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.weights import quantized_weights
from llmopt.layers.linear import DenseLinear
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata

MakeModel = Callable[..., Path]
Quantize = Callable[[Path, Path, str], Path]
EXPERTS = ("qwen3_moe", "mixtral")
DENSE = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "opt")
SIZES = {"moe_intermediate_size": 64, "initializer_range": 0.05, "init_std": 0.05}


@torch.inference_mode()
def logits(model: Decoder) -> torch.Tensor:
    ids = torch.arange(3, 40)
    metadata = AttentionMetadata.dense([len(ids)])
    return model.compute_logits(model.forward(ids, torch.arange(len(ids)), metadata)).float()


def error(found: Decoder, exact: Decoder) -> float:
    expected = logits(exact)
    return float((logits(found) - expected).norm() / expected.norm())


@pytest.mark.parametrize("scheme", ["rtn-w8g32", "nf4", "w8a16", "fp8", "rtn-w4g32"])
@pytest.mark.parametrize("model_type", [*DENSE, *EXPERTS])
def test_methods_without_data(
    make_tiny_model: MakeModel,
    quantize_tiny: Quantize,
    tmp_path: Path,
    model_type: str,
    scheme: str,
) -> None:
    source = make_tiny_model(model_type, **SIZES)
    out = quantize_tiny(source, tmp_path / "q", scheme)
    model, exact = load_model(out, dtype="float32"), load_model(source, dtype="float32")
    limit = 0.08 if scheme in ("rtn-w8g32", "w8a16") else 0.4
    assert 0 < error(model, exact) < limit
    reader = CheckpointReader(out)
    weights = quantized_weights(reader)
    assert weights is not None
    matrices = [name for name in reader.names() if name.endswith((".weight", ".qweight"))]
    blocks = [name for name in matrices if ".layers." in name and "norm" not in name]
    left = [name for name in blocks if weights.module_of(name) is None]
    assert all(name.endswith("gate.weight") for name in left)  # nothing but routers
    assert len(left) == (model.config.num_layers if model_type in EXPERTS else 0)


@pytest.mark.parametrize("scheme", ["gptq-w4g32", "awq-w4g32", "w8a8"])
@pytest.mark.parametrize("model_type", ["mistral", "smollm3", "gemma2", "phi3", "opt"])
def test_methods_with_data(
    make_tiny_model: MakeModel,
    quantize_tiny: Quantize,
    tmp_path: Path,
    model_type: str,
    scheme: str,
) -> None:
    source = make_tiny_model(model_type, **SIZES)
    if model_type == "opt" and not scheme.startswith("gptq"):
        with pytest.raises(QuantizationError, match="OPTForCausalLM does not have"):
            quantize_tiny(source, tmp_path / "q", scheme)
        return
    model = load_model(quantize_tiny(source, tmp_path / "q", scheme), dtype="float32")
    assert 0 < error(model, load_model(source, dtype="float32")) < 0.4


@pytest.mark.parametrize("scheme", ["gptq-w4g32", "awq-w4g32", "w8a8"])
def test_experts_have_no_calibrated_method(
    make_tiny_model: MakeModel, quantize_tiny: Quantize, tmp_path: Path, scheme: str
) -> None:
    with pytest.raises(QuantizationError, match="mixture of experts"):
        quantize_tiny(make_tiny_model("mixtral"), tmp_path / "q", scheme)
    assert not (tmp_path / "q").exists()


def test_transposed_matrices_are_not_quantized(
    make_tiny_model: MakeModel, quantize_tiny: Quantize, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match="transposed"):
        quantize_tiny(make_tiny_model("gpt2"), tmp_path / "q", "rtn-w4g32")


def test_the_router_stays_in_full_precision(
    make_tiny_model: MakeModel,
    quantize_tiny: Quantize,
    tmp_path: Path,
    dense_kernel: str,
    int4_kernel: str,
) -> None:
    source = make_tiny_model("qwen3_moe", **SIZES)
    model = load_model(quantize_tiny(source, tmp_path / "q", "rtn-w4g32"), dtype="bfloat16")
    for block in model.blocks:
        qkv, output, router, *experts = block.linears
        assert isinstance(router, DenseLinear)
        assert router.kernel == dense_kernel
        assert {layer.kernel for layer in (qkv, output, *experts)} == {int4_kernel}
        assert len(experts) == 2 * 8
