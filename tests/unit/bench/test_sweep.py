import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.bench import examine, sweep
from llmopt.bench.examine import QualityComparison
from llmopt.bench.metrics import summarize_cell
from llmopt.bench.observer import SilentObserver
from llmopt.data import read_text
from llmopt.errors import ModelError, OutputError, UsageError
from llmopt.quality import measure
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.schema import (
    Base,
    Calibration,
    Load,
    Quality,
    QuantizeSpec,
    Recipe,
    Target,
)
from llmopt.results.schema import CellResult
from llmopt.results.store import read_results

pytestmark = pytest.mark.usefixtures("known_ceilings", "short_texts")


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginnings of the bundled texts, which take less time to tokenize."""
    for module in ("bench.sweep", "quality.evaluation_text"):
        monkeypatch.setattr(f"llmopt.{module}.read_text", lambda name: read_text(name)[:20_000])


class Recorder(SilentObserver):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.open = 0
        self.failed: dict[str, str] = {}
        self.progress: list[tuple[int, int]] = []

    def stage_started(self, stage: str) -> None:
        assert self.open == 0
        self.open += 1
        self.stages.append(stage)

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        assert 0 <= done <= total
        self.progress.append((done, total))

    def stage_finished(self) -> None:
        self.open -= 1

    def cell_failed(self, cell_id: str, reason: str) -> None:
        self.failed[cell_id] = reason


@pytest.fixture
def recipe(tiny_model_path: Path) -> Recipe:
    model = str(tiny_model_path)
    return Recipe(
        name="tiny",
        base=Base(model, "float32"),
        targets=(
            Target("bf16", model, "bfloat16"),
            Target("rtn", model, quantize=QuantizeSpec("rtn", 4, 32)),
        ),
        loads=(Load(1, 3, 16, 4), Load(2, 4, 16, 4)),
        repeats=2,
        warmup_requests=1,
        calibration=Calibration(num_samples=4, sample_tokens=64),
        quality=Quality(window=32, num_windows=2),
    )


@pytest.fixture
def run(tmp_path: Path):
    def run_recipe(recipe: Recipe, observer: Any = None) -> list[CellResult]:
        paths = sweep.run_recipe(
            recipe, tmp_path / "results", tmp_path / "work", observer or Recorder()
        )
        results, errors = read_results(paths)
        assert errors == []
        return results

    return run_recipe


def runs_made(monkeypatch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list[Any]:
    """Note (load, repeat) of every run; Ctrl-C arrives in run number `interrupt_at`."""
    made: list[Any] = []
    real = sweep.measure_run

    def noting(served: Any, load: Any, **rest: Any) -> Any:
        if len(made) == interrupt_at:
            raise KeyboardInterrupt
        result = real(served, load, **rest)
        made.append((load.spec.concurrency, str(served.model.dtype), rest["repeat"]))
        return result

    monkeypatch.setattr(sweep, "measure_run", noting)
    return made


def test_every_cell_becomes_one_whole_result(recipe, run, known_ceilings):
    observer = Recorder()
    results = run(recipe, observer)
    assert [(r.target, r.load.concurrency) for r in results] == [
        (target, concurrency) for concurrency in (1, 2) for target in ("fp32", "bf16", "rtn")
    ]
    for result in results:
        assert result.error is None
        assert [run.repeat for run in result.runs] == [0, 1]
        assert all(len(run.requests) == result.load.num_requests for run in result.runs)
        assert result.base_target == "fp32"
        assert result.ceilings.gemm_flops == known_ceilings.gemm_flops
        passed = {check.name: check.passed for check in result.validity}
        assert passed["requests-served"]
        assert passed["output-length"]
        assert passed["prompt-length"]
        assert passed["warm-up"]
        assert result.summary == summarize_cell(result)
        assert result.summary.mfu > 0
        assert result.summary.mbu > 0
    assert [r.model.scheme for r in results[:3]] == ["fp32", "bf16", "rtn-w4g32"]
    assert observer.failed == {}
    assert observer.open == 0
    assert observer.progress[-1] == (42, 42)


def test_quality_is_measured_once_per_target_and_not_for_the_base(recipe, run, monkeypatch):
    measured = []
    real = examine.measure_quality

    def counting(*arguments: Any, **rest: Any) -> Any:
        measured.append(arguments)
        return real(*arguments, **rest)

    monkeypatch.setattr(examine, "measure_quality", counting)
    quality = replace(recipe.quality, noise=False)
    sweep_results = run(replace(recipe, quality=quality))
    results = {(r.target, r.load.concurrency): r.quality for r in sweep_results}
    assert len(measured) == 2
    assert results["rtn", 1].noise is results["rtn", 1].verdict is None
    assert results["fp32", 1] is results["fp32", 2] is None
    assert results["rtn", 1] == results["rtn", 2]
    assert results["rtn", 1].base_name == "fp32"
    assert results["rtn", 1].kld_mean > results["bf16", 1].kld_mean > 0


def test_the_noise_floor_is_measured_once_and_is_the_target_that_it_equals(
    recipe, run, monkeypatch
):
    scored = []
    real = examine.score_windows

    def counting(target: Any, *arguments: Any, **rest: Any) -> Any:
        scored.append(target.scheme)
        return real(target, *arguments, **rest)

    monkeypatch.setattr(examine, "score_windows", counting)
    same = Target("same", recipe.base.model, "float32")
    observer = Recorder()
    recipe = replace(recipe, targets=(same, *recipe.targets), loads=())
    quality = {result.target: result.quality for result in run(recipe, observer)}
    assert scored == ["bf16"]
    assert observer.stages.count("measure the noise floor") == 1
    assert {record.noise for record in quality.values() if record} == {quality["bf16"].noise}
    assert 0 < quality["bf16"].noise.kld_mean == pytest.approx(quality["bf16"].kld_mean)
    assert quality["bf16"].verdict.times_noise == 1
    assert quality["bf16"].verdict.label == quality["same"].verdict.label == "indistinguishable"
    assert quality["same"].kld_mean == quality["same"].verdict.times_noise == 0
    assert quality["rtn"].verdict.times_noise > 1


def test_quality_is_that_of_the_activations_which_are_served(
    recipe, run, tmp_path, monkeypatch, has_native
):
    if not has_native:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    quantized = QuantizeSpec("rtn", 4, 32)
    fast = Target("fast", recipe.base.model, "bfloat16", quantized)
    exact = replace(fast, name="exact", engine=EngineSettings(activations="bf16"))
    recipe = replace(recipe, targets=(fast, exact), repeats=1, loads=recipe.loads[:1])
    results = {result.target: result for result in run(recipe)}
    assert "native w4a8" in results["fast"].model.kernels
    assert "native w4a8" not in results["exact"].model.kernels
    assert results["fast"].model.path_hash == results["exact"].model.path_hash
    assert results["fast"].quality.kld_mean != results["exact"].quality.kld_mean

    (checkpoint,) = (tmp_path / "work").glob("*-rtn-*")
    scored = []
    real = examine.score_windows

    def counting(target: Any, *arguments: Any, **rest: Any) -> Any:
        scored.append(target.name)
        return real(target, *arguments, **rest)

    monkeypatch.setattr(examine, "score_windows", counting)
    monkeypatch.setattr(measure, "score_windows", counting)
    model = str(checkpoint)
    of_quantized = replace(
        recipe,
        name="of-quantized",
        base=Base(model, "float32"),
        targets=(
            Target("fast", model, "bfloat16"),
            Target("exact", model, "bfloat16", engine=exact.engine),
        ),
        loads=(),
    )
    quality = {result.target: result.quality for result in run(of_quantized)}
    assert scored == ["fp32", "fast"]  # the noise run is the exact one
    assert quality["exact"].kld_mean == quality["exact"].noise.kld_mean
    assert quality["fast"].kld_mean > quality["exact"].kld_mean > 0


def test_an_interrupted_sweep_keeps_the_quality_of_each_activations(recipe, run, monkeypatch):
    """Journals tell targets apart by their settings."""
    quantized = QuantizeSpec("rtn", 4, 32)
    target = Target("t", recipe.base.model, "bfloat16", quantized)
    recipe = replace(recipe, targets=(target,), repeats=1, loads=recipe.loads[:1])

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "measure_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    measured = []
    real = QualityComparison.measure

    def counting(self: Any, prepared: Any, *arguments: Any) -> Any:
        measured.append(prepared.target.activations)
        return real(self, prepared, *arguments)

    monkeypatch.setattr(QualityComparison, "measure", counting)
    exact = replace(target, engine=EngineSettings(activations="bf16"))
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "measure_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(replace(recipe, targets=(exact,)))
    assert measured == ["bf16"]
    run(replace(recipe, targets=(exact,)))
    assert measured == ["bf16"]


def test_a_base_in_16_bits_has_no_noise_floor(recipe, run):
    base = replace(recipe.base, dtype="bfloat16")
    results = run(replace(recipe, base=base, targets=recipe.targets[1:], loads=()))
    assert results[1].quality.kld_mean > 0
    assert results[1].quality.noise is results[1].quality.verdict is None


def test_repeats_are_interleaved_over_the_cells(recipe, run, monkeypatch):
    made = runs_made(monkeypatch)
    run(recipe)
    assert made == [
        (concurrency, dtype, repeat)
        for repeat in (0, 1)
        for concurrency in (1, 2)
        for dtype in ("torch.float32", "torch.bfloat16", "torch.bfloat16")
    ]


def test_every_target_gets_the_same_prompts_and_every_repeat_others(recipe, run, monkeypatch):
    from llmopt.bench import speed

    asked: list[Any] = []
    real = speed.run_load

    async def noting(backend: Any, plan: Any, **rest: Any) -> Any:
        asked.append((plan.concurrency, rest["repeat"], plan))
        return await real(backend, plan, **rest)

    monkeypatch.setattr(speed, "run_load", noting)
    run(recipe)
    by_run: dict[Any, set[Any]] = {}
    for concurrency, repeat, plan in asked:
        prompts = tuple(request.prompt_token_ids for request in (*plan.warmup, *plan.measured))
        by_run.setdefault((concurrency, repeat), set()).add(prompts)
    assert [len(prompts) for prompts in by_run.values()] == [1] * 4
    beginnings = [prompt for prompts in set.union(*by_run.values()) for prompt in prompts]
    assert len(set(beginnings)) == len(beginnings) == 2 * (4 + 5)


def test_measuring_again_adds_files_and_overwrites_none(recipe, run, tmp_path):
    small = replace(recipe, targets=(), loads=recipe.loads[:1], quality=None)
    run(small)
    (first,) = (tmp_path / "results").rglob("0001-*.json")
    content = first.read_bytes()
    run(small)
    files = sorted(path.name[:4] for path in (tmp_path / "results").rglob("*.json"))
    assert files == ["0001", "0002"]
    assert first.read_bytes() == content


@pytest.mark.parametrize("interrupt_at", [0, 5, 11])
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    recipe, run, monkeypatch, tmp_path, interrupt_at
):
    with monkeypatch.context() as patch:
        before = runs_made(patch, interrupt_at)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
        assert len(before) == interrupt_at
    journals = sorted((tmp_path / "results").rglob("partial.json"))
    kept = [run for path in journals for run in json.loads(path.read_text())["runs"]]
    assert len(kept) == interrupt_at
    assert not list((tmp_path / "results").rglob("0001-*"))

    monkeypatch.setattr(examine, "measure_quality", None)  # it is in the journals
    after = runs_made(monkeypatch)
    results = run(recipe)
    assert len(after) == 12 - interrupt_at
    starts = {run.started_at for result in results for run in result.runs}
    assert {run["started_at"] for run in kept} <= starts
    assert all([run.repeat for run in result.runs] == [0, 1] for result in results)
    assert not list((tmp_path / "results").rglob("partial.json"))


def test_a_journal_of_other_weights_or_settings_is_not_taken_up(recipe, run, monkeypatch):
    with monkeypatch.context() as patch:
        runs_made(patch, interrupt_at=6)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    made = runs_made(monkeypatch)
    run(replace(recipe, seed=1))
    assert len(made) == 12


def test_what_cannot_be_prepared_fails_alone(recipe, run, tmp_path):
    broken = Target("gone", str(tmp_path / "missing"))
    wrong = Target("g48", recipe.base.model, quantize=QuantizeSpec("rtn", 4, 48))
    observer = Recorder()
    results = run(
        replace(recipe, targets=(broken, wrong, *recipe.targets), loads=recipe.loads[:1]), observer
    )
    assert [r.error is None for r in results] == [True, False, False, True, True]
    assert "missing" in results[1].error
    assert "48" in results[2].error
    for result in results[1:3]:
        assert result.summary is None
        assert result.validity == result.runs == ()
    assert set(observer.failed) == {"tiny-gone-c1", "tiny-g48-c1"}


def test_a_load_that_the_model_cannot_take_fails_alone(recipe, run):
    long = Load(3, 3, 600, 4)  # the model reads 512 tokens
    results = run(replace(recipe, loads=(recipe.loads[0], long), targets=()))
    assert [r.error is None for r in results] == [True, False]
    assert "max_model_len" in results[1].error
    assert results[1].model is not None


def test_a_run_that_breaks_ends_its_cell_and_keeps_the_runs_before(recipe, run, monkeypatch):
    real = sweep.measure_run

    def breaking(served: Any, load: Any, **rest: Any) -> Any:
        if (load.spec.concurrency, rest["repeat"]) == (2, 1):
            raise RuntimeError("the allocator\n  is out of memory")
        return real(served, load, **rest)

    monkeypatch.setattr(sweep, "measure_run", breaking)
    results = run(replace(recipe, targets=(), quality=None))
    assert results[0].error is None
    assert results[1].error == "RuntimeError: the allocator is out of memory"
    assert [run.repeat for run in results[1].runs] == [0]


def test_runs_that_cannot_be_judged_are_kept_and_spoil_no_other_cell(recipe, run, monkeypatch):
    real = sweep.close_cell

    def breaking(opened: Any, *rest: Any) -> Any:
        if opened.error is None and opened.plan.spec.concurrency == 2:
            raise ZeroDivisionError("float division by zero")
        return real(opened, *rest)

    monkeypatch.setattr(sweep, "close_cell", breaking)
    observer = Recorder()
    results = run(replace(recipe, targets=(), quality=None), observer)
    assert results[0].error is None
    assert results[0].summary is not None
    assert results[1].error == "ZeroDivisionError: float division by zero"
    assert [run.repeat for run in results[1].runs] == [0, 1]
    assert observer.failed == {results[1].cell_id: results[1].error}


def test_a_target_with_another_tokenizer_has_no_quality(
    recipe, run, make_tiny_llama, tiny_model_path
):
    from transformers import AutoTokenizer

    other = make_tiny_llama(vocab_size=256, bos_token_id=0, eos_token_id=0, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    tokenizer.add_tokens([" "])
    tokenizer.save_pretrained(other)
    target = Target("other", str(other))
    results = run(replace(recipe, targets=(target,), loads=recipe.loads[:1]))
    assert "different tokens" in results[1].error


def test_nothing_is_measured_without_a_base_a_text_or_a_place(recipe, run, tmp_path):
    with pytest.raises(ModelError, match="missing"):
        run(replace(recipe, base=Base(str(tmp_path / "missing"))))
    with pytest.raises(UsageError, match="windows"):
        run(replace(recipe, quality=Quality(window=500, num_windows=10**6)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        sweep.run_recipe(recipe, tmp_path / "file" / "results", tmp_path / "work", Recorder())
    with pytest.raises(UsageError, match="cuda"):
        sweep.run_recipe(recipe, tmp_path / "r", tmp_path / "w", Recorder(), device="cuda:99")


@pytest.fixture
def quality_only(recipe: Recipe, gguf_source: Path) -> Recipe:
    model = str(gguf_source)
    schemes = ("rtn-w4g32", "gptq-w4g32", "nf4", "gguf-q8_0")
    return replace(
        recipe,
        base=Base(model, "float32"),
        targets=tuple(Target(name, model, "float32", name) for name in schemes),
        loads=(),
    )


def test_without_loads_there_is_quality_and_what_it_took(quality_only, run, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "measure_run", None)
    monkeypatch.setattr("llmopt.bench.site.measure_ceilings", None)
    observer = Recorder()
    base, *results = run(quality_only, observer)
    assert observer.failed == {}
    assert results[0].cell_id == "tiny-rtn-w4g32-quality"
    assert (base.quality, base.quantization) == (None, None)
    for result in (base, *results):
        assert (result.error, result.load, result.summary, result.ceilings) == (None,) * 4
        assert result.runs == result.validity == ()
    for result in results:
        assert result.quality.kld_mean > 0
        assert result.model.scheme == result.quantization.scheme == result.target
        record = result.quantization
        assert (record.engine, record.engine_version) == ("llmopt", result.environment.llmopt)
        assert record.seconds > 0
        assert record.host_peak_bytes >= record.host_before_bytes > 0
        assert record.made_at[:2] == "20"
    seen = {r.target: r.quantization.calibration for r in results}
    assert seen["rtn-w4g32"] is seen["nf4"] is None
    assert (seen["gptq-w4g32"].num_samples, seen["gguf-q8_0"].sample_tokens) == (4, 64)
    bits = {r.target: r.model.linear_bits_per_weight for r in results}
    assert bits["gguf-q8_0"] == 8.5
    again = run(quality_only)
    assert [r.quantization for r in again] == [None, *(r.quantization for r in results)]
    assert [r.quality for r in again] == [None, *(r.quality for r in results)]


def test_a_quality_only_sweep_goes_on_where_it_stopped(quality_only, run, monkeypatch, tmp_path):
    real, measured = examine.measure_quality, []

    def interrupted(*arguments: Any, **rest: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(real(*arguments, **rest))
        return measured[-1]

    with monkeypatch.context() as patch:
        patch.setattr(examine, "measure_quality", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(quality_only)
    kept = list((tmp_path / "results").rglob("partial.json"))
    assert len(kept) == 3  # of the base, too
    counted = []
    monkeypatch.setattr(
        examine, "measure_quality", lambda *a, **k: counted.append(1) or real(*a, **k)
    )
    results = run(quality_only)
    assert len(counted) == 2
    assert [r.quality for r in results[1:3]] == measured


def test_a_scheme_that_cannot_be_made_is_a_row_that_says_why(quality_only, run, tmp_path):
    odd = Target("odd", quality_only.base.model, quantize="rtn-w4g48")
    theirs = QuantizeSpec("gptq", 4, 32, engine="gptqmodel")
    absent = Target("absent", quality_only.base.model, quantize=theirs)
    observer = Recorder()
    results = run(replace(quality_only, targets=(odd, absent, *quality_only.targets)), observer)
    assert [r.error is None for r in results] == [True, False, False, True, True, True, True]
    assert "48" in results[1].error
    assert "llmopt backend install gptqmodel" in results[2].error
    assert set(observer.failed) == {"tiny-odd-quality", "tiny-absent-quality"}


def test_a_gguf_file_is_served_like_any_other(quality_only, run, recipe, gguf_source, tmp_path):
    first = run(replace(quality_only, targets=quality_only.targets[-1:]))
    (file,) = (tmp_path / "work").rglob("*.gguf")
    target = Target("file", str(file), "float32")
    results = run(replace(quality_only, targets=(target,), loads=recipe.loads[:1]))
    assert [r.error for r in results] == [None, None]
    assert results[1].summary.output_throughput > 0
    assert results[1].model.scheme == "gguf-q8_0"
    assert results[1].quality.kld_mean == first[1].quality.kld_mean
    assert results[1].quantization == first[1].quantization


def test_an_open_load_and_a_search_become_cells_of_their_own(recipe, run):
    loads = (
        Load(2, 6, 16, 4, "poisson", rate=50.0, slo="ttft<10s"),
        Load(2, 8, 16, 4, "poisson", slo="ttft_p50<10s"),
        Load(1, 3, 16, 4, "trace", trace="no-such-trace.csv"),
    )
    observer = Recorder()
    results = run(replace(recipe, targets=(), quality=None, loads=loads), observer)
    assert [r.cell_id for r in results] == [
        "tiny-fp32-poisson-r50",
        "tiny-fp32-poisson-slo",
        "tiny-fp32-trace",
    ]
    known, found, missing = results
    assert (known.load.kind, known.load.rate) == ("poisson", 50.0)
    assert known.summary.goodput.share == 1
    assert found.load.rate > 0
    assert found.error is None
    assert len(found.runs) == 2
    assert "no-such-trace.csv cannot be read" in missing.error
    assert "search the rate of tiny-fp32-poisson-slo" in observer.stages
    assert observer.open == 0
