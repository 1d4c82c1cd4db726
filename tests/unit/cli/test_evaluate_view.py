import io
from dataclasses import replace

import pytest
from rich.console import RenderableType

from llmopt.cli.evaluate_view import prediction_parts, print_parts, quality_parts
from llmopt.quality.perplexity import Perplexity
from llmopt.quality.prediction import PredictionRecord
from llmopt.results.schema import (
    DeltaP,
    NoiseFloor,
    QualityBucket,
    QualityRecord,
    Verdict,
)

BUCKETS = (
    QualityBucket("< 0.25", 3_000, 0.31, 0.701),
    QualityBucket("≥ 0.99", 1_234_567, 0.00123, 0.999),
)
WORSE = Verdict(
    "worse",
    290.5,
    (270.1, 310.9),
    "Worse than the base: the KL divergence is 290 times the noise of bf16 [270, 311], and the "
    "perplexity ratio [1.0800, 1.1100] lies above the noise's, which ends at 1.0006.",
)
OLD = QualityRecord(
    base_name="smollm2-135m",
    base_scheme="fp32",
    text_name="wiki.test.raw",
    text_sha256="ab" * 32,
    protocol="windows of 512 tokens, not overlapping, BOS first in each, first 16",
    window=512,
    num_windows=16,
    num_tokens=8176,
    kld_mean=0.1163,
    kld_mean_ci=(0.1082, 0.1271),
    kld_median=0.0512,
    kld_p99=1.02,
    kld_max=5.1,
    top1_agreement=0.795,
    top1_agreement_ci=(0.786, 0.803),
    ppl=48.123,
    base_ppl=45.8,
    ppl_ratio=1.0507,
    ppl_ratio_ci=(1.0432, 1.0588),
)
FULL = replace(
    OLD,
    protocol_name="llama.cpp",
    kld_p90=0.261,
    kld_p999=2.9,
    ppl_ci=(45.21, 51.33),
    base_ppl_ci=(43.1, 48.2),
    bits_per_byte=1.0213,
    base_bits_per_byte=1.0101,
    word_ppl=101.5,
    base_word_ppl=99.25,
    delta_p=DeltaP(-0.0081, (-0.0095, -0.0066), 0.081, -0.312, -0.141, -0.019, 0, 0.008, 0.09, 0.2),
    by_confidence=BUCKETS,
    by_position=BUCKETS,
    base_cache_error=3.2e-6,
    noise=NoiseFloor("bf16", 0.0004, (0.00038, 0.00042), 1.0001, (0.9996, 1.0006)),
    verdict=WORSE,
)


def printed(parts: list[RenderableType]) -> list[str]:
    out = io.StringIO()
    print_parts(parts, out)
    return out.getvalue().splitlines()


def quality_lines(record: QualityRecord, target: str = "m") -> list[str]:
    return printed(quality_parts(record, target))


def prediction_lines(record: PredictionRecord) -> list[str]:
    return printed(prediction_parts(record))


def test_everything_is_shown_in_100_plain_columns() -> None:
    lines = quality_lines(FULL, "smollm2-w4 (gptq-w4g64)")
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "…" not in text
    for figures in (
        "smollm2-w4 (gptq-w4g64) against smollm2-135m (fp32)",
        "perplexity (llama.cpp)       48.123 [45.21, 51.33], base 45.8 [43.1, 48.2]",
        "ratio to the base          1.0507 [1.0432, 1.0588]",
        "bits per byte (llama.cpp)    1.0213, base 1.0101",
        "word perplexity (llama.cpp)  101.5, base 99.25",
        "0.116 [.108, .127] nats per token",
        "median 0.0512, 90 % 0.261, 99 % 1.02, 99.9 % 2.9, max 5.1",
        "79.50% [78.60, 80.30]",
        "mean -0.810% [-0.950, -0.660], RMS 8.100%",
        "-31.20  -14.10  -1.90  +0.00  +0.80  +9.00  +20.00%",
        "≥ 0.99                    1,234,567  0.00123  99.9%",
        "KL divergence 0.00040 [.00038, .00042]",
        "protocol llama.cpp: windows of 512 tokens",
        "which costs 3.2e-06 nats",
    ):
        assert " ".join(figures.split()) in " ".join(text.split())
    assert " ".join(WORSE.text.split()) in " ".join(text.split())


def test_an_old_record_shows_what_it_has() -> None:
    lines = quality_lines(OLD)
    text = "\n".join(lines)
    assert "perplexity (windows)  48.123, base 45.8" in text
    assert "median 0.0512, 99 % 1.02, max 5.1" in text
    assert not any(word in text for word in ("None", "noise", "Δp", "bits per byte", "cache"))


def test_a_lower_bound_and_a_runtime_of_others_are_told() -> None:
    record = replace(OLD, source="vllm", lower_bound=True)
    text = "\n".join(quality_lines(record))
    assert "at least 0.116" in text
    assert "the model's log-probabilities are those of vllm" in text
    assert "is a lower bound" in text


def test_a_model_alone_has_perplexity_and_its_protocol() -> None:
    record = PredictionRecord(
        model_name="m",
        model_scheme="bf16",
        text_name="wiki.test.raw",
        text_sha256="ab" * 32,
        protocol_name="rolling",
        protocol="whole documents",
        window=2048,
        num_windows=9,
        num_tokens=12_345,
        perplexity=Perplexity(17.25, (16.5, 18.0), 0.7125, 33.6),
        confidence=0.95,
    )
    lines = prediction_lines(record)
    assert lines[:4] == [
        "m (bf16)",
        "perplexity (rolling)       17.25 [16.5, 18]",
        "bits per byte (rolling)    0.7125",
        "word perplexity (rolling)  33.6",
    ]
    assert "12,345 positions of wiki.test.raw" in lines[4]
    alone = replace(record, perplexity=Perplexity(17.25, (16.5, 18.0), None, None))
    assert not any("byte" in line or "word" in line for line in prediction_lines(alone))


def test_a_terminal_gets_the_verdict_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    print_parts(quality_parts(FULL, "m"), out)
    assert "\x1b[1;31mWorse than the base" in out.getvalue()
