"""A model of random weights is as large as the real one, and computes finite numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.errors import ModelError, QuantizationError, UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.dummy import make_dummy_model, quantize_of, read_config
from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata

MakeModel = Callable[..., Path]
WHOLE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "ffn_dim": 128}


@torch.inference_mode()
def logits(model: Decoder) -> torch.Tensor:
    ids = torch.arange(20)
    return model.compute_logits(model.forward(ids, ids, AttentionMetadata.dense([20])))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "opt", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("scheme", [None, "w4g32"])
def test_any_config_gives_finite_logits_that_differ(
    make_tiny_model: MakeModel,
    tmp_path: Path,
    model_type: str,
    scheme: str | None,
    int4_kernel: str,
) -> None:
    config = json.loads((make_tiny_model(model_type) / "config.json").read_text())
    file = tmp_path / "config.json"  # no weights beside it
    file.write_text(json.dumps(config))
    model = make_dummy_model(file, dtype="bfloat16", scheme=scheme)
    found = logits(model).float()
    assert torch.isfinite(found).all()
    assert found.std() > 0.01
    assert model.dtype == torch.bfloat16
    is_packed = any(int4_kernel in kernel for kernel in model.kernels)
    assert is_packed == (scheme is not None)


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        ("rtn-w4g32", "w4g32"),
        ("rtn-w4g32-asym", "rtn-w4g32-asym"),
        ("rtn-w8g32", "gptq-w8g32"),
        ("nf4", "nf4"),
        ("int8", "int8"),
        ("fp8", "fp8"),
        ("w8a16", "w8a16"),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_it_is_as_large_as_the_quantized_model(
    make_tiny_model: MakeModel,
    quantize_tiny: Callable[[Path, Path, str], Path],
    tmp_path: Path,
    model_type: str,
    method: str,
    scheme: str,
) -> None:
    path = quantize_tiny(make_tiny_model(model_type, **WHOLE), tmp_path / "q", method)
    real = load_model(path, dtype="bfloat16")
    dummy = make_dummy_model(path, dtype="bfloat16", scheme=scheme)
    assert dummy.weight_bytes == real.weight_bytes
    assert dummy.weight_bytes_per_token == real.weight_bytes_per_token
    assert dummy.kernels == real.kernels


def test_weights_depend_on_the_seed_and_on_nothing_else(tiny_llama: Path) -> None:
    first, second = make_dummy_model(tiny_llama), make_dummy_model(tiny_llama)
    assert torch.equal(logits(first), logits(second))
    assert not torch.equal(logits(first), logits(make_dummy_model(tiny_llama, seed=1)))
    assert not torch.equal(logits(first), logits(load_model(tiny_llama)))


@pytest.mark.parametrize("scheme", ["w4g32", "w8", "w2g16-asym", "w8a8", "fp8", "nf4", "fp4"])
def test_weights_have_the_usual_spread(scheme: str) -> None:
    weight = quantize_of(scheme)((256, 128), torch.Generator().manual_seed(0)).dequantize()
    assert weight.std() == pytest.approx(0.02, rel=0.1)


def test_the_quantization_of_the_config_is_left_out(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quantization_config" not in read_config(tmp_path)


def test_what_cannot_be_made_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gguf-q4_k_m"):
        make_dummy_model(tiny_llama, scheme="gguf-q4_k_m")
    with pytest.raises(QuantizationError, match="do not divide"):
        make_dummy_model(tiny_llama, scheme="w4g48")
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(ModelError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        make_dummy_model(tmp_path)
