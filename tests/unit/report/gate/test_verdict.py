import math
from dataclasses import replace

import numpy as np
import pytest

from llmopt.errors import ResultError, UsageError
from llmopt.report.gate.machine import differences
from llmopt.report.gate.matching import interleaved, match
from llmopt.report.gate.noise_floor import learn, read_noise, write_noise
from llmopt.report.gate.rules import DEFAULT_RULES, Rule, Rules
from llmopt.report.gate.verdict import judge
from llmopt.report.gate.wording import reason_text
from llmopt.results.schema import NoiseFloor, ValidityCheck

THROUGHPUT = Rules((Rule("output_throughput", "5%"),))
KLD = Rules((Rule("kld_mean", "10%"),))


def only(report):
    (row,) = report.rows
    return row


def test_a_slowdown_is_named_with_its_size(session):
    old, new = session(0, slowdown=1.1, targets=("w4",))
    row = only(judge(old, new, THROUGHPUT))
    assert row.verdict == "REGRESSED"
    assert row.change == pytest.approx(1 - 1 / 1.1, abs=0.03)
    assert row.low < row.change < row.high
    assert row.after / row.before == pytest.approx(1 / 1.1, abs=0.03)


def test_a_speedup_passes(session):
    old, new = session(0, slowdown=0.8, targets=("w4",))
    row = only(judge(old, new, THROUGHPUT))
    assert row.verdict == "PASS"
    assert row.high < 0


def test_exit_codes(session):
    old, new = session(0, slowdown=1.2)
    assert judge(old, new, THROUGHPUT).exit_code == 1
    assert judge(old, old[:1], THROUGHPUT).exit_code == 3
    assert judge(old, old, Rules((Rule("file_bytes", "0%"),))).exit_code == 0


def test_runs_by_turns_are_paired_and_others_are_not(session):
    by_turns = session(1, targets=("w4",))
    apart = session(1, targets=("w4",), interleaved=False)
    assert interleaved(by_turns[0][0], by_turns[1][0])
    assert not interleaved(apart[0][0], apart[1][0])
    assert only(judge(*by_turns, THROUGHPUT)).reason == "signed rank of pairs"
    report = judge(*apart, THROUGHPUT)
    assert "made apart" in only(report).reason
    assert any("by turns" in note for note in report.notes)


def test_pairing_cancels_what_the_machine_does(session, machine):
    drifting = machine(drift=0.5, slow_share=0.0)
    old, new = session(2, slowdown=1.1, machine=drifting, targets=("w4",))
    assert only(judge(old, new, THROUGHPUT)).verdict == "REGRESSED"
    swapped = list(reversed(new[0].runs))
    runs = tuple(replace(run, repeat=i) for i, run in enumerate(swapped))
    wrong = [replace(new[0], runs=runs)]
    assert only(judge(old, wrong, THROUGHPUT)).verdict == "INCONCLUSIVE"


def test_an_open_question_says_how_many_runs_would_decide(session, machine):
    noisy = machine(run=0.08)
    row = only(judge(*session(9, pairs=6, machine=noisy, targets=("w4",)), THROUGHPUT))
    assert row.verdict == "INCONCLUSIVE"
    assert row.further is not None
    assert row.further > 3


def test_a_cell_that_failed_is_a_regression_and_one_that_is_missing_is_open(session):
    old, new = session(0)
    failed = [replace(new[0], error="it broke", runs=(), quality=None), new[1]]
    report = judge(old, failed, THROUGHPUT)
    assert report.rows[0].verdict == "REGRESSED"
    assert "it broke" in report.rows[0].reason
    report = judge(old, new[1:], THROUGHPUT)
    assert (report.rows[0].cell_id, report.rows[0].verdict) == ("sim-base-c4", "INCONCLUSIVE")
    report = judge(old[1:], new, THROUGHPUT)
    assert any("new cells" in note and "sim-base-c4" in note for note in report.notes)


def test_other_recipes_of_the_baseline_are_left_out(session):
    old, new = session(0)
    other = replace(old[0], cell_id="other-x", recipe_name="other")
    assert match([*old, other], new).only_old == ()
    with pytest.raises(ResultError, match="no cell in common"):
        judge([other], new, THROUGHPUT)


