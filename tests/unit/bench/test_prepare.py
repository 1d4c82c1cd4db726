import json
import shutil
from dataclasses import replace

import pytest

from llmopt.bench import checkpoints, prepare
from llmopt.bench.observer import SilentObserver
from llmopt.errors import BackendError, ModelError, QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.quantize import output
from llmopt.recipe.schema import Base, Calibration, Load, QuantizeSpec, Recipe, Target

GPTQ = QuantizeSpec("gptq", 4, 32)
RTN = QuantizeSpec("rtn", 4, 32)


class RecordingObserver(SilentObserver):
    def __init__(self):
        self.steps = []

    def stage_advanced(self, done, total, detail):
        self.steps.append((done, total, detail))


@pytest.fixture
def make_target(tiny_model_path):
    return lambda spec, **changes: Target(
        **({"name": "t", "model": str(tiny_model_path), "quantize": spec} | changes)
    )


@pytest.fixture
def recipe(tiny_model_path):
    return Recipe(
        name="r",
        base=Base(str(tiny_model_path)),
        targets=(),
        loads=(Load(1, 1, 1, 1),),
        calibration=Calibration(num_samples=4, sample_tokens=64),
    )


@pytest.fixture
def quantizations(monkeypatch):
    """The output directory of every quantization that was really run."""
    done = []
    real = checkpoints.quantize_jobs

    def counting(source, outputs, *rest):
        done.extend(outputs)
        return real(source, outputs, *rest)

    monkeypatch.setattr(checkpoints, "quantize_jobs", counting)
    return done


def get(recipe, target, work_dir, observer=None):
    outcomes = prepare.prepare_targets(recipe, [target], work_dir, observer or SilentObserver())
    if isinstance(outcomes[target], Exception):
        raise outcomes[target]
    return outcomes[target]


def test_a_model_as_it_is_stays_where_it_is(recipe, make_target, tiny_model_path, tmp_path):
    prepared = get(recipe, make_target(None), tmp_path)
    assert prepared.path == tiny_model_path
    assert prepared.note is None
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_target_is_made_once(recipe, make_target, tmp_path, quantizations):
    observer = RecordingObserver()
    first = get(recipe, make_target(GPTQ), tmp_path, observer)
    again = get(recipe, make_target(GPTQ, name="other"), tmp_path)
    assert quantizations == [first.path]
    assert again.path == first.path
    assert first.path.parent == tmp_path
    assert "gptq-w4g32" in first.path.name
    assert CheckpointReader(first.path).config["quantization_config"]["bits"] == 4
    assert observer.steps[-1][1] == 2  # of two blocks


def test_what_is_needed_twice_is_made_once(recipe, make_target, tmp_path, quantizations):
    targets = [
        make_target("rtn-w4g32", name="a", dtype="float32"),
        make_target(RTN, name="b", dtype="bfloat16"),
        make_target("fp8", name="c"),
        make_target(None, name="d"),
    ]
    outcomes = prepare.prepare_targets(recipe, targets, tmp_path, SilentObserver())
    a, b, c, d = (outcomes[target] for target in targets)
    assert a.path == b.path
    assert a.target.dtype != b.target.dtype
    assert quantizations == [a.path, c.path]
    assert (a.quantization.scheme, d.quantization) == ("rtn-w4g32", None)


def test_what_is_impossible_stands_in_its_place(recipe, make_target, tmp_path, quantizations):
    targets = [make_target(text, name=text) for text in ("rtn-w4g48", "gguf-q4_0", "rtn-w4g32")]
    outcomes = prepare.prepare_targets(recipe, targets, tmp_path, SilentObserver())
    odd, unexpressible, good = (outcomes[target] for target in targets)
    assert isinstance(odd, QuantizationError)
    assert isinstance(unexpressible, ModelError)
    assert quantizations == [good.path]


