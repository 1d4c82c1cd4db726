"""The metadata that GGUF keeps of a tokenizer.

Knows nothing of files. The law: the tokenizer that the metadata stand for is built again from them,
and must give the same ids on a set of difficult texts, or nothing is written.

Sources: the GGUF specification of ggml for the keys; llama.cpp's vocabulary loader for what they
make it do.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.errors import ModelError
from llmopt.formats.gguf_header import GgufError, GgufField
from llmopt.models.gguf_pretokenizers import (
    PRE_TOKENIZERS,
    PROBES,
    find_pre_tokenizer,
    name_pre_tokenizer,
)
from llmopt.models.gguf_tokenizer import SPACE, TokenType, build_tokenizer
from llmopt.models.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNLIKELY = 1000.0  # how far below all others the score of a token lies that no merge makes


def vocabulary_metadata(
    tokenizer: Tokenizer, *, vocab_size: int, pre: str | None = None
) -> dict[str, GgufField]:
    """The tokenizer's part of the metadata.

    vocab_size: rows of the embedding; ids without a token become unused ones. pre: llama.cpp's name
    of the pre-tokenizer, if it is known better than it can be found out. Raises ModelError: a kind
    of tokenizer that GGUF does not have, or an unknown pre-tokenizer.
    """
    backend = tokenizer.backend.backend_tokenizer
    model = json.loads(backend.to_str())
    if model["model"].get("type") != "BPE":
        raise ModelError(
            f"its tokenizer is a {model['model'].get('type')} model, which is not written as GGUF",
            "Models with a BPE tokenizer can be written; choose another format.",
        )
    if model["model"].get("byte_fallback"):
        fields = _sentence_piece(backend, model, vocab_size)
    else:
        fields = _byte_level(backend, model, vocab_size, pre)
    metadata = {f"tokenizer.ggml.{key}": field for key, field in fields.items()}
    metadata |= _special_ids(tokenizer)
    template = tokenizer.backend.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if isinstance(template, str):
        metadata["tokenizer.chat_template"] = GgufField.string(template)
    if pre is None or find_pre_tokenizer(pre) is not None:
        _require_same_ids(tokenizer, metadata)
    return metadata


def _byte_level(
    backend: Any, model: Mapping[str, Any], vocab_size: int, pre: str | None
) -> dict[str, GgufField]:
    _require_unchanged(backend.normalizer)
    ignore_merges = bool(model["model"].get("ignore_merges"))
    pre = pre or name_pre_tokenizer(backend.pre_tokenizer, ignore_merges=ignore_merges)
    if pre is None:
        raise ModelError(
            "the tokenizer cuts words in a way that is not among those known to llama.cpp by name",
            f"If you know the name, give it as --gguf-pre NAME ({', '.join(PRE_TOKENIZERS)}, ...).",
        )
    tokens, types = _tokens(model, vocab_size)
    return {
        "model": GgufField.string("gpt2"),
        "pre": GgufField.string(pre),
        "tokens": GgufField.strings(tokens),
        "token_type": GgufField.int32s(types),
        "merges": GgufField.strings([" ".join(pair) for pair in _merges(model)]),
    }


def _sentence_piece(
    backend: Any, model: Mapping[str, Any], vocab_size: int
) -> dict[str, GgufField]:
    tokens, types = _tokens(model, vocab_size)
    return {
        "model": GgufField.string("llama"),
        "pre": GgufField.string("default"),
        "tokens": GgufField.strings(tokens),
        "scores": GgufField.float32s(_scores(tokens, _merges(model))),
        "token_type": GgufField.int32s(types),
        "add_space_prefix": GgufField.boolean(_adds_space(backend)),
    }


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens, the first to be merged first; older files have them as one text."""
    merges = model["model"]["merges"]
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _tokens(model: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [TokenType.UNUSED.value] * vocab_size
    has_bytes = bool(model["model"].get("byte_fallback"))
    for token, index in model["model"]["vocab"].items():
        if index < vocab_size:
            tokens[index] = token
            is_byte = has_bytes and _BYTE.fullmatch(token)
            types[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in model["added_tokens"]:
        index, token = added["id"], added["content"]
        if index >= vocab_size:
            continue
        if token == model["model"].get("unk_token"):
            types[index] = TokenType.UNKNOWN
        elif added["special"]:
            types[index] = TokenType.CONTROL
        else:
            types[index] = TokenType.USER_DEFINED
            token = token.replace(SPACE, " ") if has_bytes else token
        tokens[index] = token
    _require_distinct(tokens)
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """The sooner a token is merged, the higher its score."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    lowest = -len(merges) - _UNLIKELY
    return [-float(ranks[token]) if token in ranks else lowest for token in tokens]


def _special_ids(tokenizer: Tokenizer) -> dict[str, GgufField]:
    """Ids with a role, and whether BOS and EOS are put around a text."""
    backend = tokenizer.backend
    bos, eos = backend.bos_token_id, backend.eos_token_id
    ends = [token_id for token_id in tokenizer.eos_token_ids if token_id != eos]
    if eos is None and ends:
        eos = ends.pop(0)
    ids = {
        "bos": bos,
        "eos": eos,
        "unknown": backend.unk_token_id,
        "padding": backend.pad_token_id,
        "eot": ends[0] if ends else None,
        "eom": ends[1] if len(ends) > 1 else None,
    }
    fields = {
        f"tokenizer.ggml.{role}_token_id": GgufField.uint32(token_id)
        for role, token_id in ids.items()
        if token_id is not None
    }
    around = tokenizer.encode("a")
    adds_bos, adds_eos = bos is not None and around[0] == bos, eos is not None and around[-1] == eos
    fields["tokenizer.ggml.add_bos_token"] = GgufField.boolean(adds_bos)
    fields["tokenizer.ggml.add_eos_token"] = GgufField.boolean(adds_eos)
    return fields


def _adds_space(backend: Any) -> bool:
    """Whether a text begins with a space that it does not have. Raises ModelError if the text is
    changed in another way too.
    """
    prefixes = []
    for text in PROBES:
        seen = backend.normalizer.normalize_str(text) if backend.normalizer else text
        if backend.pre_tokenizer:
            seen = "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(seen))
        escaped = text.replace(" ", SPACE)
        if not seen.endswith(escaped) or seen.removesuffix(escaped) not in ("", SPACE):
            raise _normalizes()
        prefixes.append(seen != escaped)
    return any(prefixes)


def _require_unchanged(normalizer: Any) -> None:
    if normalizer and any(normalizer.normalize_str(text) != text for text in PROBES):
        raise _normalizes()


def _normalizes() -> ModelError:
    return ModelError(
        "the tokenizer changes texts in a way that GGUF cannot say", "Choose another format."
    )


def _require_distinct(tokens: Sequence[str]) -> None:
    if len(set(tokens)) != len(tokens):
        raise ModelError(
            "two tokens of the tokenizer would be the same in GGUF", "Choose another format."
        )


def _require_same_ids(tokenizer: Tokenizer, metadata: Mapping[str, GgufField]) -> None:
    try:
        rebuilt, _ = build_tokenizer({key: field.value for key, field in metadata.items()})
    except GgufError as error:
        raise ModelError(
            f"the tokenizer cannot be said in GGUF: {error}", "Choose another format."
        ) from error
    for text in map(str.lstrip, PROBES):  # tokenizers differ on the space that a text begins with
        if rebuilt.encode(text, verbose=False) != tokenizer.encode(text):
            raise ModelError(
                f"in GGUF the tokenizer would give other ids, such as for {text[:40]!r}",
                "Choose another format.",
            )
