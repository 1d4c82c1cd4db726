"""Our GPTQ and AWQ checkpoints in the ecosystem's own reader: transformers through gptqmodel.

gptqmodel is heavy and pins its dependencies, so this runs in an environment of its own, made by
`pip install torch==2.13.0 gptqmodel optimum accelerate` and what constraints.txt names for tests.
"""

from pathlib import Path

import pytest
import torch

from llmopt.formats.awq import AwqFormat
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.weights import quantized_weights
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


@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("gptq", 4), ("gptq", 8)])
def test_transformers_computes_our_logits_of_asymmetric_weights(
    make_tiny_llama, tmp_path, method, bits
):
    source = make_tiny_llama(hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(0))
    calibration = CalibrationData(tokens, "random", "", 0) if method == "gptq" else None
    spec = QuantSpec(bits, 32, symmetric=False)
    quantize_checkpoint(source, tmp_path / "v2", QuantizeOptions(method, spec, calibration))
    assert_same_logits(tmp_path / "v2", torch.arange(60), bits)


@torch.inference_mode()
def assert_awq_reads_alike(path: Path, ids: torch.Tensor, backend: str) -> None:
    """Weights bit for bit, and logits up to the 16 bits that the reader's kernels compute in."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from transformers import AutoModelForCausalLM, AwqConfig

    config = AwqConfig(backend=backend)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map="cpu", quantization_config=config
    )
    weights = quantized_weights(CheckpointReader(path))
    assert weights is not None
    linears = {name: m for name, m in model.named_modules() if hasattr(m, "qzeros")}
    assert len(linears) == 7 * model.config.num_hidden_layers
    for name, linear in linears.items() if backend == "torch_awq" else ():
        group_size = linear.in_features // linear.scales.shape[0]
        theirs = dequantize_gemm(
            linear.qweight, linear.qzeros, linear.scales.float(), 4, group_size
        )
        assert torch.equal(theirs.T, weights.weight(name).dequantize())
    theirs = model(ids[None]).logits[0].float()
    ours = our_logits(path, ids)
    assert (theirs - ours).norm() / ours.norm() < KERNEL_TOLERANCE


def test_we_read_what_gptqmodel_packs_as_awq():
    from gptqmodel.quantization.awq.utils.packing_utils import pack_awq

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (96, 64), generator=generator)
    zeros = torch.randint(0, 16, (96, 2), generator=generator)
    qweight, qzeros = pack_awq(codes.T.int(), zeros.T.int(), 4)
    scales = torch.rand(96, 2, generator=generator).half()
    tensors = {"m.qweight": qweight, "m.qzeros": qzeros, "m.scales": scales.T}
    weight = AwqFormat(QuantSpec(4, 32, symmetric=False)).unpack("m", tensors.__getitem__)
    assert torch.equal(weight.codes, codes.byte())
    assert weight.zeros is not None
    assert torch.equal(weight.zeros, zeros.byte())
    assert torch.equal(weight.scales, scales)


@pytest.mark.parametrize("backend", ["torch_awq", "auto"])
@pytest.mark.parametrize(("method", "symmetric"), [("rtn", False), ("gptq", False), ("gptq", True)])
def test_transformers_reads_our_awq(make_tiny_llama, tmp_path, method, symmetric, backend):
    source = make_tiny_llama(hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(0))
    calibration = CalibrationData(tokens, "random", "", 0) if method == "gptq" else None
    options = QuantizeOptions(method, QuantSpec(4, 32, symmetric), calibration, format="awq")
    quantize_checkpoint(source, tmp_path / "awq", options)
    assert_awq_reads_alike(tmp_path / "awq", torch.arange(60), backend)


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


@pytest.mark.real_model
@pytest.mark.parametrize("backend", ["torch_awq", "auto"])
def test_transformers_reads_our_awq_of_the_default_model(default_model, tmp_path, backend):
    from llmopt.models.tokenizer import load_tokenizer

    options = QuantizeOptions("rtn", QuantSpec(4, 64, symmetric=False), format="awq")
    quantize_checkpoint(default_model, tmp_path / "awq", options)
    tokenizer = load_tokenizer(default_model)
    ids = torch.tensor(tokenizer.encode("The history of the printing press begins in Mainz."))
    assert_awq_reads_alike(tmp_path / "awq", ids, backend)
