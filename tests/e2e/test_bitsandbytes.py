"""Our NF4, FP4 and INT8 weights in bitsandbytes itself, and through transformers; and theirs here.

Skipped where a library is absent; they come with
`pip install torch transformers accelerate bitsandbytes` and what constraints.txt names for tests.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.errors import CheckpointError
from llmopt.formats.bitsandbytes import CodebookFormat, Int8RowsFormat
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.codebook import CodebookWeight, NestedAbsmax
from llmopt.formats.quantized import StoredWeight
from llmopt.formats.weights import WeightFormat, quantized_weights
from llmopt.models.loader import load_model
from llmopt.quantize.codebook import quantize_codebook
from llmopt.quantize.int8 import quantize_int8
from llmopt_kernels.paged_attention import AttentionMetadata

MISSING = [
    name
    for name in ("bitsandbytes", "transformers", "accelerate")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

CODEBOOK_FORMATS = [
    CodebookFormat(kind, double_quant, dtype="float32")
    for kind in ("nf4", "fp4")
    for double_quant in (False, True)
]
FORMATS: list[WeightFormat] = [*CODEBOOK_FORMATS, Int8RowsFormat()]
EXACT = 1e-5  # relative, of logits, where only the order of sums differs
INT8_ACTIVATIONS = 5e-2  # LLM.int8 rounds each layer's inputs to 8 bits


def random_matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def quantize(weight: torch.Tensor, weight_format: WeightFormat) -> StoredWeight:
    if isinstance(weight_format, CodebookFormat):
        double_quant = weight_format.double_quant
        return quantize_codebook(weight, weight_format.kind, double_quant=double_quant)
    return quantize_int8(weight)


def in_plain_torch(name: str, *arguments: object) -> Any:
    """Run an operator of bitsandbytes in its implementation for devices in general.

    Its code for CPUs differs from what it does elsewhere: `dequantize_4bit`, with AVX-512, takes
    wrong scales where a row is not a whole number of blocks, and `quantize_blockwise` rounds its
    input to steps of 2^-15 and so takes some codes that are not the nearest (seen in 0.50.2).
    """
    operator = getattr(torch.ops.bitsandbytes, name).default
    with torch.compiler.set_stance("force_eager"):
        return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


def their_dequantized(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """A weight as bitsandbytes dequantizes it, in each way that is right for its shape."""
    from bitsandbytes import functional

    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    dense = in_plain_torch(
        "dequantize_4bit",
        *(packed, absmax, state.blocksize, state.quant_type, state.shape, state.dtype),
    )
    if state.shape[1] % state.blocksize == 0:
        assert torch.equal(functional.dequantize_4bit(packed, state), dense)
    return dense


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [32, 64, 128, 4096])
@pytest.mark.parametrize("shape", [(96, 70), (64, 64), (3, 50), (300, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_scales_and_weights_are_theirs(kind, block_size, shape, dtype):
    from bitsandbytes import functional

    weight = random_matrix(*shape, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    theirs, state = functional.quantize_4bit(weight, blocksize=block_size, quant_type=kind)
    ours = quantize_codebook(weight, kind, block_size=block_size)
    tensors = CodebookFormat(kind, dtype=name).pack("m", ours)
    assert torch.equal(tensors.pop("m.weight"), theirs)
    for part, tensor in state.as_dict(packed=True).items():
        assert torch.equal(tensors.pop(f"m.weight.{part}"), tensor), part
    assert not tensors
    assert torch.equal(ours.dequantize(dtype), their_dequantized(theirs, state))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_values_on_the_border_of_two_codes_and_zeros_are_coded_alike(kind):
    from bitsandbytes import functional

    values = functional.get_4bit_type(kind, device="cpu").unique()
    halves = (values[:-1] + values[1:]) / 2
    above = torch.nextafter(halves, torch.ones(()))
    below = torch.nextafter(halves, -torch.ones(()))
    ends = torch.tensor([1.0, -1.0, 0.0, -0.0, 1e-9, -1e-9])
    weight = torch.cat([ends, halves, above, below, torch.zeros(128 - 6 - 3 * len(halves))])[None]
    theirs, state = functional.quantize_4bit(weight, blocksize=128, quant_type=kind)
    ours = quantize_codebook(weight, kind, block_size=128)
    assert torch.equal(CodebookFormat(kind).pack("m", ours)["m.weight"], theirs)
    assert torch.equal(ours.absmax, state.absmax)


@pytest.mark.parametrize("shape", [(96, 70), (64, 64), (300, 1000)])
def test_double_quantized_scales_are_theirs(shape):
    from bitsandbytes import functional

    weight = random_matrix(*shape)
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours = quantize_codebook(weight, "nf4", double_quant=True)
    nested = ours.stored_absmax
    assert isinstance(nested, NestedAbsmax)
    assert nested.offset == state.offset.item()
    assert torch.equal(nested.table, state.state2.code)
    assert torch.equal(nested.absmax, state.state2.absmax)
    plain = quantize_codebook(weight, "nf4").absmax
    centred = plain - state.offset
    codes, absmax = in_plain_torch("quantize_blockwise", centred, nested.table, 256)
    assert torch.equal(nested.codes, codes)
    assert torch.equal(nested.absmax, absmax)
    native = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    excess = (native - plain).abs() - (ours.absmax - plain).abs()
    assert ((excess > -1e-6) & (excess < nested.absmax.max() * 2**-14)).all()
    tensors = CodebookFormat("nf4", True, "float32").pack("m", ours)
    assert torch.equal(tensors["m.weight"], theirs)
    their_parts = state.as_dict(packed=True)
    assert {f"m.weight.{part}" for part in their_parts} | {"m.weight"} == set(tensors)
    name = "quant_state.bitsandbytes__nf4"
    assert torch.equal(tensors[f"m.weight.{name}"], their_parts[name])


@pytest.mark.parametrize("weight_format", CODEBOOK_FORMATS)
@pytest.mark.parametrize("shape", [(96, 70), (64, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_dequantizes_our_tensors_to_our_weight(weight_format, shape, dtype):
    from bitsandbytes import functional

    weight = quantize(random_matrix(*shape), weight_format)
    name = str(dtype).removeprefix("torch.")
    written = CodebookFormat(weight_format.kind, weight_format.double_quant, name)
    tensors = written.pack("m", weight)
    packed = tensors.pop("m.weight")
    parts = {name.removeprefix("m.weight."): tensor for name, tensor in tensors.items()}
    state = functional.QuantState.from_dict(parts, torch.device("cpu"))
    assert torch.equal(their_dequantized(packed, state), weight.dequantize(dtype))


def test_int8_codes_are_theirs_up_to_the_rounding_of_the_scale():
    from bitsandbytes import functional

    weight = random_matrix(96, 70)
    theirs, scb, _ = functional.int8_vectorwise_quant(weight.half())
    tensors = Int8RowsFormat().pack("m", quantize_int8(weight))
    assert ((tensors["m.SCB"] - scb).abs() <= scb * 2**-8).all()
    assert (tensors["m.weight"].int() - theirs.int()).abs().max() <= 1
    restored = functional.int8_vectorwise_dequant(tensors["m.weight"], tensors["m.SCB"])
    assert torch.equal(restored, quantize_int8(weight).dequantize())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_our_config_is_that_of_transformers(weight_format):
    from transformers import BitsAndBytesConfig

    ours = weight_format.config("nf4")
    theirs = BitsAndBytesConfig.from_dict(ours).to_dict()
    public = {key: value for key, value in theirs.items() if not key.startswith("_")}
    del ours["meta"]
    assert public == ours


@pytest.fixture(scope="module")
def model_path(make_tiny_llama) -> Path:
    """A model whose rows are whole blocks of 64, so that bitsandbytes is right on every CPU."""
    return make_tiny_llama(intermediate_size=128)


def write(source: Path, path: Path, weight_format: WeightFormat) -> None:
    """Every projection of a model quantized, the rest as it is."""
    reader = CheckpointReader(source)
    with CheckpointWriter(path) as writer:
        for name in reader.names():
            module, tensor = name.removesuffix(".weight"), reader.tensor(name)
            if not module.endswith("_proj"):
                writer.add(name, tensor)
                continue
            for part, packed in weight_format.pack(module, quantize(tensor, weight_format)).items():
                writer.add(part, packed)
        config = weight_format.config("nf4")
        writer.set_config({**reader.config, "quantization_config": config})


def their_weight(module: torch.nn.Module) -> torch.Tensor:
    """A layer's weight as bitsandbytes dequantizes it."""
    from bitsandbytes import functional

    weight: Any = module.weight
    if weight.dtype == torch.int8:
        return functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return their_dequantized(weight.data, weight.quant_state)


