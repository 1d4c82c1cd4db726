"""GGUF files that we write are what llama.cpp takes them for: same ids, same logits, same metadata.

llama-cpp-python is heavy and lives in an environment of its own; run these tests there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.gguf_blocks import GgmlType, GgufWeight, ggml_type
from llmopt.models.gguf_export import FILE_TYPES, export_gguf
from llmopt.models.gguf_pretokenizers import PRE_TOKENIZERS, PROBES
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.gguf_encode import encode
from llmopt_kernels.paged_attention import AttentionMetadata

Make = Callable[..., Any]
TEXTS = [
    *PROBES,
    "12345 67 8.9 1,000,000\n\n  indented\n\ttabbed \r\n\r\n end   ",
    "naïve Ünïcode 日本語 🙂🙃 ½ नमस्ते क्षत्रिय",
    "a <|turn|>special<|end|> and an [tool] added token",
    "x",
    "",
]
F32 = 0  # GGML_TYPE_F32, for the KV cache
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA_3_ROPE, "head_dim": 64}),
    "llama with linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 32}),
    "gemma3, usual layers": (
        "gemma3_text",
        {
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 7,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
    ),
}


@pytest.fixture(scope="session")
def llama_cpp() -> Any:
    return pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed (it is compiled on installation)"
    )


def in_blocks(name: str, weight: torch.Tensor, kind: GgmlType) -> GgufWeight:
    return encode(weight.float(), kind.name, name=name)


def export(source: Path, out: Path, kind: str) -> Path:
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        out,
        name=source.name,
        file_type=FILE_TYPES.get(kind, 7),
        choose=lambda tensor: ggml_type(kind),
        encode=in_blocks,
    )
    return out


def open_in_llama_cpp(llama_cpp: Any, path: Path) -> Any:
    return llama_cpp.Llama(
        str(path),
        n_ctx=128,
        n_batch=128,
        n_threads=1,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        verbose=False,
    )


def llama_cpp_logits(model: Any, ids: list[int]) -> np.ndarray:
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def transformers_logits(source: Path, ids: list[int]) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def tiny_checkpoint(make_tiny_model: Make, tokenizer: Any, name: str) -> Path:
    model_type, settings = MODELS[name]
    source = make_tiny_model(model_type, vocab_size=608, **settings)
    tokenizer.save_pretrained(source)
    return source


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same_logits(
    name: str, llama_cpp: Any, make_tiny_model: Make, byte_level_tokenizer: Make, tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    source = tiny_checkpoint(make_tiny_model, tokenizer, name)
    path = export(source, tmp_path / "model.gguf", "f32")
    ids = load_tokenizer(source).encode(PROBES[0] + PROBES[3])[:100]
    got = llama_cpp_logits(open_in_llama_cpp(llama_cpp, path), ids)
    expected = transformers_logits(source, ids)
    tolerance = 1e-2 if name.startswith("gemma3") else 2e-3  # ggml's GELU is a table of float16
    assert np.abs(got[:, : expected.shape[1]] - expected).max() < tolerance


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_read_as_the_checkpoint(
    name: str, make_tiny_model: Make, byte_level_tokenizer: Make, tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    source = tiny_checkpoint(make_tiny_model, tokenizer, name)
    original = CheckpointReader(source)
    found = GgufCheckpoint(export(source, tmp_path / "model.gguf", "f32"))
    assert set(found.names()) == set(original.names())
    for tensor in original.names():
        torch.testing.assert_close(
            found.tensor(tensor), original.tensor(tensor), rtol=0, atol=2e-7, msg=tensor
        )


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q5_1"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_our_runtime_runs_the_file_as_llama_cpp_does(
    name: str,
    kind: str,
    llama_cpp: Any,
    make_tiny_model: Make,
    byte_level_tokenizer: Make,
    tmp_path: Path,
) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    source = tiny_checkpoint(make_tiny_model, tokenizer, name)
    path = export(source, tmp_path / "model.gguf", kind)
    ids = load_tokenizer(path).encode(PROBES[0])[:60]
    got = our_logits(path, ids)
    expected = torch.from_numpy(llama_cpp_logits(open_in_llama_cpp(llama_cpp, path), ids))
    # llama.cpp rounds the inputs of a product, too: to float16, or to 8 bits in groups of 32
    tolerance = {"f32": 5e-4, "f16": 3e-3}.get(kind, 0.04)
    assert (got - expected).norm() / expected.norm() < tolerance


@torch.inference_mode()
def our_logits(path: Path, ids: list[int]) -> torch.Tensor:
    model = load_model(path, dtype="float32")
    positions, metadata = torch.arange(len(ids)), AttentionMetadata.dense([len(ids)])
    return model.compute_logits(model.forward(torch.tensor(ids), positions, metadata))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_gives_the_same_ids(
    name: str, llama_cpp: Any, make_tiny_model: Make, byte_level_tokenizer: Make, tmp_path: Path
) -> None:
    known = PRE_TOKENIZERS[name]
    tokenizer = byte_level_tokenizer(known.build(), ignore_merges=known.ignore_merges, bos=True)
    check_ids(llama_cpp, tiny_checkpoint(make_tiny_model, tokenizer, "llama"), tmp_path)


@pytest.mark.parametrize("prefix", [True, False], ids=["as llama 2", "as gemma"])
def test_llama_cpp_gives_the_same_ids_with_sentence_piece(
    prefix: bool,
    llama_cpp: Any,
    make_tiny_model: Make,
    sentence_piece_tokenizer: Make,
    tmp_path: Path,
) -> None:
    tokenizer = sentence_piece_tokenizer(prefix=prefix)
    check_ids(llama_cpp, tiny_checkpoint(make_tiny_model, tokenizer, "llama"), tmp_path)


def check_ids(llama_cpp: Any, source: Path, directory: Path) -> None:
    path = export(source, directory / "model.gguf", "f16")
    model, ours, original = (
        open_in_llama_cpp(llama_cpp, path),
        load_tokenizer(path),
        load_tokenizer(source),
    )
    for text in TEXTS:
        expected = original.encode(text)
        assert ours.encode(text) == expected, text
        if text:  # llama-cpp-python puts a BOS in front of nothing, too
            assert model.tokenize(text.encode(), add_bos=True, special=True) == expected, text


def test_the_gguf_package_reads_the_metadata(
    make_tiny_model: Make, byte_level_tokenizer: Make, tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    source = tiny_checkpoint(make_tiny_model, tokenizer, "qwen3")
    reader = gguf.GGUFReader(export(source, tmp_path / "model.gguf", "f16"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert fields["qwen3.attention.key_length"] == 32
    assert fields["qwen3.block_count"] == 2
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == 608
    stored = {tensor.name: tensor for tensor in reader.tensors}
    query = CheckpointReader(source).tensor("model.layers.1.self_attn.q_proj.weight")
    assert np.array_equal(stored["blk.1.attn_q.weight"].data, query.half().numpy())
    assert stored["blk.1.attn_q_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.real_model
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 2e-3), ("f16", 0.1)])
def test_the_default_model(
    kind: str, tolerance: float, llama_cpp: Any, default_model: Path, tmp_path: Path
) -> None:
    path = export(default_model, tmp_path / "model.gguf", kind)
    model, tokenizer = open_in_llama_cpp(llama_cpp, path), load_tokenizer(default_model)
    chat = "<|im_start|>user\nWhat  is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    for text in [*PROBES, chat]:
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == tokenizer.encode(text) == load_tokenizer(path).encode(text)
    ids = tokenizer.encode(PROBES[0])
    got, expected = llama_cpp_logits(model, ids), transformers_logits(default_model, ids)
    assert np.abs(got - expected).max() < tolerance


@pytest.mark.real_model
def test_a_real_gemma(llama_cpp: Any, gemma_model: Path, tmp_path: Path) -> None:
    path = export(gemma_model, tmp_path / "model.gguf", "f16")
    model, ours, original = (
        open_in_llama_cpp(llama_cpp, path),
        load_tokenizer(path),
        load_tokenizer(gemma_model),
    )
    for text in [*TEXTS[:-1], "<start_of_turn>user\nhi  there<end_of_turn>\n\n <table>\n\n\n"]:
        expected = original.encode(text)
        assert ours.encode(text) == expected, text
        assert model.tokenize(text.encode(), add_bos=True, special=True) == expected, text
    ids = original.encode(PROBES[0])
    got, logits = llama_cpp_logits(model, ids), transformers_logits(gemma_model, ids)
    assert np.linalg.norm(got - logits) / np.linalg.norm(logits) < 5e-3
