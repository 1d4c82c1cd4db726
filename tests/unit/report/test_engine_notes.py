"""Engines that a recipe compares: figures as columns, differences and gains as notes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.report.column_choice import columns_of
from llmopt.report.engine_figures import engine_figures
from llmopt.report.export import flat
from llmopt.report.report import make_report
from llmopt.report.rows import make_rows
from llmopt.results.schema import BackendFacts, CellResult, RequestRecord, RunRecord

MakeResult = Callable[..., CellResult]

COUNTERS = {
    "num_prefix_hit_tokens": 30.0,
    "num_prompt_tokens": 100.0,
    "empty_slot_steps": 10.0,
    "held_slot_steps": 200.0,
    "token_slot_steps": 190.0,
    "max_tokens_slot_steps": 380.0,
    "model_len_slot_steps": 760.0,
    "num_accepted_tokens": 24.0,
    "num_draft_tokens": 40.0,
    "num_drafts": 20.0,
    "num_decodes": 20.0,
    "num_decode_tokens": 44.0,
    "num_drafted_at_1": 20.0,
    "num_accepted_at_1": 16.0,
    "num_drafted_at_2": 20.0,
    "num_accepted_at_2": 8.0,
    "peak_kv_bytes": 4e6,
}
PLAIN = {**COUNTERS, "num_prefix_hit_tokens": 0.0, "peak_kv_bytes": 8e6}
STATIC = {**COUNTERS, "empty_slot_steps": 60.0}
for _name in [name for name in PLAIN if "draft" in name or "decode" in name or "accepted" in name]:
    del PLAIN[_name]


def run(repeat: int, counters: dict[str, float], ttft_s: float) -> RunRecord:
    times = (0.5 + ttft_s, 2.0)
    request = RequestRecord("r", 4, 2, 0.5, 0.5, *times, 2.0, times, (1, 1), "length")
    return RunRecord(repeat, "2026-11-22T10:00:00Z", 0, 1.0, (request,), counters)


@pytest.fixture
def engines(make_result: MakeResult) -> list[CellResult]:
    """Base and target of one model, without and with what its engine can do."""
    settings = {"policy": "fcfs", "prefix_caching": False, "speculation": None}
    guessing = {"proposer": "ngram", "num_draft_tokens": 5, "synthetic_acceptance": None}
    base = make_result("fp32")
    target = make_result("bf16", quality=None)
    return [
        replace(
            base,
            backend=BackendFacts("llmopt", "1", settings),
            runs=tuple(run(i, PLAIN, 0.4) for i in range(3)),
        ),
        replace(
            target,
            backend=BackendFacts(
                "llmopt", "1", settings | {"prefix_caching": True, "speculation": guessing}
            ),
            runs=tuple(run(i, COUNTERS, 0.1) for i in range(3)),
        ),
    ]


def test_figures_are_of_the_sums_of_all_runs(engines: list[CellResult]) -> None:
    twice = replace(engines[1], runs=(engines[1].runs[0], run(1, COUNTERS | {"num_drafts": 60}, 1)))
    figures = engine_figures(twice)
    assert figures is not None
    assert (figures.hit_rate, figures.waste_share) == (0.3, 0.05)
    assert (figures.max_tokens_waste_share, figures.model_len_waste_share) == (0.5, 0.75)
    assert (figures.acceptance_rate, figures.acceptance_by_position) == (0.6, (0.8, 0.4))
    assert (figures.mean_draft_tokens, figures.tokens_per_step) == (80 / 80, 2.2)
    assert figures.peak_kv_bytes == 4e6


def test_what_is_not_counted_is_not_known(make_result: MakeResult) -> None:
    figures = engine_figures(make_result())
    assert figures is not None
    values = [getattr(figures, name) for name in figures.__dataclass_fields__]
    assert set(values) == {None, ()}
    assert engine_figures(make_result(runs=())) is None


def test_figures_that_differ_take_the_place_of_the_quality(engines: list[CellResult]) -> None:
    rows = make_rows(engines)
    columns = {c.header.replace("\n", " "): [c.text(row) for row in rows] for c in columns_of(rows)}
    assert list(columns) == [
        *("target", "conc", "size MB"),
        *("cache hits", "KV MB", "drafts taken", "tok/ step"),
        *("TTFT ms", "TPOT ms", "tok/s", "speed -up"),
    ]
    assert columns["cache hits"] == ["0.0%", "30%"]
    assert columns["KV MB"] == ["8.00", "4.00"]
    assert columns["drafts taken"] == ["–", "60%"]
    assert columns["tok/ step"] == ["–", "2.20"]


def test_lengths_have_a_column_where_they_differ(engines: list[CellResult]) -> None:
    longer = [replace(r, load=replace(r.load, prompt_tokens=512)) for r in engines if r.load]
    rows = make_rows([*engines, *longer])
    (column,) = (c for c in columns_of(rows) if c.header == "tokens\nin+out")
    assert [column.text(row) for row in rows] == ["128+64"] * 2 + ["512+64"] * 2


def test_beside_quality_there_are_only_notes(
    engines: list[CellResult], make_result: MakeResult
) -> None:
    rows = make_rows([*engines, make_result()])
    assert "cache\nhits" not in [column.header for column in columns_of(rows)]
    assert any(note.startswith("Engine of") for note in make_report(engines).notes)


def test_figures_that_are_alike_have_no_column(engines: list[CellResult]) -> None:
    same = [replace(result, runs=engines[0].runs) for result in engines]
    assert "KV\nMB" not in [column.header for column in columns_of(make_rows(same))]


def test_notes_say_how_engines_differ_and_what_came_of_it(engines: list[CellResult]) -> None:
    notes = make_report(engines).notes
    assert "Engine of fp32: prefix_caching off, speculation none." in notes
    assert "Engine of bf16: prefix_caching on, speculation ngram, at most 5 tokens." in notes
    (note,) = (note for note in notes if note.startswith("bf16 at concurrency 1 (128 + 64 tokens)"))
    assert "throughput 1.86x [" in note
    assert "TTFT gain 4.00x [4.00, 4.00]" in note
    assert "60 % of drafts of 2.0 tokens taken (by position 80, 40 %), 2.20 tokens per step" in note
    # a step takes 2.2 / 1.86 of a plain one: 1 + a + a^2 = 1.186
    assert "break-even at 16 %" in note
    assert any(note.startswith("cache hits: ") for note in notes)


def test_activations_that_differ_are_told_and_defined(engines: list[CellResult]) -> None:
    settings = ({"activations": "auto"}, {"activations": "bf16"})
    served = [
        replace(result, backend=BackendFacts("llmopt", "1", each))
        for result, each in zip(engines, settings, strict=True)
    ]
    notes = make_report(served).notes
    assert "Engine of fp32: activations auto." in notes
    assert "Engine of bf16: activations bf16." in notes
    assert sum(note.startswith("activations: ") for note in notes) == 1
    assert not any(note.startswith("cache hits: ") for note in notes)
    alike = [replace(each, backend=served[0].backend) for each in served]
    assert not any("activations" in note for note in make_report(alike).notes)


def test_waste_is_spoken_of_where_it_differs(engines: list[CellResult]) -> None:
    said = "5.0 % of the held cache slots empty (contiguous rows of prompt + max_tokens: 50 %, of"
    assert not any(said in note for note in make_report(engines).notes)
    wasting = replace(engines[0], runs=tuple(run(i, STATIC, 0.4) for i in range(3)))
    notes = make_report([wasting, engines[1]]).notes
    assert sum(said in note for note in notes) == 1
    assert any("30.0 % of the held cache slots empty" in note for note in notes)
    headers = [column.header for column in columns_of(make_rows([wasting, engines[1]]))]
    assert "KV\nwaste" in headers


def test_a_synthetic_acceptance_is_said(engines: list[CellResult]) -> None:
    settings = dict(engines[1].backend.settings)
    settings["speculation"] = {
        "proposer": "ngram", "num_draft_tokens": 5, "synthetic_acceptance": 0.7
    }  # fmt: skip
    synthetic = replace(engines[1], backend=BackendFacts("llmopt", "1", settings))
    notes = make_report([engines[0], synthetic]).notes
    assert any("ngram, at most 5 tokens, synthetic acceptance 0.7." in note for note in notes)


def test_one_engine_has_no_notes(make_result: MakeResult) -> None:
    notes = make_report([make_result("fp32"), make_result()]).notes
    assert not any("Engine of" in note or "cache hits:" in note for note in notes)


def test_quality_of_random_weights_is_not_applicable(make_result: MakeResult) -> None:
    real = make_result("fp32")
    assert real.model is not None
    dummy = make_result(quality=None)
    dummy = replace(dummy, model=replace(dummy.model, is_dummy=True, note="They are random."))
    rows = make_rows([real, dummy])
    (column,) = (column for column in columns_of(rows) if column.header.startswith("KLD"))
    assert [column.text(row) for row in rows] == ["base", "n/a"]
    assert "They are random." in make_report([real, dummy]).notes
    assert flat(rows[1])["is_dummy"] is True


def test_programs_get_the_figures_too(engines: list[CellResult]) -> None:
    values = flat(make_rows(engines)[1])
    assert values["kv_waste_share"] == 0.05
    assert values["peak_kv_bytes"] == 4e6
    assert values["tokens_per_step"] == 2.2
    assert values["ttft_speedup"] == pytest.approx(4.0)
    assert values["ttft_speedup_low"] == pytest.approx(4.0)
    assert values["tpot_speedup_low"] is not None
