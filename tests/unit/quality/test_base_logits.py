from dataclasses import replace

import pytest
import torch

from llmopt.quality import source
from llmopt.quality.base_logits import KeptLogits

WINDOW_BYTES = 19 * 50 * 4  # scored positions * vocabulary * float32


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(source, "CHUNK_ELEMENTS", 350)  # 7 rows of 50


@pytest.mark.parametrize(
    ("max_cache_bytes", "num_kept"),
    [(0, 0), (WINDOW_BYTES - 1, 0), (WINDOW_BYTES, 1), (3 * WINDOW_BYTES + 5, 3), (1 << 30, 6)],
)
def test_keeps_what_fits_and_computes_the_rest_again(
    make_source, make_windows, max_cache_bytes, num_kept
):
    model, windows = make_source(), make_windows().windows
    base = KeptLogits(model, max_cache_bytes)
    first = [torch.cat(list(base.chunks(window))) for window in windows]
    assert model.model.calls == 6
    second = [torch.cat(list(base.chunks(window))) for window in windows]
    assert model.model.calls == 6 + (6 - num_kept)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_window_is_known_by_its_tokens_and_what_is_scored(make_source, make_windows):
    model = make_source()
    base = KeptLogits(model)
    window = make_windows().windows[0]
    list(base.chunks(window))
    assert sum(len(c) for c in base.chunks(replace(window, num_scored=5, num_bytes=0))) == 5
    assert model.model.calls == 2
    list(base.chunks(replace(window, token_ids=window.token_ids.clone())))
    assert model.model.calls == 2


def test_a_pass_that_is_broken_off_costs_no_cache(make_source, make_windows):
    model, window = make_source(), make_windows().windows[0]
    base = KeptLogits(model, WINDOW_BYTES)
    next(base.chunks(window))
    list(base.chunks(window))
    list(base.chunks(window))
    assert model.model.calls == 2


def test_says_what_its_source_says(make_source):
    base = KeptLogits(make_source(name="big", scheme="bf16", vocab_size=7, max_model_len=9))
    assert (base.name, base.scheme, base.vocab_size, base.max_tokens) == ("big", "bf16", 7, 9)
