"""A GGUF file is a model like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.errors import CheckpointError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import GgmlType, GgufWeight, ggml_type
from llmopt.models.decoder import Decoder
from llmopt.models.gguf_export import export_gguf
from llmopt.models.loader import load_model, open_checkpoint
from llmopt.models.tokenizer import Tokenizer
from llmopt_kernels.paged_attention import AttentionMetadata

Make = Callable[..., Any]
# What llama.cpp can express of them.
SETTINGS: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"tie_word_embeddings": True},
}


@torch.inference_mode()
def logits(model: Decoder) -> torch.Tensor:
    ids = torch.arange(3, 40)
    metadata = AttentionMetadata.dense([len(ids)])
    return model.compute_logits(model.forward(ids, torch.arange(len(ids)), metadata))


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
)
def test_a_gguf_file_has_the_logits_of_its_checkpoint(
    make_tiny_model: Make,
    sentence_piece_tokenizer: Make,
    tmp_path: Path,
    model_type: str,
    kind: str,
) -> None:
    from llmopt.quantize.gguf_encode import encode

    stored: dict[str, torch.Tensor] = {}

    def in_blocks(name: str, weight: torch.Tensor, target: GgmlType) -> GgufWeight:
        blocks = encode(weight.float(), target.name, name=name)
        stored[name] = blocks.dequantize()
        return blocks

    settings = {"vocab_size": 640, "query_pre_attn_scalar": 32, **SETTINGS.get(model_type, {})}
    source = make_tiny_model(model_type, **settings)
    out = tmp_path / "model.gguf"
    export_gguf(
        CheckpointReader(source),
        Tokenizer(sentence_piece_tokenizer(prefix=False), [2]),
        out,
        name="tiny",
        file_type=7,
        choose=lambda tensor: ggml_type(kind),
        encode=in_blocks,
    )
    original = load_model(source, dtype="float32")
    model = load_model(out, dtype="float32")
    if kind == "f32":
        torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=1e-5)
        return
    assert stored
    assert "dequantized q8_0" in model.kernels
    assert not torch.equal(logits(model), logits(original))
    error = (logits(model) - logits(original)).norm() / logits(original).norm()
    assert error < 0.05
    for part in original.config.names.gate_up:  # rows are those of the checkpoint, in its order
        name = f"model.layers.1.{part}.weight"
        assert torch.equal(open_checkpoint(out).tensor(name), stored[name])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        load_model(tmp_path / "model.gguf")
