"""Perplexity and divergence through runtimes of others, against those runtimes' own arithmetic.

Those of llama.cpp need its environment: made by `llmopt backend install llama.cpp`, or named by
LLMOPT_ENVIRONMENT_LLAMA_CPP=/path/to/bin/python.
"""

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.errors import BackendError, LLMOptError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import GGML_TYPES
from llmopt.models.gguf_export import FILE_TYPES, export_gguf
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.evaluation_text import read_evaluation_text
from llmopt.quality.external.llama_cpp_source import find_llama_cpp, open_llama_cpp
from llmopt.quality.external.measure import measure_source
from llmopt.quality.external.sources import open_source
from llmopt.quality.options import QualityOptions
from llmopt.quality.prediction import measure_prediction
from llmopt.quality.source import ModelLogits
from llmopt.quality.text import load_windows
from llmopt.quality.windows import Window

NUM_PAPER_WINDOWS = 2
NUM_LLAMA_CPP_WINDOWS = 8


@pytest.fixture(scope="module")
def llama_cpp_python() -> Path:
    try:
        return find_llama_cpp()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def wikitext() -> str:
    """WikiText-2's test split, as it is in the cache or on the hub."""
    try:
        return read_evaluation_text("wikitext-2").content
    except LLMOptError as error:
        pytest.skip(str(error))


def export_f16(source: Path, out: Path) -> Path:
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        out,
        name=source.name,
        file_type=FILE_TYPES["f16"],
        choose=lambda tensor: GGML_TYPES["f16"],
        encode=lambda name, weight, kind: pytest.fail("nothing is in blocks"),
    )
    return out


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.engines
@pytest.mark.usefixtures("llama_cpp_python")
def test_llama_cpp_gives_the_logits_that_our_runtime_gives(
    make_tiny_llama, byte_level_tokenizer, tmp_path
):
    source = make_tiny_llama(vocab_size=608, max_position_embeddings=2048, initializer_range=0.1)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    path = export_f16(source, tmp_path / "tiny.gguf")
    ours = ModelLogits(load_model(path, dtype="float32"), name="ours", scheme="fp16")
    generator = torch.Generator().manual_seed(3)
    # from one row to windows of several batches, a long one after a short one and back
    shapes = [(60, 59), (2, 1), (1300, 1100), (600, 88), (512, 255), (513, 512), (60, 59)]
    with open_llama_cpp(path, num_threads=1) as theirs:
        assert (theirs.vocab_size, theirs.max_tokens) == (608, 2048)
        for length, num_scored in shapes:
            window = Window(torch.randint(3, 600, (length,), generator=generator), num_scored, 0)
            got = torch.cat(list(theirs.chunks(window)))
            expected = torch.cat(list(ours.chunks(window)))
            assert got.shape == (num_scored, 608)
            assert (got - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.engines
@pytest.mark.usefixtures("llama_cpp_python")
def test_the_same_file_in_both_runtimes_is_a_pair_of_rows(
    make_tiny_llama, byte_level_tokenizer, tmp_path
):
    source = make_tiny_llama(vocab_size=608, initializer_range=0.1)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    path = export_f16(source, tmp_path / "tiny.gguf")
    base = ModelLogits(load_model(source, dtype="float32"), name="base", scheme="fp32")
    options = QualityOptions(window=64, num_windows=4, num_resamples=200)
    windows = load_windows(load_tokenizer(source), options)
    records = {}
    for kind in ("llmopt", "llama.cpp"):
        with open_source(kind, path, dtype="float32") as target:
            records[kind] = measure_source(target, kind, base, windows, options)
    assert [record.source for record in records.values()] == ["llmopt", "llama.cpp"]
    ours, theirs = records["llmopt"], records["llama.cpp"]
    assert ours.ppl == pytest.approx(theirs.ppl, rel=1e-3)
    assert 0 < ours.kld_mean < 1e-4
    assert 0 < theirs.kld_mean < 1e-4


@pytest.mark.engines
@pytest.mark.usefixtures("llama_cpp_python")
def test_a_file_that_llama_cpp_cannot_load_is_told_in_its_words(
    make_tiny_llama, byte_level_tokenizer, tmp_path
):
    source = make_tiny_llama(vocab_size=608)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(source)
    content = export_f16(source, tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "spoiled.gguf"
    key = b"llama.attention.head_count_kv"  # without it every head is taken to have its own
    path.write_bytes(content.replace(key, key[:-1] + b"x"))
    with (
        pytest.raises(BackendError, match=r"cannot load the file: .*attn_k\.weight.* wrong shape"),
        open_llama_cpp(path, num_threads=1),
    ):
        pass


def our_perplexity(model: Path, options: QualityOptions) -> float:
    source = ModelLogits(load_model(model, dtype="float32"), name="ours", scheme="fp32")
    windows = load_windows(load_tokenizer(model), options)
    return measure_prediction(source, windows, options).perplexity.ppl


@torch.no_grad()
def transformers_perplexity(directory: Path, text: str, num_windows: int) -> float:
    """GPTQ's evaluation of WikiText-2 with transformers alone, after the paper's published code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    rows = [line + "\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]
    tokens = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    length, losses = 2048, []
    for index in range(num_windows):
        batch = tokens[:, index * length : (index + 1) * length]
        logits = model(batch).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], batch[0, 1:])
        losses.append(loss.double().item() * length)
    return math.exp(sum(losses) / (num_windows * length))


@pytest.mark.real_model
@pytest.mark.usefixtures("two_threads")
def test_paper_perplexity_is_that_of_transformers(default_model, wikitext):
    options = QualityOptions(text="wikitext-2", protocol="paper", num_windows=NUM_PAPER_WINDOWS)
    ours = our_perplexity(default_model, options)
    theirs = transformers_perplexity(default_model, wikitext, NUM_PAPER_WINDOWS)
    print(f"paper: ours {ours:.6f}, transformers {theirs:.6f}")
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.real_model
@pytest.mark.engines
@pytest.mark.usefixtures("two_threads")
def test_llama_cpp_perplexity_is_that_of_llama_cpp(
    default_model, wikitext, llama_cpp_python, tmp_path
):
    path, text = export_f16(default_model, tmp_path / "f16.gguf"), tmp_path / "text"
    text.write_text(wikitext, encoding="utf-8")
    options = QualityOptions(
        text="wikitext-2", protocol="llama.cpp", num_windows=NUM_LLAMA_CPP_WINDOWS
    )
    ours = our_perplexity(path, options)
    script = Path(__file__).parent / "llama_cpp_perplexity.py"
    done = subprocess.run(
        [llama_cpp_python, script, path, text, str(NUM_LLAMA_CPP_WINDOWS)],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout)["ppl"]
    print(f"llama.cpp: ours {ours:.6f}, llama.cpp {theirs:.6f}")
    assert ours == pytest.approx(theirs, rel=5e-3)
