"""What the tests of quantization runs share: a small source with real spread, and tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.models.decoder import Decoder
from llmopt.quantize.calibration import CalibrationData
from llmopt_kernels.paged_attention import AttentionMetadata


@pytest.fixture(scope="session")
def tokens() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    return CalibrationData(torch.randint(0, 128, (8, 64), generator=generator), "r", "0" * 64, 0)


@pytest.fixture(scope="session")
def make_spread_source(make_tiny_llama: Callable[..., Path]) -> Callable[..., Path]:
    """A bf16 checkpoint whose norms make channels differ in size, and whose biases are not 0."""

    def make(*, spread: float = 0.5, **overrides: object) -> Path:
        path = make_tiny_llama(**overrides)
        generator = torch.Generator().manual_seed(1)
        weights = load_file(path / "model.safetensors")
        for name, tensor in weights.items():
            if name.endswith("layernorm.weight"):
                weights[name] = torch.randn(tensor.shape, generator=generator).mul(spread).exp()
            if name.endswith("bias"):
                weights[name] = torch.randn(tensor.shape, generator=generator) * spread / 4
        halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(halves, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return make


@pytest.fixture(scope="session")
def spread_source(make_spread_source: Callable[..., Path]) -> Path:
    sizes = {"num_hidden_layers": 3, "initializer_range": 0.08}  # smooth: errors do not explode
    return make_spread_source(tie_word_embeddings=True, attention_bias=True, **sizes)


@pytest.fixture(scope="session")
def hidden_states() -> Callable[[Decoder, torch.Tensor], torch.Tensor]:
    """The hidden states of windows [N, T] of tokens."""

    def run(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        windows, length = tokens.shape
        positions = torch.arange(length).repeat(windows)
        metadata = AttentionMetadata.dense((length,) * windows)
        return model.forward(tokens.flatten(), positions, metadata)

    return run


@pytest.fixture(scope="session")
def directory_bytes() -> Callable[[Path], dict[str, bytes]]:
    """All files below a directory but for the record of how a run went."""

    def read(path: Path) -> dict[str, bytes]:
        files = [f for f in path.rglob("*") if f.is_file() and f.name != "quantization-run.json"]
        return {str(file.relative_to(path)): file.read_bytes() for file in files}

    return read
