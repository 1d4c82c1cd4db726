"""One door to every runtime."""

from contextlib import contextmanager

import pytest
import torch

from llmopt.errors import CheckpointError, UsageError
from llmopt.quality.external import sources
from llmopt.quality.external.sources import open_source
from llmopt.quality.windows import Window

WINDOW = Window(torch.arange(3, 20), 9, 0)


def test_our_runtime_and_transformers_read_the_same_directory(tiny_llama):
    rows = {}
    for kind in ("llmopt", "transformers"):
        with open_source(kind, tiny_llama, dtype="float32") as source:
            assert (source.name, source.scheme) == (tiny_llama.name, "fp32")
            rows[kind] = torch.cat(list(source.chunks(WINDOW)))
    torch.testing.assert_close(rows["llmopt"], rows["transformers"], rtol=1e-4, atol=1e-4)


def test_the_dtype_is_handed_on(tiny_llama):
    for kind in ("llmopt", "transformers"):
        with open_source(kind, str(tiny_llama), dtype="bfloat16") as source:
            assert source.scheme == "bf16"


@pytest.mark.parametrize(
    ("kind", "error"),
    [("llmopt", CheckpointError), ("transformers", UsageError), ("llama.cpp", UsageError)],
)
def test_nothing_is_found_where_nothing_is(kind, error, tmp_path):
    with pytest.raises(error), open_source(kind, tmp_path / "none"):
        pass


@pytest.mark.parametrize(
    ("kind", "opener", "target", "asked"),
    [
        ("vllm", "open_server", "http://h:1", (("http://h:1",), {"model": "name"})),
        ("llama.cpp", "open_llama_cpp", "a.gguf", None),
    ],
)
def test_what_is_opened_is_closed(kind, opener, target, asked, monkeypatch):
    events = []

    @contextmanager
    def fake(*arguments, **settings):
        events.append((arguments, settings))
        yield "source"
        events.append("closed")

    monkeypatch.setattr(sources, opener, fake)
    with open_source(kind, target, served_name="name") as source:
        assert source == "source"
        assert len(events) == 1
    assert events[1] == "closed"
    if asked is not None:
        assert events[0] == asked
    else:
        assert events[0][1] == {"num_threads": torch.get_num_threads()}
