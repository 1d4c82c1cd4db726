"""No lost hours: a run that is killed goes on, and ends in the same bytes."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmopt.errors import OutputError, QuantizationError
from llmopt.quantize import publish
from llmopt.quantize.journal import Journal, journal_path
from llmopt.quantize.options import Job, RunOptions, SilentObserver
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

NAMES = ("gptq-w4g32", "awq-w4g32-asym", "nf4")


class Watcher(SilentObserver):
    """Records notes and modules, and stops as if by Ctrl-C after a module of a block."""

    def __init__(self, interrupt_in: int | None = None):
        self.interrupt_in = interrupt_in
        self.notes: list[str] = []
        self.blocks: list[int] = []

    def note(self, text):
        self.notes.append(text)

    def module_finished(self, event):
        self.blocks.append(event.block)
        if event.block == self.interrupt_in:
            raise KeyboardInterrupt


def outputs_in(out: Path, **settings) -> dict[Path, Job]:
    schemes = [parse_scheme(name) for name in NAMES]
    return {out / s.label: Job(s, default_format(s), **settings) for s in schemes}


def quantize(source, out, tokens, watcher=None, *, restart=False, **settings):
    run = RunOptions(calibration=tokens, restart=restart)
    return quantize_jobs(source, outputs_in(out, **settings), journal_path(out), run, watcher)


@pytest.fixture(scope="module", params=[True, False], ids=["propagate", "source"])
def propagate(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def whole(spread_source, tokens, tmp_path_factory, propagate, directory_bytes) -> dict[str, bytes]:
    """The bytes of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    quantize(spread_source, out, tokens, propagate=propagate)
    return directory_bytes(out)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import Job, RunOptions, SilentObserver
from llmopt.quantize.journal import journal_path
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

