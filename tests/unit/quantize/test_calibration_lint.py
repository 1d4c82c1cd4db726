"""The linter: counts equal to slow definitions, and a finding for each fault and no other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.calibration_lint import (
    SHINGLE,
    CalibrationReport,
    lint_calibration,
    overlap_share,
)


def data_of(num_samples: int, sample_tokens: int, **changes: object) -> CalibrationData:
    """Distinct random windows that start with token 1."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 4096, (num_samples, sample_tokens), generator=generator)
    tokens[:, 0] = 1
    fields: dict[str, object] = {"tokens": tokens, "source": "t", "text_sha256": "", "seed": 0}
    return CalibrationData(**(fields | changes))  # type: ignore[arg-type]


def messages_of(report: CalibrationReport) -> list[str]:
    return [f"{finding.level}: {finding.message}" for finding in report.findings]


def test_good_data_has_no_findings() -> None:
    report = lint_calibration(data_of(128, 512), vocab_size=4096, bos_token_id=1)
    assert report.findings == ()
    assert report.num_tokens == 65_536
    assert report.num_unique == 4095
    assert report.vocabulary_share == pytest.approx(4095 / 4096)
    assert report.overlap is None
    assert len(report.lines()) == 2


@pytest.mark.parametrize(
    ("num_samples", "level"), [(128, None), (127, "note"), (16, "note"), (15, "warning")]
)
def test_few_tokens(num_samples: int, level: str | None) -> None:
    report = lint_calibration(data_of(num_samples, 512), vocab_size=4096)
    assert [finding.level for finding in report.findings] == ([level] if level else [])


def test_missing_bos() -> None:
    data = data_of(128, 512)
    data.tokens[:3, 0] = 7
    report = lint_calibration(data, vocab_size=4096, bos_token_id=1)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert "3 of 128 samples do not start with the BOS token 1" in finding.message
    assert lint_calibration(data, vocab_size=4096).findings == ()


def test_chat_model_without_conversations() -> None:
    report = lint_calibration(data_of(128, 512), vocab_size=4096, has_chat_template=True)
    assert [finding.level for finding in report.findings] == ["note"]
    chats = data_of(128, 512, num_documents=9, num_chats=9)
    report = lint_calibration(chats, vocab_size=4096, has_chat_template=True)
    assert report.findings == ()
    assert "9 documents, 9 of them chats" in report.lines()[0]


def test_duplicate_windows() -> None:
    data = data_of(128, 512)
    data.tokens[5] = data.tokens[9] = data.tokens[100]
    report = lint_calibration(data, vocab_size=4096)
    assert report.num_duplicates == 2
    assert "2 of 128 samples repeat" in messages_of(report)[0]


@pytest.mark.parametrize(("leaked", "level"), [(0, None), (40, "note"), (400, "warning")])
def test_overlap_with_the_evaluation_text(leaked: int, level: str | None) -> None:
    data = data_of(128, 512)
    evaluation = [5000 + i for i in range(10_000)] + data.tokens[3, 1 : 1 + leaked].tolist()
    report = lint_calibration(data, vocab_size=8192, evaluation_tokens=evaluation)
    assert [finding.level for finding in report.findings] == ([level] if level else [])
    assert report.overlap is not None
    expected = max(leaked - SHINGLE + 1, 0) / (len(evaluation) - SHINGLE + 1)
    assert report.overlap == pytest.approx(expected)


def test_warnings_come_first() -> None:
    data = data_of(20, 512)
    data.tokens[0] = data.tokens[1]
    report = lint_calibration(data, vocab_size=4096)
    assert [finding.level for finding in report.findings] == ["warning", "note"]
    assert report.lines()[2].startswith("warning: 1 of 20 samples repeat")
    assert len(report.warnings) == 1


@given(
    rows=st.lists(st.lists(st.integers(0, 1), min_size=15, max_size=15), min_size=1, max_size=4),
    evaluation=st.lists(st.integers(0, 1), max_size=30),
)
def test_overlap_equals_the_slow_definition(rows: list[list[int]], evaluation: list[int]) -> None:
    def runs(tokens: list[int]) -> list[list[int]]:
        return [tokens[i : i + SHINGLE] for i in range(len(tokens) - SHINGLE + 1)]

    different: list[list[int]] = []
    for run in runs(evaluation):
        if run not in different:
            different.append(run)
    found = [run for run in different if any(run in runs(row) for row in rows)]
    expected = len(found) / len(different) if different else 0.0
    assert overlap_share(torch.tensor(rows), evaluation) == pytest.approx(expected)
