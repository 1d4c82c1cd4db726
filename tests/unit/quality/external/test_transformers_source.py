"""transformers as a source: the same rows as ours, and refusals in our own words."""

import json
import shutil

import pytest
import torch

from llmopt.errors import BackendError, CheckpointError, UsageError
from llmopt.models.loader import load_model
from llmopt.quality.external.transformers_source import load_transformers
from llmopt.quality.source import ModelLogits
from llmopt.quality.windows import Window

WINDOW = Window(torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(2)), 17, 0)


def test_it_gives_the_rows_that_our_runtime_gives(tiny_llama):
    source = load_transformers(tiny_llama, dtype="float32")
    ours = ModelLogits(load_model(tiny_llama, dtype="float32"), name="ours", scheme="fp32")
    [logits] = source.chunks(WINDOW)
    [expected] = ours.chunks(WINDOW)
    assert logits.shape == (17, 128)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (source.vocab_size, source.max_tokens) == (ours.vocab_size, ours.max_tokens)
    assert (source.name, source.scheme) == (tiny_llama.name, "fp32")


@pytest.mark.parametrize("num_scored", [16, 3])
def test_a_last_token_beyond_the_limit_is_not_read(make_tiny_model, num_scored):
    path = make_tiny_model("gpt2", max_position_embeddings=16)  # learned positions: no 17th
    window = Window(WINDOW.token_ids[:17], num_scored, 0)
    source = load_transformers(path, dtype="float32")
    assert source.max_tokens == 16
    [logits] = source.chunks(window)
    [expected] = ModelLogits(load_model(path, dtype="float32"), name="ours", scheme="fp32").chunks(
        window
    )
    assert logits.shape == (num_scored, 128)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_rows_come_in_the_chunks_that_every_source_has(tiny_llama, monkeypatch):
    monkeypatch.setattr("llmopt.quality.source.CHUNK_ELEMENTS", 128 * 5)
    chunks = list(load_transformers(tiny_llama).chunks(WINDOW))
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 2]


def test_it_computes_in_the_dtype_that_is_asked_for(tiny_llama):
    source = load_transformers(tiny_llama, dtype="bfloat16")
    assert source.scheme == "bf16"
    assert next(source.chunks(WINDOW)).dtype == torch.bfloat16
    assert load_transformers(tiny_llama).scheme == "fp32"  # the checkpoint's own


def test_nothing_is_drawn_while_it_loads(tiny_llama, capsys):
    load_transformers(tiny_llama)
    assert capsys.readouterr() == ("", "")


def test_what_it_does_not_read_is_refused(tiny_llama, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"reads model directories, and .*gguf is none"):
        load_transformers(file)
    with pytest.raises(UsageError, match="dtype int8 is not supported"):
        load_transformers(tiny_llama, dtype="int8")
    with pytest.raises(UsageError, match="not a device"):
        load_transformers(tiny_llama, device="tpu-of-mine")
    with pytest.raises(CheckpointError):
        load_transformers(tmp_path)


def test_its_own_reason_is_told(tiny_llama, tmp_path):
    path = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "of-the-future"}))
    with pytest.raises(BackendError, match=r"transformers cannot load .*of-the-future"):
        load_transformers(path)


def test_code_that_comes_with_a_model_is_not_run(tiny_llama, tmp_path):
    path = shutil.copytree(tiny_llama, tmp_path / "model")
    proof = tmp_path / "was-run"
    (path / "own.py").write_text(f"open({str(proof)!r}, 'w')\n")
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendError):
        load_transformers(path)
    assert not proof.exists()


def test_a_format_that_only_transformers_reads_is_named(tiny_llama, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    path = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (path / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    assert load_transformers(path).scheme == "hqq"