def test_the_newest_result_of_a_cell_counts(session):
    old, new = session(0, slowdown=1.3, targets=("w4",))
    older = replace(old[0], created_at="2020-01-01T00:00:00Z")
    assert judge([*new, older], new, THROUGHPUT).exit_code != 1
    assert judge([*old, replace(new[0], created_at="2020-01-01")], new, THROUGHPUT).exit_code == 1


def test_an_invalid_cell_and_another_load_decide_nothing(session):
    old, new = session(0, slowdown=1.3, targets=("w4",))
    invalid = replace(new[0], validity=(ValidityCheck("output-length", False, "too short"),))
    row = only(judge(old, [invalid], THROUGHPUT))
    assert row.verdict == "INCONCLUSIVE"
    assert "output-length" in row.reason
    imprecise = replace(new[0], validity=(ValidityCheck("samples", False, "few"),))
    assert only(judge(old, [imprecise], THROUGHPUT)).verdict == "REGRESSED"
    other = replace(new[0], load=replace(new[0].load, concurrency=8))
    assert "different loads" in only(judge(old, [other], THROUGHPUT)).reason


def test_another_machine_is_refused_and_ratios_are_compared_in_its_place(session):
    old, new = session(0, slowdown=1.4)
    faster = replace(new[0].environment, device="other CPU", cores=8)
    moved = [replace(result, environment=faster) for result in new]
    with pytest.raises(UsageError, match=r"another machine.*device CPU before, other CPU now"):
        judge(old, moved, THROUGHPUT)
    report = judge(old, moved, THROUGHPUT, relative_to="sim-base-c4")
    assert [row.cell_id for row in report.rows] == ["sim-w4-c4"]  # both cells are 1.4 times slower
    assert report.rows[0].verdict != "REGRESSED"
    assert report.rows[0].before == pytest.approx(1.0, abs=0.1)
    with pytest.raises(UsageError, match=r"sim-base-c4, sim-w4-c4"):
        judge(old, moved, THROUGHPUT, relative_to="nothing")


def test_a_change_of_one_cell_shows_in_ratios(session):
    old, new = session(0)
    _, slower = session(0, slowdown=1.3)
    row = only(judge(old, [new[0], slower[1]], THROUGHPUT, relative_to="sim-base-c4"))
    assert row.verdict == "REGRESSED"


@pytest.mark.parametrize(
    ("change", "differs"), [({"read_bytes_per_s": 0.8}, True), ({"read_bytes_per_s": 0.95}, False)]
)
def test_ceilings_beyond_10_percent_are_another_machine(session, change, differs):
    old, new = session(0, targets=("w4",))
    ceilings = replace(new[0].ceilings, read_bytes_per_s=change["read_bytes_per_s"] * 1.1e10)
    changed = replace(new[0], ceilings=ceilings)
    assert bool(list(differences(old[0], changed, False))) is differs
    assert not list(differences(old[0], changed, True))


def test_quality_is_paired_by_windows(session):
    old, new = session(0, kld_factor=1.3)
    row = only(judge(old, new, KLD))
    assert row.verdict == "REGRESSED"
    assert row.change == pytest.approx(new[1].quality.kld_mean / old[1].quality.kld_mean - 1)
    apart = [replace(r, quality=r.quality and replace(r.quality, window_sums=())) for r in new]
    wide = only(judge(old, apart, KLD))
    assert wide.high - wide.low > 1.5 * (row.high - row.low)
    assert "unpaired" in wide.reason


def test_the_same_quality_is_exactly_the_same(session):
    old, _ = session(0)
    row = only(judge(old, old, KLD))
    assert (row.verdict, row.change, row.high) == ("PASS", 0.0, 0.0)


def test_a_change_within_the_noise_floor_is_none(session):
    old, new = session(0, kld_factor=1.5)

    def shrunk(results):
        """To a KLD of 0.0003, below the floor of 0.0004."""
        found = []
        for result in results:
            quality = result.quality
            if quality is not None:
                share = 0.0003 / quality.kld_mean * (1.5 if result in new else 1.0)
                sums = tuple(replace(w, kld=share * w.kld) for w in quality.window_sums)
                quality = replace(quality, window_sums=sums, kld_mean=share * quality.kld_mean)
            found.append(replace(result, quality=quality))
        return found

    row = only(judge(shrunk(old), shrunk(new), KLD))
    assert row.change > 0.3
    assert row.tolerance == pytest.approx(0.0004 / 0.0003)
    assert row.verdict == "PASS"


