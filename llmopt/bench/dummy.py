"""Targets of random weights: what a target like that is, without a checkpoint.

Knows nothing about runs. The law: whatever a result says of such a target says too that its
weights are random, and no quality of it is ever measured.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from llmopt.errors import LLMOptError
from llmopt.models.decoder import Decoder
from llmopt.models.dummy import quantize_of, read_config
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import Tokenizer, load_tokenizer
from llmopt.recipe.check import Problem
from llmopt.recipe.schema import QuantizeSpec, Recipe, Target
from llmopt.results.schema import ModelFacts

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_DTYPE_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class ByteTokenizer:
    """Reads every byte of a text as a token, for a config that no tokenizer lies beside."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids below the size of the vocabulary. There are no special tokens."""
        del add_special_tokens
        return [byte % self._vocab_size for byte in text.encode()]


def tokenizer_of(target: Target, path: Path, vocab_size: int) -> Tokenizer | ByteTokenizer:
    """The tokenizer of a target whose model or config is at `path`."""
    if target.dummy_config is not None and not _has_tokenizer(path):
        return ByteTokenizer(vocab_size)
    return load_tokenizer(_directory(path) if target.dummy_config is not None else path)


def dummy_path(config: str) -> Path:
    """The config.json, or the directory that holds it. Raises ModelError, CheckpointError."""
    path = Path(config).expanduser()
    if path.suffix == ".json" or (path / "config.json").is_file():
        return path
    return resolve_model(config)


def dummy_scheme(target: Target) -> str | None:
    """How the random weights are stored; None: in full precision."""
    assert not isinstance(target.quantize, QuantizeSpec), "a rule refuses it"
    return target.quantize


def dummy_hash(target: Target, path: Path) -> str:
    """What tells models of random weights apart. Raises CheckpointError."""
    content = json.dumps([read_config(path), dummy_scheme(target)], sort_keys=True)
    return hashlib.sha256(f"dummy {content}".encode()).hexdigest()


def dummy_note(target: Target) -> str:
    """What a reader must know."""
    return (
        f"The weights of {target.name} are random ({target.model}): speed is measured, quality is "
        f"n/a, and sizes are those in memory."
    )


def dummy_facts(target: Target, model: Decoder, content_hash: str, note: str | None) -> ModelFacts:
    """The facts of a model of random weights, in memory; norms and biases are not counted."""
    linears = [linear for block in model.blocks for linear in block.linears]
    num_linear = sum(linear.in_features * linear.out_features for linear in linears)
    linear_bytes = sum(linear.weight_bytes for linear in linears)
    num_parameters = num_linear + model.embedding.numel()
    num_bytes = linear_bytes + model.embedding.nbytes
    if not model.config.tie_word_embeddings:
        num_parameters += model.lm_head.in_features * model.lm_head.out_features
        num_bytes += model.lm_head.weight_bytes
    scheme = dummy_scheme(target)
    return ModelFacts(
        name=target.model,
        path_hash=content_hash,
        architecture=model.config.architecture,
        scheme=scheme or _DTYPE_SCHEMES[model.dtype],
        compute_dtype=str(model.dtype).removeprefix("torch."),
        num_parameters=num_parameters,
        file_bytes=num_bytes,
        weight_bytes=model.weight_bytes,
        bits_per_weight=8 * num_bytes / num_parameters,
        linear_bits_per_weight=None if scheme is None else 8 * linear_bytes / num_linear,
        kernels=model.kernels,
        note=note,
        is_dummy=True,
    )


def dummy_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the random weights of a recipe (a rule for `load_recipe`)."""
    for index, target in enumerate(recipe.targets):
        if target.dummy_config is None or target.quantize is None:
            continue
        if isinstance(target.quantize, QuantizeSpec):
            yield Problem(
                ("targets", index, "quantize"),
                "random weights are not quantized, they are of a scheme",
                "Give its name alone, such as w4g128.",
            )
            continue
        try:
            quantize_of(target.quantize)
        except LLMOptError as error:
            yield Problem(("targets", index, "quantize"), error.message, error.remedy)


def _directory(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _has_tokenizer(path: Path) -> bool:
    return any((_directory(path) / name).is_file() for name in _TOKENIZER_FILES)
