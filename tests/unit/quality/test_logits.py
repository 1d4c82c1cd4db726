import pytest
import torch

from llmopt.errors import UsageError
from llmopt.quality import logits
from llmopt.quality.logits import BaseLogits, logit_chunks

WINDOW_BYTES = 19 * 50 * 4  # scored positions * vocabulary * float32


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 350)  # 7 rows of 50


@pytest.mark.usefixtures("small_chunks")
def test_chunks_are_the_logits_of_all_positions_but_the_last(make_model, make_windows):
    model, windows = make_model(), make_windows()
    chunks = list(logit_chunks(model, windows.token_ids[0]))
    assert [len(chunk) for chunk in chunks] == [7, 7, 5]
    hidden = torch.stack([windows.token_ids[0], torch.arange(20)], dim=1)
    assert torch.equal(torch.cat(chunks), model.compute_logits(hidden)[:-1])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("max_cache_bytes", "num_kept"),
    [(0, 0), (WINDOW_BYTES - 1, 0), (WINDOW_BYTES, 1), (3 * WINDOW_BYTES + 5, 3), (1 << 30, 6)],
)
def test_keeps_what_fits_and_computes_the_rest_again(
    make_model, make_windows, max_cache_bytes, num_kept
):
    model, windows = make_model(), make_windows()
    base = BaseLogits(model, windows, name="base", scheme="fp32", max_cache_bytes=max_cache_bytes)
    first = [torch.cat(list(base.chunks(index))) for index in range(6)]
    assert model.calls == 6
    second = [torch.cat(list(base.chunks(index))) for index in range(6)]
    assert model.calls == 6 + (6 - num_kept)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("small_chunks")
def test_a_pass_that_is_broken_off_costs_no_cache(make_model, make_windows):
    model, windows = make_model(), make_windows()
    base = BaseLogits(model, windows, name="base", scheme="fp32", max_cache_bytes=WINDOW_BYTES)
    next(base.chunks(0))
    list(base.chunks(0))
    list(base.chunks(0))
    assert model.calls == 2


def test_windows_longer_than_the_model_are_refused(make_model, make_windows):
    with pytest.raises(UsageError, match=r"at most 19 tokens.*windows have 20.*at most 19"):
        BaseLogits(make_model(max_model_len=19), make_windows(), name="base", scheme="fp32")
