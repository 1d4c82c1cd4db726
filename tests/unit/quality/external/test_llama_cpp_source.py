"""The worker of llama.cpp, played by a script that speaks its protocol."""

import textwrap
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.errors import BackendError, CheckpointError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import GGML_TYPES
from llmopt.models.gguf_export import FILE_TYPES, export_gguf
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.external import llama_cpp_source
from llmopt.quality.external.llama_cpp_source import find_llama_cpp, open_llama_cpp
from llmopt.quality.windows import Window

WINDOW = Window(torch.tensor([4, 9, 2, 7]), 3, 0)

# Row r of a window is the token before it, times 10, plus the column.
ANSWERING = """
    import array, json, sys
    out = sys.stdout.buffer
    out.write(json.dumps({"vocab_size": 5, "max_tokens": 99, "version": "1.2"}).encode() + b"\\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        for token in request["token_ids"][-request["num_scored"] - 1 : -1]:
            out.write(array.array("f", [10 * token + column for column in range(5)]).tobytes())
        out.flush()
"""


@pytest.fixture(scope="module")
def gguf(make_tiny_llama, byte_level_tokenizer, tmp_path_factory) -> Path:
    source = make_tiny_llama(vocab_size=608)
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.save_pretrained(source)
    out: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        out,
        name="tiny",
        file_type=FILE_TYPES["f16"],
        choose=lambda tensor: GGML_TYPES["f16"],
        encode=lambda name, weight, kind: pytest.fail("nothing is in blocks"),
    )
    return out


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Make a script the worker."""

    def play(script: str) -> None:
        worker = tmp_path / "worker.py"
        worker.write_text(textwrap.dedent(script))
        monkeypatch.setattr(llama_cpp_source, "WORKER", worker)
        monkeypatch.setenv("LLMOPT_ENVIRONMENT_LLAMA_CPP", llama_cpp_source.sys.executable)

    return play


def test_windows_are_asked_and_rows_read(gguf, play):
    play(ANSWERING)
    with open_llama_cpp(gguf, num_threads=1) as source:
        [first] = source.chunks(WINDOW)
        [second] = source.chunks(Window(torch.tensor([1, 3]), 1, 0))
        worker = source._worker
    assert first.tolist() == [[40, 41, 42, 43, 44], [90, 91, 92, 93, 94], [20, 21, 22, 23, 24]]
    assert second.tolist() == [[10, 11, 12, 13, 14]]
    assert (source.vocab_size, source.max_tokens, source.version) == (5, 99, "1.2")
    assert (source.name, source.scheme) == ("tiny.gguf", "fp16")
    assert worker.returncode == 0


def test_rows_come_in_the_chunks_that_every_source_has(gguf, play, monkeypatch):
    play(ANSWERING)
    monkeypatch.setattr("llmopt.quality.source.CHUNK_ELEMENTS", 2 * 5)
    with open_llama_cpp(gguf, num_threads=1) as source:
        assert [len(chunk) for chunk in source.chunks(WINDOW)] == [2, 1]


def test_the_worker_gets_the_file_and_the_threads(gguf, play):
    play("import sys; sys.exit(f'{sys.argv[1]} with {sys.argv[2]}')")
    with (
        pytest.raises(BackendError, match=rf"ended with status 1: {gguf} with 3"),
        open_llama_cpp(gguf, num_threads=3),
    ):
        pass


def test_a_worker_that_dies_tells_its_last_words(gguf, play):
    last_words = "sys.exit('noise\\nnot enough memory\\n')"
    play(ANSWERING.replace("for token", f"{last_words}\n        for token"))
    with open_llama_cpp(gguf, num_threads=1) as source:
        with pytest.raises(BackendError, match="ended with status 1: not enough memory"):
            list(source.chunks(WINDOW))
        with pytest.raises(BackendError, match="not enough memory"):
            list(source.chunks(WINDOW))


def test_a_worker_that_is_killed_is_told_with_the_signal(gguf, play):
    play(ANSWERING.replace("for token", "import os; os.abort()\n        for token"))
    with (
        open_llama_cpp(gguf, num_threads=1) as source,
        pytest.raises(BackendError, match="ended by signal 6: it said nothing"),
    ):
        list(source.chunks(WINDOW))


def test_a_worker_that_does_not_end_is_ended(gguf, play, monkeypatch):
    monkeypatch.setattr(llama_cpp_source, "_GRACE_S", 0.1)
    play(ANSWERING + "\n    import time; time.sleep(600)")
    with open_llama_cpp(gguf, num_threads=1) as source:
        worker = source._worker
    assert worker.returncode == -9


def test_what_llama_cpp_does_not_read_is_refused(tmp_path, gguf):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"\x10\0\0\0")
    for path, message in [
        (other, "reads GGUF files, and .* is none"),
        (tmp_path, "cannot be read"),
        (tmp_path / "none.gguf", "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=message), open_llama_cpp(path, num_threads=1):
            pass
    half = tmp_path / "half.gguf"
    half.write_bytes(gguf.read_bytes()[:1000])
    with pytest.raises(CheckpointError), open_llama_cpp(half, num_threads=1):
        pass


def test_without_llama_cpp_the_command_that_installs_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(llama_cpp_source.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path))
    monkeypatch.delenv("LLMOPT_ENVIRONMENT_LLAMA_CPP", raising=False)
    with pytest.raises(BackendError, match=r"`llmopt backend install llama\.cpp`"):
        find_llama_cpp()


def test_this_interpreter_is_taken_where_it_has_llama_cpp(monkeypatch):
    monkeypatch.setattr(llama_cpp_source.importlib.util, "find_spec", lambda name: object())
    assert find_llama_cpp() == Path(llama_cpp_source.sys.executable)
