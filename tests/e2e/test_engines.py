"""The real engines of others on a tiny model, and what our runtime makes of their files.

Each runs where its environment is found: made by `llmopt backend install NAME`, or named by
LLMOPT_ENVIRONMENT_NAME (such as LLMOPT_ENVIRONMENT_GPTQMODEL=/path/to/bin/python).
"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import find_installation
from llmopt.errors import BackendError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.engines.catalogue import find_engine
from llmopt.quantize.engines.request import EngineRequest
from llmopt.quantize.engines.run import quantize_with_engine
from llmopt_kernels.paged_attention import AttentionMetadata

pytestmark = pytest.mark.engines

VOCABULARY = 288
W4, W4_ASYM = QuantSpec(4, 32), QuantSpec(4, 32, symmetric=False)
# Largest relative difference of the logits: what rounding random weights to so many bits does.
FOUR_BITS, FP8, EIGHT_BITS = 0.5, 0.25, 0.08


def require(engine: str) -> None:
    environment = find_environment(find_engine(engine).environment)
    if find_installation(environment).python is None:
        pytest.skip(
            f"no environment: set {environment.override_variable} or "
            f"run `llmopt backend install {environment.name}`"
        )


@pytest.fixture(scope="module")
def source(make_tiny_llama) -> Path:
    """A tiny Llama with a tokenizer of bytes, in bfloat16 as real ones are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = make_tiny_llama(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        initializer_range=0.1,
        dtype="bfloat16",
    )
    letters = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def calibration() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (16, 64), generator=generator)
    return CalibrationData(tokens, "random", "", 0)


@torch.inference_mode()
def logits(path: Path) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (60,), generator=torch.Generator().manual_seed(5))
    model = load_model(path, dtype="float32")
    hidden = model.forward(ids, torch.arange(len(ids)), AttentionMetadata.dense([len(ids)]))
    return model.compute_logits(hidden)


@pytest.mark.parametrize(
    ("engine", "method", "spec", "double_quant", "bound"),
    [
        ("gptqmodel", "gptq", W4, False, FOUR_BITS),
        ("gptqmodel", "gptq", W4_ASYM, False, FOUR_BITS),
        ("gptqmodel", "awq", W4_ASYM, False, FOUR_BITS),
        ("bitsandbytes", "nf4", None, False, FOUR_BITS),
        ("bitsandbytes", "nf4", None, True, FOUR_BITS),
        ("bitsandbytes", "fp4", None, False, FOUR_BITS),
        ("bitsandbytes", "int8", None, False, EIGHT_BITS),
        ("llm-compressor", "gptq", W4, False, FOUR_BITS),
        ("llm-compressor", "gptq", W4_ASYM, False, FOUR_BITS),
        ("llm-compressor", "w8a8", None, False, EIGHT_BITS),
        ("llm-compressor", "fp8", None, False, FP8),
        ("autoawq", "awq", W4_ASYM, False, FOUR_BITS),
    ],
)
def test_our_runtime_computes_nearly_the_same_from_their_files(
    source, calibration, tmp_path, engine, method, spec, double_quant, bound
):
    require(engine)
    request = EngineRequest(
        source, tmp_path / "out", method, spec, calibration, double_quant=double_quant
    )
    summary = quantize_with_engine(engine, request, print)
    assert set(summary.versions) == set(find_engine(engine).packages)
    out = CheckpointReader(tmp_path / "out")
    assert "quantization_config" in out.config
    record = json.loads((out.path / "quantization.json").read_text())
    assert record["engine"]["versions"] == summary.versions
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out.path / name).read_bytes() == (source / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    base = logits(source)
    difference = ((logits(out.path) - base).norm() / base.norm()).item()
    assert 0 < difference < bound


def test_their_failure_is_one_sentence(source, calibration, tmp_path):
    """128 columns do not divide into groups of 256."""
    require("llm-compressor")
    request = EngineRequest(source, tmp_path / "out", "gptq", QuantSpec(4, 256), calibration)
    with pytest.raises(BackendError, match="llm-compressor failed: "):
        quantize_with_engine("llm-compressor", request, print)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def gguf_source(tmp_path_factory) -> Path:
    """A llama of one block with rows of 256, in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(64)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (64, 256), "output": (64, 256)}
    shapes |= {f"blk.0.attn_{part}": (256, 256) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (512, 256), "blk.0.ffn_up": (512, 256)}
    shapes |= {"blk.0.ffn_down": (256, 512)}
    norms = {"output_norm": (256,), "blk.0.attn_norm": (256,), "blk.0.ffn_norm": (256,)}
    for name, shape in (shapes | norms).items():
        values = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_llama_cpp_makes_the_blocks_of_the_format(gguf_source, tmp_path):
    require("llama.cpp")
    out = tmp_path / "q8_0.gguf"
    request = EngineRequest(gguf_source, out, "gguf", gguf_type="q8_0")
    summary = quantize_with_engine("llama.cpp", request, print)
    assert summary.file_bytes == out.stat().st_size
    name = "blk.0.ffn_up.weight"
    found, given = read(out)[name], read(gguf_source)[name]
    assert found.tensor_type == gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.quantize(given.data, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(found.data, expected)


def test_the_importance_matrix_reaches_llama_cpp(gguf_source, tmp_path):
    """Columns that matter are kept closer than without it."""
    require("llama.cpp")
    name = "blk.0.ffn_up.weight"
    given = read(gguf_source)[name].data
    importance = torch.full((256,), 1e-3)
    importance[::8] = 1e3
    errors = []
    for matrix in (None, {name: importance}):
        out = tmp_path / f"{matrix is not None}.gguf"
        request = EngineRequest(gguf_source, out, "gguf", gguf_type="q4_k_s", importance=matrix)
        quantize_with_engine("llama.cpp", request, print)
        found = read(out)[name]
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        errors.append(np.square(values - given)[:, ::8].mean())
    assert errors[1] < 0.5 * errors[0]
