"""Records of targets in other runtimes."""

import pytest

from llmopt.quality.external.measure import measure_source
from llmopt.quality.measure import measure_quality
from llmopt.quality.noise import NoiseScores
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import score_windows

OPTIONS = QualityOptions(num_resamples=200)


def sources(table_source, *noises):
    return [table_source(noise=noise, rows_per_chunk=99) for noise in noises]


def test_logits_of_another_runtime_are_measured_as_ours_are(table_source, windows):
    base, target = sources(table_source, 0, 0.3)
    record = measure_source(target, "llama.cpp", base, windows, OPTIONS)
    ours = measure_quality(target, base, windows, OPTIONS)
    assert (record.source, record.lower_bound) == ("llama.cpp", False)
    assert record.kld_mean == ours.kld_mean > 0
    assert record.ppl == ours.ppl


def test_a_server_gives_a_lower_bound_and_says_so(table_source, truncated_table, windows):
    base, target = sources(table_source, 0, 0.3)
    exact = measure_quality(target, base, windows, OPTIONS)
    record = measure_source(truncated_table(target, k=3), "vllm", base, windows, OPTIONS)
    assert (record.source, record.lower_bound) == ("vllm", True)
    assert 0 < record.kld_mean < exact.kld_mean
    assert record.ppl == pytest.approx(exact.ppl, rel=1e-5)
    assert record.top1_agreement == exact.top1_agreement


def test_a_lower_bound_never_proves_that_there_is_no_loss(table_source, truncated_table, windows):
    base, quiet, loud = sources(table_source, 0, 0.02, 1.5)

    def floor(scored):
        return NoiseScores.from_scores(score_windows(quiet, base, scored), "bf16")

    exact = measure_source(quiet, "llmopt", base, windows, OPTIONS, noise=floor)
    assert exact.verdict is not None
    assert exact.verdict.label == "indistinguishable"
    same = truncated_table(quiet, k=3)
    assert measure_source(same, "vllm", base, windows, OPTIONS, noise=floor).verdict is None
    damaged = truncated_table(loud, k=3)
    verdict = measure_source(damaged, "vllm", base, windows, OPTIONS, noise=floor).verdict
    assert verdict is not None
    assert verdict.label in ("above noise", "worse")


def test_each_finished_window_is_heard_of(table_source, truncated_table, windows):
    base, target = sources(table_source, 0, 0.3)
    for source, kind in [(target, "transformers"), (truncated_table(target, k=3), "vllm")]:
        heard = []
        measure_source(
            source, kind, base, windows, OPTIONS, on_window=lambda *done, h=heard: h.append(done)
        )
        assert heard == [(done + 1, 9) for done in range(9)]
