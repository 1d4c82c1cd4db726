"""Checkpoints become GGUF files and are read back, tensor for tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.errors import CheckpointError, LLMOptError, ModelError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.gguf_blocks import GgmlType, GgufWeight, ggml_type
from llmopt.formats.gguf_header import GgufField
from llmopt.models.config import ModelConfig
from llmopt.models.gguf_export import FILE_TYPES, ExportedTensor, GgufExport, as_plain, export_gguf
from llmopt.models.tokenizer import load_tokenizer

Make = Callable[..., Any]
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 32},
}


@pytest.fixture(scope="session")
def make_source(make_tiny_model: Make, byte_level_tokenizer: Make) -> Callable[..., Path]:
    """A tiny model with a tokenizer of 600 ids."""

    def make(model_type: str, **settings: Any) -> Path:
        source = make_tiny_model(model_type, vocab_size=608, **{**MODELS[model_type], **settings})
        tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
        tokenizer.save_pretrained(source)
        return source

    return make


def in_blocks(name: str, weight: torch.Tensor, kind: GgmlType) -> GgufWeight:
    """An encoder whose blocks say which row they are of: all codes of a row are its number."""
    rows, columns = weight.shape
    blocks = torch.zeros(rows, kind.row_bytes(columns), dtype=torch.uint8)
    blocks.view(rows, -1, 34)[:, :, 2:] = torch.arange(rows).view(-1, 1, 1) % 100
    blocks.view(rows, -1, 34)[:, :, 1] = 0x3C  # a scale of 1
    return GgufWeight(blocks, kind, (rows, columns))


def export(source: Path, out: Path, choose: Callable[[ExportedTensor], GgmlType]) -> GgufCheckpoint:
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        out,
        name="tiny",
        file_type=FILE_TYPES["f16"],
        choose=choose,
        encode=in_blocks,
        extra={"quantize.imatrix.entries_count": GgufField.uint32(3)},
    )
    return GgufCheckpoint(out)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_plain_file_holds_the_checkpoint(
    model_type: str, make_source: Make, tmp_path: Path
) -> None:
    source = make_source(model_type)
    original = CheckpointReader(source)
    found = export(source, tmp_path / "m.gguf", lambda tensor: ggml_type("f32"))
    assert set(found.names()) == set(original.names())
    for name in original.names():
        torch.testing.assert_close(found.tensor(name), original.tensor(name), rtol=0, atol=2e-7)
    expected, config = (ModelConfig.from_hf(reader.config) for reader in (original, found))
    assert config.ropes == expected.ropes
    assert config.layers == expected.layers
    assert config.attention_scale == expected.attention_scale
    assert config.eos_token_ids == (0,)  # the tokenizer's
    assert found.metadata["general.name"] == "tiny"
    assert found.metadata["quantize.imatrix.entries_count"] == 3


@pytest.mark.parametrize("model_type", MODELS)
def test_blocks_come_back_in_the_order_of_their_rows(
    model_type: str, make_source: Make, tmp_path: Path
) -> None:
    source = make_source(model_type)
    found = export(source, tmp_path / "m.gguf", lambda tensor: ggml_type("q8_0"))
    for name in CheckpointReader(source).names():
        weight = found.weight(name.removesuffix(".weight"))
        assert (weight is None) == (len(found.shape(name)) == 1)
        if weight is not None:
            rows = torch.arange(weight.shape[0]).view(-1, 1) % 100
            assert torch.equal(weight.dequantize(), rows.float().expand(weight.shape))


def test_the_types_are_those_that_were_chosen(make_source: Make, tmp_path: Path) -> None:
    asked: list[ExportedTensor] = []

    def choose(tensor: ExportedTensor) -> GgmlType:
        asked.append(tensor)
        return ggml_type("q8_0" if tensor.layer == 1 else "f16")

    found = export(make_source("llama"), tmp_path / "m.gguf", choose)
    assert [tensor.ggml_name for tensor in asked][:2] == [
        "token_embd.weight",
        "blk.0.attn_k.weight",
    ]
    assert all(tensor.is_matrix for tensor in asked)
    assert found.quantization("model.layers.0.mlp.up_proj.weight") == "F16"
    assert found.quantization("model.layers.1.mlp.up_proj.weight") == "Q8_0"
    assert found.quantization("model.layers.1.input_layernorm.weight") == "F32"
    assert found.quantization("model.layers.1.mlp.up_proj.bias") == "F32"


def test_the_llama3_rule_becomes_a_table(make_source: Make, tmp_path: Path) -> None:
    source = make_source("llama", rope_parameters=LLAMA_3, head_dim=64)
    found = export(source, tmp_path / "m.gguf", lambda tensor: ggml_type("f16"))
    (rope,) = ModelConfig.from_hf(found.config).ropes
    (expected,) = ModelConfig.from_hf(CheckpointReader(source).config).ropes
    assert rope.theta == expected.theta
    assert rope.scaling is not None
    assert expected.scaling is not None
    assert {key: expected.scaling[key] for key in rope.scaling} == rope.scaling


def test_the_same_model_gives_the_same_bytes(make_source: Make, tmp_path: Path) -> None:
    source = make_source("qwen3")
    for name in ("a", "b"):
        export(source, tmp_path / name, lambda tensor: ggml_type("q8_0"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


SIZES = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64, "head_dim": 16}


def config_of(**settings: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 600,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        **SIZES,
        **settings,
    }


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (["model.layers.0.self_attn.q_norm.weight"], ModelError, "q_norm.weight has no place"),
        (["model.layers.0.mlp.up_proj.qweight"], ModelError, "qweight has no place"),
        (["model.norm.weight"], CheckpointError, "no model.embed_tokens.weight"),
        (
            ["model.norm.weight", "model.embed_tokens.weight"],
            CheckpointError,
            "no model.layers.0.input_layernorm.weight",
        ),
    ],
)
def test_tensors_that_do_not_make_the_model(
    names: list[str], kind: type[LLMOptError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        GgufExport(config_of()).tensors(dict.fromkeys(names, (64,)))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM cannot be written"),
        ({"architectures": []}, "none named"),
        ({"hidden_act": "relu"}, "the activation relu"),
    ],
)
def test_models_that_gguf_does_not_have(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        GgufExport(config_of(**settings))


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_numbers_that_float16_cannot_hold_are_refused(value: float) -> None:
    with pytest.raises(QuantizationError, match=r"blk\.0\.x has a number that f16 cannot hold"):
        as_plain("blk.0.x", torch.tensor([[1.0, value]]), ggml_type("f16"))


def test_nothing_is_left_of_a_failed_export(make_source: Make, tmp_path: Path) -> None:
    source = make_source("llama")
    out = tmp_path / "out" / "m.gguf"

    def fail(name: str, weight: torch.Tensor, kind: GgmlType) -> GgufWeight:
        raise QuantizationError("no", "no")

    with pytest.raises(QuantizationError):
        export_gguf(
            CheckpointReader(source),
            load_tokenizer(source),
            out,
            name="tiny",
            file_type=7,
            choose=lambda tensor: ggml_type("q8_0"),
            encode=fail,
        )
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_a_window_that_llama_cpp_ignores_is_refused(model_type: str, make_tiny_model: Any) -> None:
    reader = CheckpointReader(make_tiny_model(model_type, sliding_window=9))
    with pytest.raises(ModelError, match="a sliding window"):
        GgufExport(reader.config)
