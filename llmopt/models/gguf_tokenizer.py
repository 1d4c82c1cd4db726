"""A tokenizer from the metadata of a GGUF file.

Knows nothing of how the file is read. The laws: metadata is untrusted, so its parts are checked
before they are used, and no code of a model is run; token ids are llama.cpp's.

Two kinds exist: byte-level BPE with a list of merges ("gpt2"), and SentencePiece's BPE ("llama"),
whose merges follow from the scores of the tokens.

Sources: the GGUF specification of ggml for the keys and the types of tokens; llama.cpp's vocabulary
loader for the defaults; SentencePiece's BPE for what scores mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from llmopt.formats.gguf_header import GgufError, GgufValue
from llmopt.models.gguf_pretokenizers import find_pre_tokenizer

SPACE = "▁"  # SentencePiece's visible space
_KEY = "tokenizer.ggml."


class TokenType(IntEnum):
    """GGUF's types of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens of a file. special: role ("bos", "eos", ...) -> id."""

    tokens: list[str]
    types: list[int]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def special_token(self, role: str) -> str | None:
        return self.tokens[self.special[role]] if role in self.special else None


def build_tokenizer(metadata: Mapping[str, GgufValue]) -> tuple[Any, tuple[int, ...]]:
    """transformers' tokenizer, and all ids that end an answer. Raises GgufError: no vocabulary, a
    damaged one, or one of a kind that is not read.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get(f"{_KEY}model")
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if not isinstance(kind, str) or kind not in builders:
        raise GgufError(f"its tokenizer is of the kind {kind!r}; only 'gpt2' and 'llama' are read")
    template = metadata.get("tokenizer.chat_template")
    try:
        vocabulary, inner = builders[kind](metadata)
        _add_tokens(inner, vocabulary)
        inner.post_processor = _post_processor(vocabulary)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            clean_up_tokenization_spaces=False,
            bos_token=vocabulary.special_token("bos"),
            eos_token=vocabulary.special_token("eos"),
            unk_token=vocabulary.special_token("unknown"),
            pad_token=vocabulary.special_token("padding"),
            chat_template=template if isinstance(template, str) else None,
        )
    except GgufError:
        raise
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged vocabulary
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GgufError(f"its tokenizer is damaged ({reason})") from error
    ends = {
        vocabulary.special[role] for role in ("eos", "eot", "eom") if role in vocabulary.special
    }
    return tokenizer, tuple(sorted(ends))


def _byte_level(metadata: Mapping[str, GgufValue]) -> tuple[_Vocabulary, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = metadata.get(f"{_KEY}pre", "")
    known = find_pre_tokenizer(name) if isinstance(name, str) else None
    if known is None:
        raise GgufError(f"its pre-tokenizer {name!r} is not known here")
    vocabulary = _read_vocabulary(metadata, adds_bos=known.adds_bos)
    merges = [_merge(line) for line in _texts(metadata, "merges")]
    inner = Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=known.ignore_merges)
    )
    if known.composes:
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = known.build()
    inner.decoder = decoders.ByteLevel()
    return vocabulary, inner


def _merge(line: str) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not (left and space and right):
        raise GgufError(f"its tokenizer is damaged (the merge {line!r} is not two tokens)")
    return left, right


def _sentence_piece(metadata: Mapping[str, GgufValue]) -> tuple[_Vocabulary, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _read_vocabulary(metadata, adds_bos=True)
    scores = _numbers(metadata, "scores", len(vocabulary.tokens))
    adds_space = bool(metadata.get(f"{_KEY}add_space_prefix", True))
    inner = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_merges_of_scores(vocabulary, scores),
            unk_token=vocabulary.special_token("unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    escape = normalizers.Replace(" ", SPACE)
    normalizer = [normalizers.Prepend(SPACE), escape] if adds_space else [escape]
    inner.normalizer = normalizers.Sequence(normalizer)
    decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(
        [*decoder, decoders.Strip(" ", 1, 0)] if adds_space else decoder
    )
    return vocabulary, inner


def _merges_of_scores(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to make a token of two others, the tokens with the highest scores first."""
    ids = {
        token: index
        for index, token in enumerate(vocabulary.tokens)
        if vocabulary.types[index] == TokenType.NORMAL
    }
    merges: list[tuple[str, str]] = []
    for token in sorted(ids, key=lambda token: (-scores[ids[token]], ids[token])):
        ways = [
            (ids[left], ids[right], left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in ids and (right := token[cut:]) in ids
        ]
        merges += [(left, right) for _, _, left, right in sorted(ways)]
    return merges


def _read_vocabulary(metadata: Mapping[str, GgufValue], *, adds_bos: bool) -> _Vocabulary:
    tokens = _texts(metadata, "tokens")
    count = len(tokens)
    if len(set(tokens)) != count:
        raise GgufError("its tokenizer is damaged (two tokens are the same)")
    types = [TokenType.NORMAL.value] * count
    if f"{_KEY}token_type" in metadata:
        types = [int(value) for value in _numbers(metadata, "token_type", count)]
    special: dict[str, int] = {}
    for role in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        value = metadata.get(f"{_KEY}{role}_token_id")
        if isinstance(value, int) and 0 <= value < count:
            special[role] = value
    return _Vocabulary(
        tokens=tokens,
        types=types,
        special=special,
        adds_bos=bool(metadata.get(f"{_KEY}add_bos_token", adds_bos)),
        adds_eos=bool(metadata.get(f"{_KEY}add_eos_token", False)),
    )


def _texts(metadata: Mapping[str, GgufValue], key: str) -> list[str]:
    value = metadata.get(f"{_KEY}{key}")
    if not isinstance(value, list):
        raise GgufError(f"its tokenizer has no {key}")
    texts = [item for item in value if isinstance(item, str)]
    if len(texts) != len(value):
        raise GgufError(f"its tokenizer is damaged ({key} are not all texts)")
    return texts


def _numbers(metadata: Mapping[str, GgufValue], key: str, count: int) -> list[float]:
    value = metadata.get(f"{_KEY}{key}")
    numbers = [x for x in value if isinstance(x, int | float)] if isinstance(value, list) else []
    if not isinstance(value, list) or not len(numbers) == len(value) == count:
        raise GgufError(f"its tokenizer is damaged ({key} is not {count} numbers)")
    return numbers


def _add_tokens(inner: Any, vocabulary: _Vocabulary) -> None:
    """Tokens that are found in a text before anything else."""
    from tokenizers import AddedToken

    special, plain = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    inner.add_special_tokens(special)
    inner.add_tokens(plain)


def _post_processor(vocabulary: _Vocabulary) -> Any:
    """What is put around a text."""
    from tokenizers import processors

    first = vocabulary.special_token("bos") if vocabulary.adds_bos else None
    last = vocabulary.special_token("eos") if vocabulary.adds_eos else None
    pieces = [piece for piece in (first, "$A", last) if piece is not None]
    ids = vocabulary.ids
    around = [(token, ids[token]) for token in (first, last) if token is not None]
    return processors.TemplateProcessing(single=pieces, special_tokens=around)
