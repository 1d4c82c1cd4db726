import json

import pytest

from llmopt.bench import checkpoints, elsewhere
from llmopt.bench.checkpoints import PlannedCheckpoint, find_checkpoint, make_checkpoints
from llmopt.bench.observer import SilentObserver
from llmopt.bench.provenance import quantization_record
from llmopt.bench.quantization import read_quantization
from llmopt.errors import BackendError, QuantizationError
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize import output
from llmopt.quantize.calibration import pack_corpus
from llmopt.quantize.calibration_source import open_corpus
from llmopt.quantize.engines.request import EngineSummary
from llmopt.recipe.schema import QuantizeSpec

SCHEMES = ("rtn-w4g32", "gptq-w4g32", "nf4")


class Recorder(SilentObserver):
    def __init__(self):
        self.stages = []
        self.steps = []

    def stage_started(self, stage):
        self.stages.append(stage)

    def stage_advanced(self, done, total, detail):
        self.steps.append(detail)


@pytest.fixture(scope="module")
def make_plan(tiny_model_path, tmp_path_factory):
    calibration = pack_corpus(
        load_tokenizer(tiny_model_path),
        open_corpus("bundled"),
        num_samples=4,
        sample_tokens=64,
        seed=0,
    )

    def plan(directory, quantize, name=None, source=tiny_model_path):
        quantization = read_quantization(quantize)
        seen = calibration if quantization.job.scheme.needs_calibration else None
        return PlannedCheckpoint(source, directory / (name or str(quantize)), quantization, seen)

    return plan


@pytest.fixture
def passes(monkeypatch):
    """The names of the schemes of every pass that was really run."""
    done = []
    real = checkpoints.quantize_jobs

    def counting(source, outputs, *rest):
        done.append([job.label for job in outputs.values()])
        return real(source, outputs, *rest)

    monkeypatch.setattr(checkpoints, "quantize_jobs", counting)
    return done


def make(plans, observer=None):
    return make_checkpoints(plans, observer or SilentObserver(), device="cpu")


def test_all_schemes_of_a_model_are_made_in_one_pass_and_once(make_plan, tmp_path, passes):
    plans = [make_plan(tmp_path, scheme) for scheme in SCHEMES]
    observer = Recorder()
    assert make(plans, observer) == {}
    assert passes == [list(SCHEMES)]
    assert observer.stages == ["quantize 3 schemes"]
    assert any(step.startswith("gptq-w4g32: model.layers.1.") for step in observer.steps)
    for plan in plans:
        path = find_checkpoint(plan.directory)
        assert path == plan.directory
        assert quantization_record(path).scheme == plan.quantization.label
    more = [*plans, make_plan(tmp_path, "fp8")]
    assert make(more) == {}
    assert passes[1:] == [["fp8"]]
    assert make(more) == {}
    assert len(passes) == 2


def test_one_scheme_in_two_formats_takes_two_passes(make_plan, tmp_path, passes):
    specs = [QuantizeSpec("rtn", 4, 32, format=name) for name in ("gptq", "awq")]
    plans = [make_plan(tmp_path, spec, name=spec.format) for spec in specs]
    assert make(plans) == {}
    assert passes == [["rtn-w4g32"], ["rtn-w4g32"]]


