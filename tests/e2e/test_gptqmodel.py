"""Our GPTQ checkpoints in the ecosystem's own reader: transformers through gptqmodel.

gptqmodel is heavy and pins its dependencies, so this runs in an environment of its own, made by
`pip install torch==2.13.0 gptqmodel optimum accelerate` and what constraints.txt names for tests.
"""

from pathlib import Path

import pytest
import torch

from llmopt.formats.quantized import QuantSpec
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt_kernels.paged_attention import AttentionMetadata

pytestmark = pytest.mark.gptqmodel

TOLERANCE = 1e-2  # largest difference of a logit, in float32
KERNEL_TOLERANCE = 2e-2  # relative, for kernels that compute in 16 bits


@torch.inference_mode()
def our_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(path, dtype="float32")
    hidden = model.forward(ids, torch.arange(len(ids)), AttentionMetadata.dense([len(ids)]))
    return model.compute_logits(hidden)


@torch.inference_mode()
def their_logits(path: Path, ids: torch.Tensor, bits: int, backend: str) -> torch.Tensor:
    """Logits of transformers; backend "torch" dequantizes and multiplies in float32."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        device_map="cpu",
        quantization_config=GPTQConfig(bits=bits, backend=backend),
    )
    linears = [module for module in model.modules() if hasattr(module, "qzeros")]
    assert all("gptqmodel" in type(module).__module__ for module in linears)
    if backend == "torch":
        assert len(linears) == 7 * model.config.num_hidden_layers
        for module in linears:  # its product of code and scale has the scale's dtype
            module.scales = module.scales.float()
    logits: torch.Tensor = model(ids[None]).logits[0].float()
    return logits


def assert_same_logits(path: Path, ids: torch.Tensor, bits: int) -> None:
    ours = our_logits(path, ids)
    exact = their_logits(path, ids, bits, "torch")
    assert (exact - ours).abs().max() < TOLERANCE
    fast = their_logits(path, ids, bits, "auto")
    assert (fast - ours).norm() / ours.norm() < KERNEL_TOLERANCE


@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("gptq", 4), ("gptq", 8)])
def test_transformers_computes_our_logits(make_tiny_llama, tmp_path, method, bits):
    source = make_tiny_llama(hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(0))
    calibration = CalibrationData(tokens, "random", "", 0) if method == "gptq" else None
    options = QuantizeOptions(method, QuantSpec(bits, 32), calibration)
    quantize_checkpoint(source, tmp_path / "quantized", options)
    ids = torch.arange(60)
    assert_same_logits(tmp_path / "quantized", ids, bits)


@pytest.mark.real_model
@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_computes_our_logits_on_the_default_model(default_model, tmp_path, bits):
    from llmopt.models.tokenizer import load_tokenizer
    from llmopt.quantize.calibration import load_calibration

    tokenizer = load_tokenizer(default_model)
    calibration = load_calibration(tokenizer, num_samples=2, sample_tokens=256)
    options = QuantizeOptions("gptq", QuantSpec(bits, 64), calibration)
    quantize_checkpoint(default_model, tmp_path / "quantized", options)
    ids = torch.tensor(tokenizer.encode("The history of the printing press begins in Mainz."))
    assert_same_logits(tmp_path / "quantized", ids, bits)
