"""Text sampled from the model: enough of it, the same each time, and another for another seed."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmopt.cli.self_calibration import sample_from_model
from llmopt.engine.llm import LLM
from llmopt.errors import UsageError
from llmopt.quantize.calibration import pack_samples


@pytest.fixture(scope="module")
def llm(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The tiny Llama with a tokenizer of words; BOS is token 1 and end of text token 2."""
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("self") / "model"
    shutil.copytree(tiny_llama, path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2")
    fast.save_pretrained(path)
    return LLM(path, num_blocks=64)


def test_enough_tokens_are_sampled_and_packed(llm: LLM) -> None:
    seen: list[tuple[int, int]] = []
    texts = sample_from_model(
        llm, num_tokens=200, sample_tokens=40, on_progress=lambda *now: seen.append(now)
    )
    assert sum(map(len, texts)) >= 200
    assert max(map(len, texts)) <= 40
    assert len(set(texts)) == len(texts)
    assert seen[-1] == (200, 200)
    data = pack_samples(llm.tokenizer, texts, num_samples=5, sample_tokens=40)
    assert data.tokens.shape == (5, 40)
    assert data.source == "self"
    assert data.num_documents == len(texts)
    assert data.unused_tokens == sum(map(len, texts)) - 200


def test_same_seed_same_text(llm: LLM) -> None:
    def texts(seed: int) -> list[tuple[int, ...]]:
        return sample_from_model(llm, num_tokens=60, sample_tokens=20, seed=seed)

    assert texts(3) == texts(3)
    assert not set(texts(3)) & set(texts(4))


def test_model_without_special_tokens_is_refused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        bos_token_id = None
        eos_token_ids = ()

    monkeypatch.setattr(llm, "tokenizer", Bare())
    with pytest.raises(UsageError, match="neither a BOS nor"):
        sample_from_model(llm, num_tokens=10, sample_tokens=5)