def test_a_scheme_that_fails_takes_no_other_one_down(make_plan, tmp_path, monkeypatch):
    real = checkpoints.quantize_jobs

    def failing(source, outputs, *rest):
        if any(job.label == "nf4" for job in outputs.values()):
            raise QuantizationError("nf4 does not like these weights", "Use others.")
        return real(source, outputs, *rest)

    monkeypatch.setattr(checkpoints, "quantize_jobs", failing)
    plans = [make_plan(tmp_path, scheme) for scheme in SCHEMES]
    errors = make(plans)
    assert {path.name: str(error) for path, error in errors.items()} == {
        "nf4": "nf4 does not like these weights. Use others."
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq-w4g32", "rtn-w4g32"]


def test_an_interrupted_pass_goes_on(make_plan, tmp_path, monkeypatch):
    plans = [make_plan(tmp_path, scheme) for scheme in SCHEMES]
    real, verified = output.verify, []

    def interrupted(*arguments):
        if verified:
            raise KeyboardInterrupt
        verified.append(real(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(output, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(plans)
    assert find_checkpoint(plans[0].directory) is not None
    assert find_checkpoint(plans[1].directory) is None
    observer = Recorder()
    assert make(plans, observer) == {}
    assert observer.stages == ["quantize 3 schemes"]
    assert observer.steps == []  # all blocks were finished
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SCHEMES)


def test_an_engine_that_is_absent_fails_alone(make_plan, tmp_path):
    theirs = QuantizeSpec("gptq", 4, 32, engine="gptqmodel")
    plans = [make_plan(tmp_path, theirs, name="theirs"), make_plan(tmp_path, "rtn-w4g32")]
    errors = make(plans)
    assert list(errors) == [plans[0].directory]
    assert isinstance(errors[plans[0].directory], BackendError)
    assert "llmopt backend install gptqmodel" in str(errors[plans[0].directory])
    assert find_checkpoint(plans[1].directory) is not None


@pytest.fixture
def engine(monkeypatch):
    """An engine that does what ours does, under another name."""
    asked = []

    def quantize(name, request, on_line):
        asked.append(request)
        on_line("packing " * 20)
        if request.gguf_type is not None:
            request.out.write_bytes(request.model.read_bytes())
        else:
            scheme = read_quantization(request.scheme)
            plan = PlannedCheckpoint(request.model, request.out, scheme, request.calibration)
            assert make([plan]) == {}
            record = json.loads((request.out / "quantization.json").read_text())
            record["engine"] = {"name": name, "versions": {"gptqmodel": "7.6.0", "torch": "2"}}
            (request.out / "quantization.json").write_text(json.dumps(record))
        return EngineSummary(request.out, name, request.scheme, {name: "7.6.0"}, 12.5, 10**6)

    monkeypatch.setattr(elsewhere, "quantize_with_engine", quantize)
    return asked


def test_an_engine_sees_our_windows_and_is_timed(make_plan, tmp_path, engine):
    plan = make_plan(tmp_path, QuantizeSpec("gptq", 4, 32, engine="gptqmodel"), name="theirs")
    observer = Recorder()
    assert make([plan], observer) == {}
    assert observer.stages == ["quantize gptqmodel-gptq-w4g32"]
    assert observer.steps == [("packing " * 20)[:60]]
    (request,) = engine
    assert request.calibration is plan.calibration
    assert (request.device, request.spec) == ("cpu", plan.quantization.job.scheme.spec)
    record = quantization_record(plan.directory)
    assert (record.engine, record.engine_version) == ("gptqmodel", "7.6.0")
    assert (record.seconds, record.shared_seconds) == (12.5, None)
    assert record.calibration.num_samples == 4
    make([plan])
    assert len(engine) == 1


def test_an_engine_for_gguf_gets_the_model_as_one(make_plan, tmp_path, engine, gguf_source):
    spec = QuantizeSpec("gguf", mix="q8_0", engine="llama.cpp")
    plan = make_plan(tmp_path, spec, name="theirs", source=gguf_source)
    assert make([plan]) == {}
    path = find_checkpoint(plan.directory)
    assert path.name == f"{gguf_source.name}-Q8_0.gguf"
    record = quantization_record(path)
    assert (record.engine, record.scheme, record.seconds) == ("llama.cpp", "gguf-q8_0", 12.5)
    assert record.calibration.num_samples == 4
    (request,) = engine
    assert request.importance["blk.1.ffn_down.weight"].shape == (96,)
    assert sorted(file.name for file in plan.directory.iterdir()) == [
        "quantization-run.json",
        "quantization.json",
        path.name,
    ]


def test_what_is_no_checkpoint_is_not_found(tmp_path):
    assert find_checkpoint(tmp_path / "missing") is None
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    assert find_checkpoint(tmp_path) is None
