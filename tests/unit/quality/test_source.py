import pytest
import torch

from llmopt.quality import source
from llmopt.quality.source import DeferredLogits, ModelLogits


@pytest.mark.parametrize(("num_scored", "sizes"), [(19, [7, 7, 5]), (8, [7, 1]), (1, [1])])
def test_chunks_are_the_logits_before_the_scored_tokens(
    make_model, make_windows, monkeypatch, num_scored, sizes
):
    monkeypatch.setattr(source, "CHUNK_ELEMENTS", 350)  # 7 rows of 50
    model = make_model()
    (window,) = make_windows(1, num_scored=(num_scored,)).windows
    chunks = list(ModelLogits(model, name="tiny", scheme="fp32").chunks(window))
    assert [len(chunk) for chunk in chunks] == sizes
    hidden = torch.stack([window.token_ids, torch.arange(20)], dim=1)
    assert torch.equal(torch.cat(chunks), model.compute_logits(hidden)[19 - num_scored : 19])


@pytest.mark.parametrize("num_scored", [19, 4])
def test_a_last_token_beyond_the_limit_is_not_read(make_model, make_windows, num_scored):
    (window,) = make_windows(1, num_scored=(num_scored,)).windows
    read = []

    class Limited(make_model):
        def forward(self, input_ids, positions, metadata):
            read.append(len(input_ids))
            return super().forward(input_ids, positions, metadata)

    rows = [
        torch.cat(list(ModelLogits(Limited(max_model_len=n), name="", scheme="").chunks(window)))
        for n in (19, 20, 64)
    ]
    assert read == [19, 20, 20]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_a_deferred_model_is_loaded_once_and_only_for_logits(make_model, make_windows):
    loads = []

    def load():
        loads.append(make_model())
        return loads[0]

    deferred = DeferredLogits(load, make_model().config, name="tiny", scheme="fp32")
    assert (deferred.name, deferred.scheme) == ("tiny", "fp32")
    assert (deferred.vocab_size, deferred.max_tokens, loads) == (50, 64, [])
    windows = make_windows(2).windows
    rows = [torch.cat(list(deferred.chunks(window))) for window in windows]
    assert len(loads) == 1
    own = ModelLogits(make_model(), name="", scheme="")
    assert all(
        torch.equal(a, torch.cat(list(own.chunks(window))))
        for a, window in zip(rows, windows, strict=True)
    )
