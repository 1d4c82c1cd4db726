"""What may be wrong with calibration data, before hours are spent on it.

Counts tokens; knows nothing of models, methods or files. Law: a finding says a number, what it
leads to and what to do, and nothing here changes the data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmopt.quantize.calibration import CalibrationData

SHINGLE = 13  # tokens in a row; the length that contamination studies use (arXiv 2005.14165, C)
FEW_TOKENS = 8_192  # below: statistics of a few thousand inputs are mostly noise
USUAL_TOKENS = 128 * 512
LEAKED_SHARE = 0.01
Level = Literal["warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. A warning says that the result will probably suffer or mislead."""

    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """The counts of one calibration set, and what is to be said about them.

    num_tokens: in all windows; num_unique: different ids among them; vocabulary_share: the same as
        a share of the vocabulary
    num_duplicates: windows that repeat an earlier one
    overlap: share of the evaluation text's runs of `SHINGLE` tokens that are in a window too; None
        where no evaluation text was given
    """

    source: str
    num_samples: int
    sample_tokens: int
    num_documents: int
    num_chats: int
    num_tokens: int
    num_unique: int
    vocabulary_share: float
    num_duplicates: int
    unused_tokens: int
    overlap: float | None
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are not mere notes."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def lines(self) -> list[str]:
        """The report in words, a line each: the counts, then the findings."""
        chats = f", {self.num_chats:,} of them chats" if self.num_chats else ""
        counts = [
            f"{self.source}: {self.num_samples:,} samples of {self.sample_tokens:,} tokens = "
            f"{self.num_tokens:,} tokens, from {_count(self.num_documents, 'document')}{chats}",
            f"{self.num_unique:,} different tokens, {self.vocabulary_share:.1%} of the vocabulary; "
            f"{self.unused_tokens:,} tokens of the text are in no sample",
        ]
        if self.overlap is not None:
            counts.append(
                f"{self.overlap:.2%} of the evaluation text's runs of {SHINGLE} tokens are in a "
                "sample"
            )
        return counts + [f"{finding.level}: {finding.message}" for finding in self.findings]


def lint_calibration(
    data: CalibrationData,
    *,
    vocab_size: int,
    bos_token_id: int | None = None,
    has_chat_template: bool = False,
    evaluation_tokens: Sequence[int] | None = None,
) -> CalibrationReport:
    """Count what is in the windows and judge it.

    bos_token_id: the one that the tokenizer puts before every text, or None
    has_chat_template: whether this is a chat model
    evaluation_tokens: the text that quality will be measured on, without special tokens
    """
    unique = len(set(data.tokens.flatten().tolist()))
    overlap = None if evaluation_tokens is None else overlap_share(data.tokens, evaluation_tokens)
    duplicates = data.num_samples - len({row.numpy().tobytes() for row in data.tokens})
    findings = [
        *_size_findings(data.tokens.numel()),
        *_bos_findings(data, bos_token_id),
        *_chat_findings(data, has_chat_template),
        *_duplicate_findings(duplicates, data.num_samples),
        *_overlap_findings(overlap),
    ]
    return CalibrationReport(
        source=data.source,
        num_samples=data.num_samples,
        sample_tokens=data.sample_tokens,
        num_documents=data.num_documents,
        num_chats=data.num_chats,
        num_tokens=data.tokens.numel(),
        num_unique=unique,
        vocabulary_share=unique / vocab_size,
        num_duplicates=duplicates,
        unused_tokens=data.unused_tokens,
        overlap=overlap,
        findings=tuple(sorted(findings, key=lambda finding: finding.level != "warning")),
    )


def overlap_share(windows: Tensor, evaluation_tokens: Sequence[int]) -> float:
    """Share of the evaluation text's different runs of `SHINGLE` tokens that are in a window.

    windows: int64 [num_samples, sample_tokens]. A text shorter than a run has no run: 0.
    """
    wanted = set(_shingles(list(evaluation_tokens)))
    if not wanted:
        return 0.0
    seen = {shingle for row in windows.tolist() for shingle in _shingles(row)}
    return len(wanted & seen) / len(wanted)


def _shingles(token_ids: list[int]) -> Iterator[tuple[int, ...]]:
    return (
        tuple(token_ids[start : start + SHINGLE]) for start in range(len(token_ids) - SHINGLE + 1)
    )


def _size_findings(num_tokens: int) -> Iterator[Finding]:
    if num_tokens < FEW_TOKENS:
        yield Finding(
            "warning",
            f"{num_tokens:,} tokens are too few to tell inputs that matter from noise: give at "
            f"least {FEW_TOKENS:,}, better {USUAL_TOKENS:,}",
        )
    elif num_tokens < USUAL_TOKENS:
        yield Finding(
            "note",
            f"{num_tokens:,} tokens are fewer than the usual 128 samples of 512 "
            f"({USUAL_TOKENS:,}); more may help",
        )


def _bos_findings(data: CalibrationData, bos_token_id: int | None) -> Iterator[Finding]:
    if bos_token_id is None:
        return
    missing = int((data.tokens[:, 0] != bos_token_id).sum())
    if missing:
        yield Finding(
            "warning",
            f"{missing:,} of {data.num_samples:,} samples do not start with the BOS token "
            f"{bos_token_id}, which the tokenizer puts before every text: the model sees texts "
            "that it never meets in use",
        )


def _chat_findings(data: CalibrationData, has_chat_template: bool) -> Iterator[Finding]:
    if has_chat_template and not data.num_chats:
        yield Finding(
            "note",
            "this is a chat model and no sample is a conversation: JSON lines with messages go "
            "through its chat template",
        )


def _duplicate_findings(duplicates: int, num_samples: int) -> Iterator[Finding]:
    if duplicates:
        yield Finding(
            "warning",
            f"{duplicates:,} of {num_samples:,} samples repeat another one and add nothing: "
            "remove repeated documents",
        )


def _overlap_findings(overlap: float | None) -> Iterator[Finding]:
    if overlap is None or overlap == 0:
        return
    message = (
        f"{overlap:.2%} of the evaluation text is in the calibration data too: quality measured on "
        "it will look better than it is"
    )
    yield Finding("warning" if overlap >= LEAKED_SHARE else "note", message)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