def test_an_engine_of_others_has_a_checkpoint_of_its_own(recipe, make_target, tmp_path):
    theirs = make_target(replace(GPTQ, engine="gptqmodel"))
    with pytest.raises(BackendError, match="llmopt backend install gptqmodel"):
        get(recipe, theirs, tmp_path)
    plan = prepare._Preparation(recipe, tmp_path, SilentObserver(), "cpu").plan
    paths = [plan(target).directory for target in (make_target(GPTQ), theirs)]
    assert paths[0].name.split("-")[-3:-1] == ["gptq", "w4g32"]
    assert "gptqmodel-gptq-w4g32" in paths[1].name


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": Calibration(num_samples=4, sample_tokens=32)},
        {"seed": 1},
    ],
)
def test_other_calibration_makes_another_checkpoint(
    recipe, make_target, tmp_path, quantizations, change
):
    get(recipe, make_target(GPTQ), tmp_path)
    get(replace(recipe, **change), make_target(GPTQ), tmp_path)
    assert len(set(quantizations)) == 2
    rtn = get(recipe, make_target(RTN), tmp_path)
    assert get(replace(recipe, **change), make_target(RTN), tmp_path).path == rtn.path
    assert len(quantizations) == 3  # rounding to nearest does not depend on calibration


def test_other_weights_or_code_make_another_checkpoint(
    recipe, make_target, tmp_path, quantizations, tiny_model_path, monkeypatch
):
    get(recipe, make_target(RTN), tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_path, copy)
    get(recipe, make_target(RTN, model=str(copy)), tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    get(recipe, make_target(RTN, model=str(copy)), tmp_path)
    code = tmp_path / "quantize"
    shutil.copytree(prepare.llmopt.quantize.__path__[0], code)
    (code / "rtn.py").write_text("# another way to round\n")
    monkeypatch.setattr(prepare.llmopt.quantize, "__path__", [str(code)])
    get(recipe, make_target(RTN), tmp_path)
    assert len({path.name.rsplit("-", 1)[1] for path in quantizations}) == 3
    assert len(quantizations) == 4


def test_the_format_of_the_recipe_is_the_checkpoints(recipe, make_target, tmp_path, quantizations):
    gptq = get(recipe, make_target(RTN), tmp_path)
    awq = get(recipe, make_target(replace(RTN, format="awq")), tmp_path)
    assert quantizations == [gptq.path, awq.path]
    assert CheckpointReader(awq.path).config["quantization_config"]["quant_method"] == "awq"


def test_a_damaged_checkpoint_is_made_again(recipe, make_target, tmp_path, quantizations):
    path = get(recipe, make_target(RTN), tmp_path).path
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    get(recipe, make_target(RTN), tmp_path)
    assert quantizations == [path, path]
    assert CheckpointReader(path).num_bytes > 1000


def test_a_checkpoint_that_was_interrupted_while_checked_is_not_kept(
    recipe, make_target, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(recipe, make_target(RTN), tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name.endswith(".resume")
    observer = RecordingObserver()
    assert get(recipe, make_target(RTN), tmp_path, observer).path.is_dir()
    assert observer.steps == []  # its blocks were finished
    assert not kept.exists()


def test_what_cannot_be_prepared_is_refused(recipe, make_target, tmp_path):
    with pytest.raises(ModelError):
        get(recipe, make_target(None, model=str(tmp_path / "missing")), tmp_path)
    with pytest.raises(QuantizationError, match="48"):
        get(recipe, make_target(QuantizeSpec("rtn", 4, 48)), tmp_path)
    long = replace(recipe, calibration=Calibration(num_samples=10**6))
    with pytest.raises(UsageError, match="calibration"):
        get(long, make_target(GPTQ), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_the_weights_come_from_is_noted(recipe, make_target, tiny_model_path, tmp_path):
    shutil.copytree(tiny_model_path, tmp_path / "model")
    provenance = {"note": "dequantized and permuted"}
    (tmp_path / "model" / "provenance.json").write_text(json.dumps(provenance))
    model = str(tmp_path / "model")
    for spec in (None, RTN):
        prepared = get(recipe, make_target(spec, model=model), tmp_path / "work")
        assert prepared.note == f"The weights of {model} are dequantized and permuted."
