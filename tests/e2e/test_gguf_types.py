"""GGUF tensor types against llama.cpp itself, through the C API that llama-cpp-python binds.

llama-cpp-python compiles llama.cpp, so this runs in an environment of its own, made by
`pip install llama-cpp-python torch gguf pytest pytest-timeout hypothesis`.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from llmopt.formats.gguf_blocks import GGML_TYPES, GgufWeight
from llmopt.quantize.gguf_encode import encode
from llmopt.quantize.gguf_mix import MIXES, tensor_type

gguf = pytest.importorskip("gguf", reason="needs the gguf package")
llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

BLOCK_TYPES = [name for name, found in GGML_TYPES.items() if found.layout is not None]
MIXES_THAT_KNOW_70B = ("q2_k", "q3_k_m", "q4_k_m")
MIX_OF_TYPE = {"q3_k": "q3_k_m", "q4_k": "q4_k_s", "q5_k": "q5_k_s"}


@dataclass(frozen=True)
class Model:
    """What llama.cpp's choice of types looks at."""

    arch: str = "llama"
    layers: int = 2
    hidden: int = 256
    intermediate: int = 512
    heads: int = 8
    kv_heads: int = 2
    tied: bool = True

    def columns(self) -> dict[str, int]:
        """Row lengths of the matrices; their numbers of rows decide nothing. Those whose type does
        not depend on the layer are in the first one only.
        """
        varied = {
            "attn_v": self.hidden,
            "attn_output": self.heads * 32,
            "ffn_down": self.intermediate,
        }
        same = dict.fromkeys(("attn_q", "attn_k", "ffn_gate", "ffn_up"), self.hidden)
        top = {"token_embd.weight": self.hidden}
        if not self.tied:
            top["output.weight"] = self.hidden
        blocks = {
            f"blk.{layer}.{name}.weight": columns
            for layer in range(self.layers)
            for name, columns in (varied | same if layer == 0 else varied).items()
        }
        return top | blocks

    def vectors(self) -> list[str]:
        return ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias"]


def write_model(path: Path, model: Model, tensors: Mapping[str, "np.ndarray | GgufWeight"]) -> Path:
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_block_count(model.layers)
    writer.add_context_length(64)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(2)
    for name, tensor in tensors.items():
        if isinstance(tensor, GgufWeight):
            raw_type = gguf.GGMLQuantizationType(tensor.type.id)
            writer.add_tensor(name, tensor.blocks.numpy(), raw_dtype=raw_type)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextmanager
def importance_argument(importance: Mapping[str, np.ndarray]) -> Iterator[object]:
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    yield entries


def quantize_with_llama_cpp(
    source: Path,
    target: Path,
    mix: str,
    importance: Mapping[str, np.ndarray] | None = None,
    *,
    pure: bool = False,
) -> dict[str, "gguf.ReaderTensor"]:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = MIXES[mix].file_type
    params.nthread = 1
    params.pure = pure
    params.allow_requantize = True
    with importance_argument(importance or {}) as entries:
        if importance is not None:
            params.imatrix = entries
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    assert code == 0, "llama.cpp quantizes the file"
    return {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}


MODELS = {
    "two layers": Model(),
    "untied": Model(tied=False, layers=4),
    "eight layers": Model(layers=8, heads=8, kv_heads=8),
    "sixteen layers, untied": Model(layers=16, tied=False, heads=8, kv_heads=4),
    "SmolLM widths": Model(layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3),
    "odd MLP": Model(layers=9, intermediate=800, kv_heads=8),
    "qwen2": Model(arch="qwen2", layers=24, hidden=896, intermediate=4864, heads=14, kv_heads=2),
    "qwen3": Model(arch="qwen3", layers=28, hidden=1024, intermediate=3072, kv_heads=4),
    "gemma3": Model(arch="gemma3", layers=26, hidden=640, intermediate=2048, heads=4, kv_heads=1),
    "70B": Model(layers=80, tied=False, kv_heads=1),
    "65B": Model(layers=80, tied=False, kv_heads=8),
    "qwen2 72B": Model(arch="qwen2", layers=80, tied=False, kv_heads=8),
}


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(
    tmp_path: Path, model: Model, has_importance: bool
) -> None:
    matrices = {name: np.ones((2, k), np.float32) for name, k in model.columns().items()}
    vectors = {name: np.ones(model.hidden, np.float32) for name in model.vectors()}
    source = write_model(tmp_path / "source.gguf", model, matrices | vectors)
    importance = {name: np.ones(k, np.float32) for name, k in model.columns().items()}
    for mix in MIXES if model.layers < 80 else MIXES_THAT_KNOW_70B:
        theirs = quantize_with_llama_cpp(
            source, tmp_path / "target.gguf", mix, importance if has_importance else None
        )
        ours = {
            name: tensor_type(
                mix,
                name,
                tensor.shape,
                layer=int(name.split(".")[1]) if name.startswith("blk.") else None,
                num_layers=model.layers,
                tied=model.tied,
                num_heads=model.heads,
                num_kv_heads=model.kv_heads,
                arch=model.arch,
                has_importance=has_importance,
            )
            for name, tensor in (matrices | vectors).items()
        }
        assert ours == {name: t.tensor_type.name.lower() for name, t in theirs.items()}, mix
        written = gguf.GGUFReader(tmp_path / "target.gguf").get_field("general.file_type")
        assert written.contents() == MIXES[mix].file_type


def heavy_tailed(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 0.02 * torch.exp(0.7 * torch.randn(rows, columns, generator=generator))
    return weight, torch.exp(1.5 * torch.randn(columns, generator=generator))


@pytest.mark.parametrize("name", [*BLOCK_TYPES, "f16", "bf16"])
def test_our_blocks_mean_the_same_to_gguf_and_to_llama_cpp(tmp_path: Path, name: str) -> None:
    weight, importance = heavy_tailed(8, 512)
    stored = encode(weight, name, importance)
    expected = stored.dequantize().numpy()
    path = write_model(tmp_path / "ours.gguf", Model(), {"blk.0.ffn_up.weight": stored})
    (tensor,) = gguf.GGUFReader(path).tensors
    assert tensor.tensor_type.name.lower() == name
    raw = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
    np.testing.assert_array_equal(raw, expected)
    float_file = quantize_with_llama_cpp(path, tmp_path / "float.gguf", "f32")
    np.testing.assert_array_equal(float_file["blk.0.ffn_up.weight"].data, expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_our_error_is_not_larger_than_llama_cpps(tmp_path: Path, name: str, weighted: bool) -> None:
    weight, importance = heavy_tailed(32, 1024)
    tensor = "blk.0.ffn_up.weight"
    source = write_model(tmp_path / "source.gguf", Model(), {tensor: weight.numpy()})
    theirs = quantize_with_llama_cpp(
        source,
        tmp_path / "theirs.gguf",
        MIX_OF_TYPE.get(name, name),
        {tensor: importance.numpy()} if weighted else None,
        pure=True,
    )[tensor]
    assert theirs.tensor_type.name.lower() == name
    cost = importance if weighted else torch.ones_like(importance)
    their_weight = torch.from_numpy(gguf.quants.dequantize(theirs.data, theirs.tensor_type))
    our_weight = encode(weight, name, importance if weighted else None).dequantize()
    our_error = ((our_weight - weight).square() * cost).sum()
    their_error = ((their_weight - weight).square() * cost).sum()
    assert our_error <= their_error
