"""A model whose logits are a seeded function of the token: no checkpoint, no forward pass."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from llmopt.models.config import LayerAttention, ModelConfig, Rope
from llmopt.quality.source import ModelLogits
from llmopt.quality.windows import EvaluationWindows, Window
from llmopt_kernels.paged_attention.metadata import AttentionMetadata


@dataclass
class FakeModel:
    """Logits of a token are a row of a table, plus its position / 100 for the token's own column.

    `noise` perturbs the table, as quantization does; `calls` counts forward passes.
    """

    vocab_size: int = 50
    noise: float = 0.0
    max_model_len: int = 64
    dtype: torch.dtype = torch.float32
    table: torch.Tensor = field(init=False)
    calls: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (self.vocab_size, self.vocab_size)
        table = torch.randn(shape, generator=generator) * 2
        self.table = table + self.noise * torch.randn(shape, generator=generator)

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=self.vocab_size,
            hidden_size=2,
            intermediate_size=2,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=2,
            rms_norm_eps=1e-5,
            ropes=(Rope(1e4),),
            layers=(LayerAttention(),),
            max_model_len=self.max_model_len,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_ids=(),
            dtype="float32",
            attention_scale=1.0,
        )

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, metadata: AttentionMetadata
    ) -> torch.Tensor:
        assert metadata.query_lens == (len(input_ids),)
        assert metadata.slot_mapping is None
        self.calls += 1
        return torch.stack([input_ids, positions], dim=1)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        input_ids, positions = hidden.unbind(dim=1)
        logits = self.table[input_ids].clone()
        logits[torch.arange(len(hidden)), input_ids] += positions / 100
        return logits.to(self.dtype)


@pytest.fixture
def make_model() -> Callable[..., FakeModel]:
    return FakeModel


@pytest.fixture
def make_source(make_model: Callable[..., FakeModel]) -> Callable[..., ModelLogits]:
    def make(name: str = "tiny", scheme: str = "fp32", **settings: object) -> ModelLogits:
        return ModelLogits(make_model(**settings), name=name, scheme=scheme)

    return make


@pytest.fixture
def make_windows() -> Callable[..., EvaluationWindows]:
    def make(
        num_windows: int = 6,
        window: int = 20,
        vocab_size: int = 50,
        num_scored: tuple[int, ...] = (),
        num_words: int | None = None,
    ) -> EvaluationWindows:
        """Random windows; `num_scored`: of each, absent all that can be."""
        generator = torch.Generator().manual_seed(1)
        token_ids = torch.randint(0, vocab_size, (num_windows, window), generator=generator)
        counts = num_scored or (window - 1,) * num_windows
        windows = [
            Window(row, count, 3 * count) for row, count in zip(token_ids, counts, strict=True)
        ]
        return EvaluationWindows(
            tuple(windows), "sample.txt", "0" * 64, "windows", "some windows", num_words
        )

    return make
