"""`--engine`: what is refused at once, and what becomes of what an engine made."""

import json
import sys

import pytest
from tokenizers import pre_tokenizers
from typer.testing import CliRunner

from llmopt.cli import quantize_engine
from llmopt.cli.app import app
from llmopt.cli.quantize_engine import engine_job, quantize_with
from llmopt.cli.quantize_proof import Prover
from llmopt.cli.reproduction import Origin
from llmopt.environment.catalogue import ENVIRONMENTS
from llmopt.errors import BackendError, LLMOptError, QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.quantize.options import Job, RunOptions, SilentObserver
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

VERSIONS = {"fake": "3.1", "torch": "2"}


@pytest.fixture(autouse=True)
def _environments(tmp_path, monkeypatch):
    """All engines there, in name only."""
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    for environment in ENVIRONMENTS:
        monkeypatch.setenv(environment.override_variable, sys.executable)


@pytest.fixture(scope="module")
def source(make_tiny_llama, byte_level_tokenizer):
    path = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return path


@pytest.fixture
def fake(monkeypatch):
    """An engine that rounds as we do, and whose records are an engine's."""

    def make(engine, source, out, scheme, calibration, *, on_gpu, on_line, gguf_pre):
        on_line("12% [####   ] of layer[0]")
        job = Job(scheme, default_format(scheme))
        quantize_jobs(source, {out: job}, out.parent / "journal", RunOptions())
        record = json.loads((out / "quantization.json").read_text())
        record["engine"] = {"name": engine, "versions": VERSIONS}
        (out / "quantization.json").write_text(json.dumps(record))

    monkeypatch.setattr(quantize_engine, "quantize_elsewhere", make)
    return make


class Stages(SilentObserver):
    def __init__(self):
        self.stages = []

    def stage_started(self, stage):
        self.stages.append(stage)


def run(source, out, name, *, inspect=None):
    scheme = parse_scheme(name)
    observer = Stages()
    prover = inspect or Prover(Origin("./tiny", engine="fake"), observer)
    outputs = {out: Job(scheme, default_format(scheme))}
    return quantize_with("fake", source, outputs, None, "cpu", observer, prover), prover, observer


@pytest.mark.parametrize(
    ("name", "bits", "group", "stored"),
    [("rtn-w4g32", 4, 32, "w4"), ("nf4", 4, 64, "nf4"), ("int8", 8, None, "w8")],
)
def test_what_an_engine_made_is_read_judged_and_described(
    source, tmp_path, fake, name, bits, group, stored
):
    (summary,), prover, observer = run(source, tmp_path / "out", name)
    ours = quantize_jobs(
        source,
        {tmp_path / "ours": Job(parse_scheme(name), default_format(parse_scheme(name)))},
        tmp_path / ".j",
        RunOptions(),
    )[0]
    assert summary.bits_per_weight == pytest.approx(ours.bits_per_weight, rel=1e-9)
    assert summary.file_bytes == ours.file_bytes
    assert [record.name for record in summary.modules] == [record.name for record in ours.modules]
    assert {(r.bits, r.group_size, r.stored_as) for r in summary.modules} == {(bits, group, stored)}
    assert prover.proofs[name].smoke.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "fake 3.1, torch 2" in card
    assert "--engine fake" in card
    assert any("12%" in stage for stage in observer.stages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out"]


def test_what_is_refused_or_interrupted_leaves_nothing(source, tmp_path, fake, monkeypatch):
    def refuse(_written):
        raise QuantizationError("it does not run", "Do otherwise.")

    with pytest.raises(QuantizationError, match="does not run"):
        run(source, tmp_path / "out", "nf4", inspect=refuse)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_engine, "quantize_elsewhere", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", "nf4")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_quantized_is_refused(source, tmp_path, monkeypatch):
    import shutil

    def copy(engine, source, out, *_, **__):
        shutil.copytree(source, out)

    monkeypatch.setattr(quantize_engine, "quantize_elsewhere", copy)
    with pytest.raises(BackendError, match="left every layer as it was"):
        run(source, tmp_path / "out", "nf4")


def test_jobs_get_the_engines_format():
    assert engine_job("gptqmodel", parse_scheme("gptq-w4g64")).format == "gptq"
    assert engine_job("llm-compressor", parse_scheme("gptq-w4g64")).format == "compressed-tensors"
    assert engine_job("llama.cpp", parse_scheme("gguf-q4_k_m")).format == "gguf"


@pytest.mark.parametrize(
    ("engine", "scheme", "error", "message"),
    [
        ("nothing", "nf4", UsageError, "Choose one of gptqmodel, "),
        ("gptqmodel", "nf4", QuantizationError, "It offers gptq, awq"),
        ("autoawq", "awq-w4g64", QuantizationError, "symmetric weights"),
        ("llama.cpp", "gguf-q9_k", QuantizationError, "Choose one of q4_0"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(engine, scheme, error, message):
    with pytest.raises(error, match=message):
        engine_job(engine, parse_scheme(scheme))


def test_an_absent_engine_says_how_it_is_installed(monkeypatch):
    monkeypatch.delenv("LLMOPT_ENVIRONMENT_GPTQMODEL")
    with pytest.raises(BackendError, match="llmopt backend install gptqmodel"):
        engine_job("gptqmodel", parse_scheme("gptq-w4g64"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--plan",), "--plan was given together with --engine gptqmodel"),
        (("--override", "*=skip"), "--override was given"),
        (("--lm-head",), "--lm-head was given"),
        (("--format", "awq"), "gptqmodel writes gptq checkpoints, not awq"),
        (("--method", "fp8"), "gptqmodel has no method fp8"),
    ],
)
def test_options_that_do_not_go_with_an_engine(tmp_path, args, message):
    """Before the model is looked for."""
    words = ["quantize", "no-such-model", "--engine", "gptqmodel", "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(app, [*words, *args])
    assert isinstance(done.exception, LLMOptError)
    assert message in str(done.exception)


def test_the_command_line_takes_an_engine(source, tmp_path, fake):
    words = ["quantize", str(source), "--engine", "bitsandbytes", "--method", "nf4"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["proof"]["smoke"]["text"]
    assert CheckpointReader(tmp_path / "out").config["quantization_config"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"llmopt quantize ./{source.name} --out out --method nf4 --engine bitsandbytes" in card