class Killing(SilentObserver):
    def module_finished(self, event):
        if event.block == 1 and event.record.name.endswith("down_proj"):
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
source, out, tokens, propagate = sys.argv[1:]
schemes = [parse_scheme(name) for name in {names!r}]
outputs = {{
    Path(out) / s.label: Job(s, default_format(s), propagate=propagate == "True") for s in schemes
}}
data = CalibrationData(torch.load(tokens), "r", "0" * 64, 0)
quantize_jobs(Path(source), outputs, journal_path(Path(out)), RunOptions(data), Killing())
"""


def test_a_run_killed_in_the_middle_ends_in_the_same_bytes(
    spread_source, tokens, tmp_path, whole, propagate, directory_bytes
):
    """SIGKILL: nothing of the process gets to clean up."""
    out = tmp_path / "out"
    torch.save(tokens.tokens, tmp_path / "tokens.pt")
    script = textwrap.dedent(SCRIPT.format(names=NAMES))
    done = subprocess.run(
        [sys.executable, "-c", script, spread_source, out, tmp_path / "tokens.pt", str(propagate)],
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL
    assert journal_path(out).is_dir()
    assert not any(out.glob("*"))
    watcher = Watcher()
    summaries = quantize(spread_source, out, tokens, watcher, propagate=propagate)
    assert set(watcher.blocks) == {1, 2}  # block 0 was kept
    assert any("1 of 3 blocks" in note for note in watcher.notes)
    assert all(summary.resumed_blocks == 1 for summary in summaries)
    assert directory_bytes(out) == whole
    assert not journal_path(out).exists()


@pytest.mark.parametrize("block", [0, 2])
def test_an_interrupted_run_goes_on(
    spread_source, tokens, tmp_path, whole, propagate, block, directory_bytes
):
    out, watcher = tmp_path / "out", Watcher(interrupt_in=block)
    with pytest.raises(KeyboardInterrupt):
        quantize(spread_source, out, tokens, watcher, propagate=propagate)
    assert journal_path(out).exists() == (block > 0)  # nothing is kept where nothing is finished
    assert any("the same command goes on" in note for note in watcher.notes) == (block > 0)
    watcher = Watcher()
    quantize(spread_source, out, tokens, watcher, propagate=propagate)
    assert min(watcher.blocks) == block
    assert directory_bytes(out) == whole


@pytest.mark.parametrize("moment", ["_save", "write_block", "staged"])
def test_a_crash_while_files_are_written_is_no_harm(
    spread_source, tokens, tmp_path, monkeypatch, moment, directory_bytes
):
    """The second call of each of these dies: on hidden states, on a block, between outputs."""
    out = tmp_path / "out"
    owner, name = {
        "_save": (Journal, "_save"),
        "write_block": (Journal, "write_block"),
        "staged": (publish.Publisher, "publish"),
    }[moment]
    real, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5 or (moment != "_save" and len(calls) == 2):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(KeyboardInterrupt):
            quantize(spread_source, out, tokens)
    quantize(spread_source, out, tokens)
    quantize(spread_source, tmp_path / "clean", tokens)
    assert directory_bytes(out) == directory_bytes(tmp_path / "clean")
    assert not journal_path(out).exists()


def interrupted(source, out, tokens) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, tokens, Watcher(interrupt_in=1))


@pytest.mark.parametrize("change", ["tokens", "job", "source"])
def test_another_runs_journal_is_refused(
    spread_source, make_spread_source, tokens, tmp_path, change
):
    out = tmp_path / "out"
    interrupted(spread_source, out, tokens)
    others = {
        "tokens": (spread_source, replace(tokens, tokens=tokens.tokens[:4]), {}),
        "job": (spread_source, tokens, {"propagate": False}),
        "source": (make_spread_source(seed=5, num_hidden_layers=3), tokens, {}),
    }
    source, data, settings = others[change]
    with pytest.raises(OutputError, match=r"another run.*--restart"):
        quantize(source, out, data, **settings)
    assert journal_path(out).is_dir()  # still good for the first command
    watcher = Watcher()
    quantize(source, out, data, watcher, restart=True, **settings)
    assert min(watcher.blocks) == 0
    assert not journal_path(out).exists()


def test_a_damaged_block_is_made_again(spread_source, tokens, tmp_path, directory_bytes):
    out = tmp_path / "out"
    interrupted(spread_source, out, tokens)
    block = journal_path(out) / "nf4" / "block-00000.safetensors"
    block.write_bytes(block.read_bytes()[:100])
    watcher = Watcher()
    quantize(spread_source, out, tokens, watcher)
    assert min(watcher.blocks) == 0
    quantize(spread_source, tmp_path / "clean", tokens)
    assert directory_bytes(out) == directory_bytes(tmp_path / "clean")


def test_lost_hidden_states_of_a_quantized_prefix_are_said(spread_source, tokens, tmp_path):
    out = tmp_path / "out"
    interrupted(spread_source, out, tokens)
    for file in (journal_path(out) / "hidden").glob("gptq*"):
        file.unlink()
    with pytest.raises(OutputError, match=r"lacks the hidden states .*--restart"):
        quantize(spread_source, out, tokens)


def test_lost_hidden_states_of_the_source_are_made_again(
    spread_source, tokens, tmp_path, monkeypatch, directory_bytes
):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(spread_source, out, tokens, Watcher(interrupt_in=1), propagate=False)
    for file in (journal_path(out) / "hidden").iterdir():
        file.unlink()
    quantize(spread_source, out, tokens, propagate=False)
    quantize(spread_source, tmp_path / "clean", tokens, propagate=False)
    assert directory_bytes(out) == directory_bytes(tmp_path / "clean")


def test_two_processes_do_not_share_a_journal(spread_source, tokens, tmp_path):
    out = tmp_path / "out"
    with (
        Journal(journal_path(out), "x", ["nf4"]),
        pytest.raises(OutputError, match="another process"),
    ):
        quantize(spread_source, out, tokens)


def test_leftovers_of_a_killed_process_are_removed(spread_source, tokens, tmp_path):
    stale = tmp_path / "out" / ".nf4.abc.partial"
    stale.mkdir(parents=True)
    quantize(spread_source, tmp_path / "out", tokens)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)


def test_too_little_disk_is_said_before_any_work(spread_source, tokens, tmp_path, monkeypatch):
    from llmopt.formats import staging

    usage = staging.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(OutputError, match=r"needs .* GB and 0\.00 GB are free"):
        quantize(spread_source, tmp_path / "out", tokens)


def test_an_impossible_job_leaves_no_journal(spread_source, tokens, tmp_path):
    scheme = parse_scheme("gptq-w4g48")
    jobs = {tmp_path / "out": Job(scheme, "gptq")}
    with pytest.raises(QuantizationError, match="group size 48"):
        quantize_jobs(spread_source, jobs, tmp_path / ".j", RunOptions(calibration=tokens))
    assert list(tmp_path.iterdir()) == []
