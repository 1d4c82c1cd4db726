"""The proof before a checkpoint gets its name: it runs, it is judged, and its card says so."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from typer.testing import CliRunner

from llmopt.cli import quantize_proof
from llmopt.cli.app import app
from llmopt.cli.proof_view import print_proofs, with_proof
from llmopt.cli.quantize_proof import PROMPT, Proof, Prover, generate
from llmopt.cli.reproduction import Origin
from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import QuantizationError
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.journal import journal_path
from llmopt.quantize.options import Job, RunOptions, SilentObserver
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

SCHEMES = ("rtn-w4g32", "nf4", "w8a8", "gguf-q8_0")


class Notes(SilentObserver):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def source(make_tiny_llama, byte_level_tokenizer) -> Path:
    """A tiny model with a tokenizer and a card of its own."""
    path = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return path


@pytest.fixture(scope="module")
def tokens() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 600, (4, 32), generator=generator)
    return CalibrationData(windows, "text.txt", "0" * 64, 7)


def quantize(source, out, tokens, *names, observer=None):
    """Make checkpoints with a proof; returns the summaries and the proofs."""
    prover = Prover(Origin("./tiny", tokens), observer or Notes(), ("warning: few",))
    schemes = [parse_scheme(name) for name in names]
    outputs = {out / scheme.label: Job(scheme, default_format(scheme)) for scheme in schemes}
    run = RunOptions(calibration=tokens)
    summaries = quantize_jobs(source, outputs, journal_path(out), run, observer, prover)
    return summaries, prover.proofs


@pytest.fixture(scope="module")
def made(source, tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "all"
    summaries, proofs = quantize(source, out, tokens, *SCHEMES)
    return out, summaries, proofs


@pytest.mark.parametrize("name", SCHEMES)
def test_the_card_says_what_was_seen(made, name):
    out, _, proofs = made
    card, proof = (out / name / "README.md").read_text(), proofs[name]
    assert proof.smoke.prompt == PROMPT
    path = next((out / name).glob("*.gguf"), out / name)
    params = SamplingParams(max_tokens=24, min_tokens=1)
    assert proof.smoke.text == LLM(path, num_blocks=64).generate([PROMPT], params)[0].text
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "mit"
    assert name.split("-")[0] in front["tags"]
    assert {verdict.engine for verdict in proof.verdicts} >= {"vLLM", "transformers", "llama.cpp"}
    assert all(f"| {verdict.status} |" in card for verdict in proof.verdicts)
    assert "llmopt quantize ./tiny --out" in card
    assert ("warning: few" in card) == (name in ("w8a8", "gguf-q8_0"))  # those look at data
    assert not proof.notes


def test_gguf_files_are_judged_as_such(made):
    out, _, proofs = made
    (file,) = (out / "gguf-q8_0").glob("*.gguf")
    verdicts = {verdict.engine: verdict.status for verdict in proofs["gguf-q8_0"].verdicts}
    assert verdicts["llama.cpp"] == "loads"
    assert f"# {file.name}".replace("_", "\\_") in (file.parent / "README.md").read_text()
    metadata = GgufCheckpoint(file).metadata
    assert metadata["quantize.imatrix.dataset"] == "text.txt"
    assert metadata["quantize.imatrix.entries_count"] == 14
    assert metadata["quantize.imatrix.chunks_count"] == 4


def test_a_card_is_the_same_for_the_same_inputs(made, source, tokens, tmp_path):
    out, _, _ = made
    quantize(source, tmp_path / "all", tokens, *SCHEMES[:2])  # and whatever is made beside it
    for name in SCHEMES[:2]:
        again = (tmp_path / "all" / name / "README.md").read_bytes()
        assert again == (out / name / "README.md").read_bytes()


def test_a_checkpoint_that_does_not_run_is_not_published(source, tokens, tmp_path):
    """An embedding that float32 holds, and whose logits it does not."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].sign() * 3e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizationError, match=r"does not run: .* not finite.*Nothing was"):
        quantize(broken, tmp_path / "out", tokens, "rtn-w4g32")
    assert not (tmp_path / "out" / "rtn-w4g32").exists()
    assert not list((tmp_path / "out").glob(".*partial"))


def test_what_cannot_be_tried_is_said(source, tokens, tmp_path, monkeypatch, tiny_llama):
    observer = Notes()
    _, proofs = quantize(tiny_llama, tmp_path / "a", tokens, "rtn-w4g32", observer=observer)
    assert proofs["rtn-w4g32"].smoke is None
    assert any("no smoke generation" in n and "no tokenizer" in n for n in observer.notes)
    memory = quantize_proof.psutil.virtual_memory()
    monkeypatch.setattr(
        quantize_proof.psutil, "virtual_memory", lambda: memory._replace(available=1000)
    )
    observer = Notes()
    quantize(source, tmp_path / "b", tokens, "rtn-w4g32", observer=observer)
    assert any("no smoke generation" in n and "GB are free" in n for n in observer.notes)
    assert "## Smoke test" not in (tmp_path / "b" / "rtn-w4g32" / "README.md").read_text()


def test_a_model_that_says_nothing_is_refused(made, monkeypatch):
    out, _, _ = made
    real = LLM.generate

    def say_nothing(*args):
        (output,) = real(*args)
        return [replace(output, completions=(replace(output.completions[0], token_ids=()),))]

    monkeypatch.setattr(LLM, "generate", say_nothing)
    with pytest.raises(QuantizationError, match="generates nothing"):
        generate(out / "nf4")


@pytest.mark.parametrize("width", [100, 72])
def test_what_is_printed_is_narrow(made, width):
    _, _, proofs = made
    one = {"nf4": proofs["nf4"]}
    for shown in (proofs, one, {"old": Proof((), None)}):
        stream = io.StringIO()
        print_proofs(shown, Console(file=stream, width=width))
        assert all(len(line) <= width for line in stream.getvalue().splitlines())
        assert ("vLLM" in stream.getvalue()) == ("old" not in shown)


def test_a_summary_with_its_proof_is_json(made):
    _, summaries, proofs = made
    content = with_proof(summaries[0], proofs[summaries[0].scheme])
    content = json.loads(json.dumps(content, default=str))
    assert content["proof"]["smoke"]["prompt"] == PROMPT
    assert content["proof"]["verdicts"][0]["engine"] == "vLLM"
    assert with_proof(summaries[0], None)["proof"] is None


def test_the_command_in_the_card_makes_the_card_again(source, tmp_path, monkeypatch):
    """The command line itself, in process: what the card says makes the same bytes."""
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(source.parent)
    first = ("quantize", source.name, "--methods", "gptq-w4g32-asym", "--samples", "2")
    more = ("--sample-tokens", "40", "--no-propagate", "--override", "*.0.mlp.*=skip")
    done = CliRunner().invoke(app, [*first, *more, "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.exception
    card = tmp_path / "a" / "gptq-w4g32-asym" / "README.md"
    command = card.read_text().split("```bash\n")[-1].split("\n")[0]
    import shlex

    words = shlex.split(command)[1:]
    name = words[words.index("--out") + 1]
    words[words.index("--out") + 1] = str(tmp_path / "b" / name)
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    again = tmp_path / "b" / name
    for file in ("README.md", "quantization.json", "model.safetensors"):
        assert (again / file).read_bytes() == (card.parent / file).read_bytes()
    proof = json.loads(done.stdout)["proof"]
    assert proof["verdicts"]
    assert f"```text\n{proof['smoke']['text'].rstrip()}\n```" in card.read_text()
