"""Token ids to text, as they come: what is settled at once, and never half a character.

Most tokenizers of language models are made of bytes: each token stands for some, and the text is
their UTF-8. Those are decoded byte by byte. Others (whole words, for example) are decoded by the
tokenizer itself, a few tokens at a time.

Knows nothing about requests or stop strings.
Law: what was given out is never taken back; a token costs its own length, not that of the text; the
parts put together are what the tokenizer decodes, where its tokens are valid UTF-8, and otherwise
each byte sequence that can never become a character is one U+FFFD.
"""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llmopt.models.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
_SPACE_MARK = "\u2581"  # what SentencePiece writes for a space


class TokenText:
    """What tokens of a tokenizer stand for; made once per model, shared by its requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        backend = tokenizer.backend
        self._backend = backend
        added = backend.added_tokens_decoder
        self._special = frozenset(i for i, token in added.items() if token.special)
        decoders = _decoders(backend)
        self._kind = _kind(decoders)
        self._strips_first_space = _strips_first_space(decoders)
        self._bytes: dict[int, bytes] = {}

    def start(self) -> "Detokenizer":
        """A detokenizer for a new text."""
        if self._kind == "opaque":
            return _WindowDetokenizer(self._backend)
        return _ByteDetokenizer(self, self._strips_first_space)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; none for a special one or one that the tokenizer does not know."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._find_bytes(token_id)
        return found

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._special:
            return b""
        token: str | None = self._backend.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._kind == "byte level":
            if all(character in _BYTE_OF for character in token):
                return bytes(_BYTE_OF[character] for character in token)
            return token.encode()
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return token.replace(_SPACE_MARK, " ").encode()


class Detokenizer(Protocol):
    """One text in the making."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; return the text that is settled now and was not before."""
        ...

    def finish(self) -> str:
        """The rest of the text; an incomplete character becomes U+FFFD."""
        ...


class _ByteDetokenizer:
    def __init__(self, tokens: TokenText, strips_first_space: bool) -> None:
        self._tokens = tokens
        self._strip = strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        return self._decode(b"".join(map(self._tokens.bytes_of, token_ids)), final=False)

    def finish(self) -> str:
        return self._decode(b"", final=True)

    def _decode(self, content: bytes, final: bool) -> str:
        text = self._decoder.decode(content, final)
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _WindowDetokenizer:
    """Decodes the tokens since the last settled place, behind the token before them.

    That token shows how the tokenizer joins them to the text.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._before: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        settled: list[str] = []
        for token_id in token_ids:
            self._pending.append(token_id)
            text = self._new_text()
            if text and not text.endswith(_REPLACEMENT):
                settled.append(text)
                self._before, self._pending = self._pending[-1:], []
        return "".join(settled)

    def finish(self) -> str:
        text = self._new_text()
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._before)
        return self._decode(self._before + self._pending)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=True)
        return text


def _decoders(backend: Any) -> list[dict[str, Any]]:
    """The steps of a fast tokenizer's decoder, in the terms of tokenizer.json."""
    if not backend.is_fast:
        return []
    step = backend.backend_tokenizer.decoder
    if step is None:
        return []
    decoder = json.loads(step.__getstate__())  # to_str() would write the whole vocabulary
    if decoder["type"] == "Sequence":
        return list(decoder["decoders"])
    return [decoder]


def _kind(decoders: Sequence[Mapping[str, Any]]) -> str:
    """ "byte level", "sentencepiece", or "opaque" for all others."""
    names = [decoder["type"] for decoder in decoders]
    if names == ["ByteLevel"]:
        return "byte level"
    marks = [
        decoder["type"] == "Metaspace"
        or (
            decoder["type"] == "Replace"
            and decoder["pattern"] == {"String": _SPACE_MARK}
            and decoder["content"] == " "
        )
        for decoder in decoders
    ]
    known = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
    if set(names) <= known and sum(marks) == 1 and names.count("Replace") <= 1:
        return "sentencepiece"
    return "opaque"


def _strips_first_space(decoders: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        (decoder["type"] == "Strip" and decoder["content"] == " " and decoder["start"] == 1)
        or (decoder["type"] == "Metaspace" and decoder.get("prepend_scheme") != "never")
        for decoder in decoders
    )


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (Radford et al., 2019, GPT-2).

    Printable bytes of Latin-1 stand for themselves, the others follow from U+0100 in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
