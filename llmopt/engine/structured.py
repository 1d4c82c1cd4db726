"""Outputs that have to match a JSON schema, a regular expression or a grammar.

The work is done by llguidance, an optional part: it says which tokens may come next.

Knows nothing about logits or requests.
Law: an output that ends by itself matches; one that `max_tokens` cuts is the beginning of one that
would, and so is one that gets too complex for the library.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmopt.engine.sampling_params import Constraint
from llmopt.errors import MissingDependencyError, UsageError
from llmopt.models.tokenizer import Tokenizer


class GrammarCompiler:
    """Makes grammars for the tokens of one model.

    Args:
        vocab_size: width of the model's logits.
        eos_token_ids: tokens that may come where an output is complete.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(eos_token_ids)
        self._tokenizer = tokenizer
        self._tokens: Any = None  # llguidance's view of the tokenizer, made when first needed

    def check(self, constraint: Constraint) -> None:
        """Raise what `start` would.

        Raises:
            MissingDependencyError: llguidance is not installed.
            UsageError: the constraint is malformed, or the model has no end of text.
        """
        self.start(constraint)

    def start(self, constraint: Constraint) -> "GrammarState":
        """The beginning of an output. Raises as `check`."""
        llguidance = _import_llguidance()
        matchers = llguidance.LLMatcher
        if not self.eos_token_ids:
            raise UsageError(
                f"{constraint.kind} needs a token that ends the output and the model names none",
                "Use a model with an end-of-text token.",
            )
        if self._tokens is None:
            self._tokens = self._make_tokens()
        try:
            if constraint.kind == "json_schema":
                grammar = matchers.grammar_from_json_schema(constraint.text)
            elif constraint.kind == "regex":
                grammar = matchers.grammar_from_regex(constraint.text)
            else:
                grammar = matchers.grammar_from_lark(constraint.text)
        except ValueError as error:
            raise _malformed(constraint, str(error)) from error
        matcher = matchers(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise _malformed(constraint, matcher.get_error())
        return GrammarState(matcher, self.vocab_size, self.eos_token_ids)

    def _make_tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not self._tokenizer.backend.is_fast:
            raise UsageError(
                "the model has a slow tokenizer, whose tokens cannot be matched",
                "Use a model with a tokenizer.json.",
            )
        num_tokens = max(self.vocab_size, self._tokenizer.vocab_size)
        eos_token_ids = list(self.eos_token_ids)
        return from_tokenizer(self._tokenizer.backend, n_vocab=num_tokens, eos_token=eos_token_ids)


class GrammarState:
    """How far one output has come in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    @property
    def has_failed(self) -> bool:
        """Whether the output got too complex for the library, which it stays."""
        return bool(self._matcher.is_error())

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on behind tokens that were chosen."""
        for token_id in token_ids:
            if self._matcher.is_stopped():
                return
            self._matcher.consume_token(token_id)

    def allowed(self, draft_token_ids: Sequence[int] = ()) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, and which behind each token of a draft.

        Behind a draft's first token that may not come, all may: nothing there is ever used. Nothing
        at all is to be used once the output `has_failed`, which may come of this call.

        Returns:
            [1 + length of the draft, V]; every row has a token.
        """
        allowed = np.ones((1 + len(draft_token_ids), self._vocab_size), dtype=np.bool_)
        self._fill(allowed[0])
        num_consumed = 0
        for row, token_id in zip(allowed[1:], draft_token_ids, strict=True):
            if self._matcher.is_stopped() or not self._matcher.try_consume_tokens([token_id]):
                break
            num_consumed += 1
            self._fill(row)
        if num_consumed:
            self._matcher.rollback(num_consumed)
        return allowed

    def _fill(self, row: npt.NDArray[np.bool_]) -> None:
        """A complete output can only end."""
        if self._matcher.is_stopped():
            row[:] = False
            row[self._eos_token_ids] = True
            return
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little", count=self._vocab_size)
        row[:] = bits.astype(np.bool_)


def _import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "constrained output needs llguidance, which is not installed",
            "Install it with: pip install 'llmopt[structured]'",
        ) from error
    return llguidance


def _malformed(constraint: Constraint, reason: str) -> UsageError:
    first_line = (reason.strip() or "no reason given").splitlines()[0]
    kind = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
    return UsageError(
        f"the {kind[constraint.kind]} {constraint.text[:80]!r} cannot be used: {first_line}",
        "Correct it, or leave it out.",
    )
