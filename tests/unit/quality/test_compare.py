import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmopt.errors import CheckpointError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import ggml_type
from llmopt.models.gguf_export import export_gguf
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality import base_cache
from llmopt.quality.base_cache import base_cache_directory
from llmopt.quality.compare import BaseOptions, compare
from llmopt.quality.options import QualityOptions
from llmopt.quantize.gguf_encode import encode


def save_tokenizer(path, first="a"):
    """One token per letter; `first` gets id 3, so that another one gives other ids."""
    letters = [first, *(c for c in "abcdefghijklmnopqrstuvwxyz" if c != first)]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)


BASE = BaseOptions("tiny", cache=False, noise=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(make_tiny_llama):
    path = make_tiny_llama()
    save_tokenizer(path)
    return path


@pytest.fixture
def perturbed(base, tmp_path):
    """The base with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    path = tmp_path / "perturbed"
    model.save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def options(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("thequickbrownfoxjumpsoverthelazydog" * 10)
    return QualityOptions(str(text), window=32, num_windows=4, num_resamples=200)


def test_a_checkpoint_against_itself(base, options):
    record = compare(base, base, options, BASE)
    assert (record.kld_mean, record.top1_agreement, record.ppl_ratio) == (0.0, 1.0, 1.0)
    assert (record.base_name, record.base_scheme) == ("tiny", "fp32")
    assert record.num_tokens == 4 * 31


def test_perplexity_equals_transformers(base, perturbed, options):
    record = compare(perturbed, base, options, BASE)
    text = Path(options.text).read_text()[: 4 * 32]
    windows = torch.tensor([ord(letter) - ord("a") + 3 for letter in text]).view(4, 32)
    for path, ppl in [(base, record.base_ppl), (perturbed, record.ppl)]:
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        with torch.inference_mode():
            loss = model(windows, labels=windows).loss
        assert ppl == pytest.approx(float(loss.exp()), rel=1e-5)
    assert record.kld_mean > 0


def test_dtypes_are_those_asked_for(base, options):
    record = compare(base, base, options, BASE, dtype="bfloat16")
    assert 0 < record.kld_mean < 0.01
    in_bf16 = BaseOptions("tiny", "bfloat16", cache=False, noise=False)
    coarse = compare(base, base, options, in_bf16, dtype="bfloat16")
    assert (coarse.base_scheme, coarse.kld_mean) == ("bf16", 0.0)


def test_another_tokenizer_is_refused(base, options, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    save_tokenizer(other, first="z")
    with pytest.raises(UsageError, match="read the same text as other tokens"):
        compare(other, base, options, BASE)


def test_a_quantized_base_is_named_by_its_scheme(base, options, tmp_path):
    """Layers that stay in full precision are read as they are, so that the config alone differs."""
    quantized = tmp_path / "quantized"
    shutil.copytree(base, quantized)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "meta": {"method": "rtn"},
    }
    (quantized / "config.json").write_text(json.dumps(config))
    record = compare(base, quantized, options, BASE)
    assert (record.base_scheme, record.kld_mean) == ("rtn-w4g32", 0.0)


def test_a_directory_without_a_tokenizer_is_refused(base, tiny_llama, options):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        compare(base, tiny_llama, options, BASE)


def test_a_gguf_file_against_the_model_that_it_was_made_from(
    make_tiny_llama, byte_level_tokenizer, tmp_path
):
    source = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    options = QualityOptions(window=32, num_windows=4, num_resamples=200)
    losses = {}
    for kind in ("f32", "q8_0"):
        export_gguf(
            CheckpointReader(source),
            load_tokenizer(source),
            tmp_path / f"{kind}.gguf",
            name="tiny",
            file_type=0 if kind == "f32" else 7,
            choose=lambda _, kind=kind: ggml_type(kind),
            encode=lambda name, rows, chosen: encode(rows.float(), chosen.name, name=name),
        )
        path = tmp_path / f"{kind}.gguf"
        losses[kind] = compare(path, source, options, BASE, dtype="float32").kld_mean
    assert losses["f32"] == 0.0
    assert 0 < losses["q8_0"] < 0.01
    record = compare(source, tmp_path / "q8_0.gguf", options, BASE)
    assert record.base_scheme == "gguf-q8_0"


def test_the_noise_floor_is_the_base_in_16_bits(base, perturbed, options):
    heard = []
    judged = BaseOptions("tiny", cache=False)
    record = compare(perturbed, base, options, judged, on_noise_window=lambda *p: heard.append(p))
    assert heard == [(done, 4) for done in range(1, 5)]
    in_bf16 = compare(base, base, options, judged, dtype="bfloat16")
    assert record.noise.scheme == "bf16"
    assert record.noise.kld_mean == in_bf16.kld_mean > 0
    assert record.verdict.times_noise == pytest.approx(record.kld_mean / in_bf16.kld_mean)
    assert record.verdict.label != "indistinguishable"
    assert in_bf16.verdict.times_noise_ci == (1.0, 1.0)


def test_a_base_in_16_bits_has_no_noise_floor(base, perturbed, options):
    record = compare(perturbed, base, options, BaseOptions("tiny", "bfloat16", cache=False))
    assert (record.noise, record.verdict) == (None, None)


@pytest.fixture
def coded(make_tiny_llama, byte_level_tokenizer, tmp_path):
    """A model and its GGUF file of 8-bit blocks."""
    source = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    path = tmp_path / "q8_0.gguf"
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        path,
        name="tiny",
        file_type=7,
        choose=lambda _: ggml_type("q8_0"),
        encode=lambda name, rows, chosen: encode(rows.float(), chosen.name, name=name),
    )
    return source, path


def test_a_model_is_scored_with_the_activations_that_were_asked_for(coded, has_native):
    if not has_native:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    source, path = coded
    options = QualityOptions(window=32, num_windows=4, num_resamples=200)

    def loss(activations):
        return compare(
            path, source, options, BASE, dtype="bfloat16", activations=activations
        ).kld_mean

    losses = {name: loss(name) for name in ("auto", "int8", "int16", "bf16")}
    assert losses["auto"] == losses["int16"]
    assert len(set(losses.values())) == 3
    assert losses["int8"] > max(losses["int16"], losses["bf16"])


def test_neither_a_base_nor_its_noise_run_is_rounded(coded, has_native):
    """So that int8 activations can be compared with the 16-bit ones of the same weights."""
    if not has_native:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    _, path = coded
    options = QualityOptions(window=32, num_windows=4, num_resamples=200)
    in_bf16 = BaseOptions("q8_0", "bfloat16", cache=False)
    same = compare(path, path, options, in_bf16, dtype="bfloat16", activations="bf16")
    assert same.kld_mean == 0.0
    assert compare(path, path, options, in_bf16, activations="int8", dtype="bfloat16").kld_mean > 0
    judged = BaseOptions("q8_0", cache=False)
    exact = compare(path, path, options, judged, dtype="bfloat16", activations="bf16")
    rounded = compare(path, path, options, judged, dtype="bfloat16", activations="int8")
    assert exact.noise == rounded.noise
    assert exact.noise.kld_mean == exact.kld_mean < rounded.kld_mean


def test_the_noise_is_of_the_windows_that_were_scored(base, perturbed, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("thequickbrownfoxjumpsoverthelazydog" * 30)
    options = QualityOptions(str(text), window=32, num_windows=None, until_ci=0.9)
    heard = []
    record = compare(
        perturbed,
        base,
        options,
        BaseOptions("tiny", cache=False),
        on_noise_window=lambda *p: heard.append(p),
    )
    assert record.num_windows == 16
    assert heard[-1] == (16, 16)


def test_the_second_time_the_base_comes_from_the_disk(
    make_tiny_llama, byte_level_tokenizer, monkeypatch
):
    source = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    options = QualityOptions(window=32, num_windows=4, num_resamples=200)
    cached = BaseOptions("tiny", noise=False)
    exact = compare(source, source, options, BASE, dtype="bfloat16")
    first = compare(source, source, options, cached, dtype="bfloat16")
    assert exact.base_cache_error is None
    assert 0 < first.base_cache_error < 1e-5
    assert first.base_ppl == pytest.approx(exact.base_ppl, rel=1e-6)
    assert first.kld_mean == pytest.approx(exact.kld_mean, abs=3e-5)
    (directory,) = base_cache_directory().iterdir()
    assert len(list(directory.iterdir())) == 4

    def fail(_logits, _next_tokens):
        raise AssertionError("computed again")

    monkeypatch.setattr(base_cache, "encode", fail)
    assert compare(source, source, options, cached, dtype="bfloat16") == first


def test_a_cache_that_cannot_be_used_is_remarked(base, options, monkeypatch):
    monkeypatch.setattr(base_cache, "MAX_ERROR_NATS", 0.0)
    heard = []
    cached = BaseOptions("tiny", noise=False)
    record = compare(base, base, options, cached, on_remark=heard.append)
    assert (record.kld_mean, record.base_cache_error) == (0.0, None)
    assert len(heard) == 1
    assert "not kept on disk" in heard[0]