def test_a_loss_where_there_was_none_is_a_regression(session):
    old, new = session(0)
    nothing = [replace(r, quality=r.quality and replace(r.quality, kld_mean=0.0)) for r in old]
    row = only(judge(nothing, new, KLD))
    assert (row.verdict, row.change) == ("REGRESSED", math.inf)


def test_other_texts_are_not_compared(session):
    old, new = session(0)
    other = [replace(r, quality=r.quality and replace(r.quality, text_sha256="cd")) for r in new]
    row = only(judge(old, other, KLD))
    assert (row.verdict, row.reason) == ("INCONCLUSIVE", "the two are of different texts")


def test_a_larger_file_is_a_regression_without_statistics(session):
    old, new = session(0, targets=("w4",))
    larger = replace(new[0], model=replace(new[0].model, file_bytes=1020))
    row = only(judge(old, [larger], Rules((Rule("file_bytes", "1%"),))))
    assert (row.verdict, row.adjusted_p) == ("REGRESSED", None)
    assert row.change == pytest.approx(0.02)


def test_noise_is_learned_from_sessions_without_a_change(session, machine, tmp_path):
    plain = machine(slow_share=0.0)
    sessions = [match(*session(seed, machine=plain)) for seed in range(30)]
    learned = learn(sessions, ["output_throughput", "kld_mean"])
    found = learned.find("sim-w4-c4", "output_throughput")
    assert found.pair == pytest.approx(0.03 * math.sqrt(2), rel=0.2)
    assert found.session < 0.02
    assert (found.num_pairs, found.num_sessions) == (300, 30)
    assert learned.find("sim-w4-c4", "kld_mean") is None
    write_noise(tmp_path / "noise.json", learned)
    assert read_noise(tmp_path / "noise.json") == learned


def test_learned_noise_between_sessions_is_used(session):
    old, new = session(5, interleaved=False, pairs=8, slowdown=1.12, targets=("w4",))
    sessions = [match(*session(seed, targets=("w4",))) for seed in range(4)]
    learned = learn(sessions, ["output_throughput"])
    (noise,) = learned.noise
    rows = []
    for between in (0.001, 0.2):
        known = replace(learned, noise=(replace(noise, session=between),))
        rows.append(only(judge(old, new, THROUGHPUT, noise=known)))
    assert [row.verdict for row in rows] == ["REGRESSED", "INCONCLUSIVE"]


def test_a_file_that_is_no_noise_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ResultError, match="no noise file"):
        read_noise(tmp_path / "x.json")


def test_one_run_is_judged_by_blocks_of_its_requests(session):
    old, new = session(0, pairs=1, slowdown=1.5, targets=("w4",))
    row = only(judge(old, new, Rules((Rule("e2e_p50", "5%"),))))
    assert row.reason in ("too few runs", "blocks of requests, as there are too few runs")
    many = [
        [replace(r, runs=tuple(replace(x, requests=x.requests * 6) for x in r.runs)) for r in side]
        for side in (old, new)
    ]
    row = only(judge(*many, Rules((Rule("e2e_p50", "5%"),))))
    assert row.reason == "blocks of requests, as there are too few runs"
    assert row.verdict == "REGRESSED"
    assert np.isfinite(row.high)


def test_rules_about_nothing_are_refused(session):
    old, new = session(0)
    with pytest.raises(UsageError, match="no rule"):
        judge(old, new, Rules((Rule("peak_memory", "5%"),)))
    assert judge(old, new, DEFAULT_RULES).rows


def test_what_the_baseline_did_not_measure_is_said_and_blocks_nothing(session):
    old, new = session(0, targets=("w4",))
    without = [replace(old[0], quality=None)]
    report = judge(without, new, Rules((*THROUGHPUT.rules, *KLD.rules)))
    assert [row.metric for row in report.rows] == ["output_throughput"]
    assert "sim-w4-c4 has no baseline for kld_mean" in report.notes
    report = judge(old, [replace(new[0], quality=None)], KLD)
    assert only(report).reason == "the new result has no quality"
    assert report.exit_code == 3


