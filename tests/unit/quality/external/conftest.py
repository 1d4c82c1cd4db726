"""A table of logits as a source, exact or truncated, and the windows to score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from llmopt.quality.external.truncated import TruncatedLogProbs
from llmopt.quality.windows import EvaluationWindows, Window

VOCABULARY = 40


@dataclass
class TableSource:
    """Logits of a token are a row of a seeded table, with noise as quantization makes it."""

    noise: float = 0.0
    vocab_size: int = VOCABULARY
    max_tokens: int = 64
    rows_per_chunk: int = 7
    name: str = "table"
    scheme: str = "fp32"
    table: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (self.vocab_size, self.vocab_size)
        table = torch.randn(shape, generator=generator) * 2
        self.table = table + self.noise * torch.randn(shape, generator=generator)

    def logits(self, window: Window) -> torch.Tensor:
        return self.table[window.token_ids[-window.num_scored - 1 : -1]]

    def chunks(self, window: Window) -> Iterator[torch.Tensor]:
        yield from torch.split(self.logits(window), self.rows_per_chunk)


def truncate(logits: torch.Tensor, next_tokens: torch.Tensor, k: int) -> TruncatedLogProbs:
    """What a server tells of float32 logits: the k likeliest tokens, and the right one too."""
    log_probs = logits.float().log_softmax(dim=1).double()
    top = log_probs.topk(k, dim=1)
    column = next_tokens.unsqueeze(1)
    next_log_probs = log_probs.gather(1, column)
    is_new = (top.indices != column).all(dim=1, keepdim=True)
    return TruncatedLogProbs(
        torch.cat([top.indices, column], dim=1),
        torch.cat([top.values, next_log_probs], dim=1),
        torch.cat([torch.ones_like(top.indices, dtype=torch.bool), is_new], dim=1),
        next_log_probs.squeeze(1),
    )


@dataclass
class TruncatedTable:
    """The same table, of which only the k likeliest tokens are told."""

    source: TableSource
    k: int
    name: str = "truncated"
    scheme: str = "served"
    max_tokens: int = 64

    def log_probs(self, window: Window) -> TruncatedLogProbs:
        return truncate(self.source.logits(window), window.next_tokens, self.k)


@pytest.fixture
def table_source() -> type[TableSource]:
    return TableSource


@pytest.fixture
def truncated_table() -> type[TruncatedTable]:
    return TruncatedTable


@pytest.fixture(scope="session")
def truncated() -> Callable[[torch.Tensor, torch.Tensor, int], TruncatedLogProbs]:
    return truncate


@pytest.fixture
def windows() -> EvaluationWindows:
    """Windows of several lengths, of which different parts are scored."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(20, 19), (20, 9), (33, 32), (16, 1), (20, 19), (20, 10), (20, 19), (20, 19), (20, 5)]
    return EvaluationWindows(
        tuple(
            Window(torch.randint(0, VOCABULARY, (length,), generator=generator), num_scored, 50)
            for length, num_scored in shapes
        ),
        "sample.txt",
        "0" * 64,
        "windows",
        "some windows",
    )