def load_theirs(path: Path, **options: object) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)


def load_and_quantize(path: Path, weight_format: WeightFormat) -> Any:
    """With bitsandbytes, from a full-precision checkpoint."""
    from transformers import BitsAndBytesConfig

    config = weight_format.config("nf4")
    del config["meta"]
    return load_theirs(path, quantization_config=BitsAndBytesConfig.from_dict(config))


@torch.inference_mode()
def assert_same_logits(model: Any, path: Path, tolerance: float) -> None:
    """Runs `model` in training mode: in evaluation mode its first pass on some CPUs repacks the
    weights in bfloat16.
    """
    ids = torch.arange(60)
    ours = load_model(path, dtype="float32")
    hidden = ours.forward(ids, torch.arange(60), AttentionMetadata.dense([60]))
    expected = ours.compute_logits(hidden)
    theirs = model.train()(ids[None]).logits[0]
    assert (theirs - expected).norm() / expected.norm() < tolerance


def tolerance_of(weight_format: WeightFormat) -> float:
    return EXACT if isinstance(weight_format, CodebookFormat) else INT8_ACTIVATIONS


@pytest.mark.parametrize("weight_format", FORMATS)
def test_transformers_reads_our_checkpoint(model_path, tmp_path, weight_format):
    write(model_path, tmp_path / "out", weight_format)
    model = load_theirs(tmp_path / "out")
    weights = quantized_weights(CheckpointReader(tmp_path / "out"))
    assert weights is not None
    modules = [name for name, _ in model.named_modules() if name in weights]
    assert len(modules) == 7 * model.config.num_hidden_layers
    for name in modules:
        theirs = their_weight(model.get_submodule(name))
        assert torch.equal(theirs, weights.weight(name).dequantize()), name
    assert_same_logits(model, tmp_path / "out", tolerance_of(weight_format))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_we_read_what_transformers_saves_before_a_forward_pass(model_path, tmp_path, weight_format):
    model = load_and_quantize(model_path, weight_format)
    model.save_pretrained(tmp_path / "theirs")
    weights = quantized_weights(CheckpointReader(tmp_path / "theirs"))
    source = CheckpointReader(model_path)
    assert weights is not None
    assert weights.scheme == weight_format.label("nf4")
    modules = [name for name, _ in model.named_modules() if name in weights]
    assert len(modules) == 7 * model.config.num_hidden_layers
    for name in modules:
        theirs, read = their_weight(model.get_submodule(name)), weights.weight(name)
        ours = quantize(source.tensor(f"{name}.weight"), weight_format)
        if isinstance(read, CodebookWeight) and isinstance(ours, CodebookWeight):
            assert torch.equal(read.dequantize(), theirs), name
            assert torch.equal(read.codes, ours.codes), name
        else:
            torch.testing.assert_close(read.dequantize(), theirs, rtol=2**-23, atol=0)
    assert_same_logits(model, tmp_path / "theirs", tolerance_of(weight_format))


@torch.inference_mode()
def test_a_file_that_the_library_spoils_in_a_forward_pass_is_refused(model_path, tmp_path):
    """bitsandbytes 0.50 on a CPU with AVX512-BF16 saves repacked scales, of a layer without double
    quantization, after a pass in evaluation mode.
    """
    from bitsandbytes import functional

    if not functional.has_avx512bf16():
        pytest.skip("the CPU has no AVX512-BF16: bitsandbytes does not repack here")
    model = load_and_quantize(model_path, CodebookFormat("nf4", dtype="float32"))
    model.eval()(torch.arange(60)[None])
    model.save_pretrained(tmp_path / "spoilt")
    weights = quantized_weights(CheckpointReader(tmp_path / "spoilt"))
    assert weights is not None
    with pytest.raises(CheckpointError, match="saved this file after a forward pass"):
        weights.weight("model.layers.0.mlp.down_proj")