def test_what_harms_base_and_target_alike_is_seen_in_the_base(session):
    old, new = session(0)
    worse = [replace(r, quality=r.quality and replace(r.quality, base_ppl=400.0)) for r in new]
    assert judge(old, new, DEFAULT_RULES).exit_code != 1
    (found,) = (row for row in judge(old, worse, DEFAULT_RULES).rows if row.metric == "base_ppl")
    assert (found.verdict, found.change) == ("REGRESSED", 19.0)


def test_the_new_sides_noise_does_not_widen_what_it_may_lose(session):
    old, new = session(0, kld_factor=1.5)
    noisy = NoiseFloor("bf16", 0.05, (0.04, 0.06), 1.0, (0.999, 1.001))
    loud = [replace(r, quality=r.quality and replace(r.quality, noise=noisy)) for r in new]
    row = only(judge(old, loud, KLD))
    assert (row.verdict, row.tolerance) == ("REGRESSED", 0.1)


@pytest.mark.parametrize(("after", "verdict"), [(0.0009, "PASS"), (0.0011, "REGRESSED")])
def test_an_absolute_rule_holds_where_nothing_was_lost_before(session, after, verdict):
    old, new = session(0)
    nothing = [replace(r, quality=r.quality and replace(r.quality, kld_mean=0.0)) for r in old]
    some = [replace(r, quality=r.quality and replace(r.quality, kld_mean=after)) for r in new]
    rules = Rules((Rule("kld_mean", absolute=0.001),))
    assert only(judge(nothing, some, rules)).verdict == verdict


@pytest.mark.parametrize(
    "name", ["requests-served", "output-length", "finish-reasons", "token-counts"]
)
def test_serving_worse_than_before_is_a_regression(session, name):
    old, new = session(0, targets=("w4",))
    served = replace(old[0], validity=(ValidityCheck(name, True, "all"),))
    failing = replace(new[0], validity=(ValidityCheck(name, False, "8 of 16"),))
    row, _ = judge([served], [failing], THROUGHPUT).rows
    assert (row.metric, row.verdict, row.reason) == (name, "REGRESSED", "8 of 16")
    only(judge([failing], [failing], THROUGHPUT))  # it was so before


def test_another_runtime_is_no_change_of_this_one(session):
    old, new = session(0, targets=("w4",))
    other = replace(new[0], backend=replace(new[0].backend, name="vllm"))
    row = only(judge(old, [other], THROUGHPUT))
    assert row.verdict == "INCONCLUSIVE"
    assert row.reason == "the baseline ran on llmopt, the new on vllm"


def test_the_baseline_of_the_same_machine_and_runtime_goes_before_a_newer_one(session):
    old, new = session(0)
    elsewhere = replace(old[0].environment, device="other CPU")
    newer = [
        replace(result, environment=elsewhere, created_at="2100-01-01T00:00:00Z") for result in old
    ]
    assert judge([*old, *newer], new, THROUGHPUT).rows == judge(old, new, THROUGHPUT).rows


def test_ratios_to_a_reference_of_another_machine_are_none(session):
    old, new = session(0)
    elsewhere = replace(old[0].environment, device="other CPU")
    mixed = [replace(old[0], environment=elsewhere), old[1]]
    row = only(judge(mixed, new, THROUGHPUT, relative_to="sim-base-c4"))
    assert "the reference sim-base-c4 is of another machine" in row.reason


def test_noise_of_another_machine_is_refused(session):
    old, new = session(0)
    learned = learn([match(*session(seed)) for seed in range(3)], ["output_throughput"])
    judge(old, new, THROUGHPUT, noise=learned)
    with pytest.raises(UsageError, match="learned on a server, and the results are of CPU"):
        judge(old, new, THROUGHPUT, noise=replace(learned, machine="a server"))


def test_too_few_runs_say_how_many_are_missing(session):
    old, new = session(0, pairs=2, targets=("w4",))
    row = only(judge(old, new, Rules((Rule("request_throughput", "5%"),))))
    assert row.verdict == "INCONCLUSIVE"
    assert reason_text(row).endswith("at least 1 more runs of each side are needed")
