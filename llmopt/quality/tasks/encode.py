"""Contexts and continuations as tokens, by the rules of lm-evaluation-harness.

Knows nothing about models' weights. The law it keeps: both parts of a pair have at least one
token, so that every continuation token has something before it.

The rules (lm_eval/api/model.py, TemplateLM, and models/huggingface.py, HFLM, of 0.4): spaces at the
end of a context move to the continuation; both are tokenized together, and what follows as many
tokens as the context alone has is the continuation; special tokens are the tokenizer's own, unless
the text already begins with BOS; an empty context is BOS, or EOS where there is no BOS; a pair that
is too long loses tokens of the context from the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Token ids of a context and of what follows it, each at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> TokenPair:
    """Tokens of a context and its continuation. Raises UsageError if the latter has none.

    A context of nothing but spaces counts as an empty one whose continuation they begin (the
    harness gives up on it with tokenizers that put no BOS).
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if stripped:
        context_ids = encode_text(tokenizer, stripped)
        continuation_ids = encode_text(tokenizer, stripped + continuation)[len(context_ids) :]
    else:
        context_ids = [prefix_token_id(tokenizer)]
        continuation_ids = tokenizer.encode(continuation, add_special_tokens=False)
        if continuation_ids[:1] == context_ids:
            continuation_ids = continuation_ids[1:]
    if not continuation_ids:
        raise UsageError(
            f"the continuation {continuation!r} has no token of its own behind {stripped[-40:]!r}",
            "Give a continuation that adds a word to its context.",
        )
    return TokenPair(tuple(context_ids), tuple(continuation_ids))


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text with the special tokens of its model, BOS not twice."""
    bos = tokenizer.backend.decode([prefix_token_id(tokenizer)])
    return tokenizer.encode(text, add_special_tokens=not text.startswith(bos))


def prefix_token_id(tokenizer: Tokenizer) -> int:
    """The token that stands for an empty context: BOS, else EOS."""
    token_id: int | None = tokenizer.bos_token_id
    if token_id is None:
        token_id = tokenizer.backend.eos_token_id
    if token_id is None:
        raise UsageError(
            "the tokenizer has neither a BOS nor an EOS token",
            "Use the model's complete tokenizer files.",
        )
    return token_id


def fit_pair(pair: TokenPair, max_model_len: int) -> TokenPair:
    """Shorten the context from the left until all tokens but the last, which is never read, fit.

    Raises UsageError if the continuation alone does not.
    """
    room = max_model_len + 1 - len(pair.continuation)
    if room < 1:
        raise UsageError(
            f"a continuation has {len(pair.continuation)} tokens, and the model reads at most"
            f" {max_model_len}",
            "Leave this item out, or use a model that reads more.",
        )
    return TokenPair(pair.context[-room:], pair.continuation)


def rolling_pairs(
    token_ids: Sequence[int], prefix_token_id: int, max_model_len: int
) -> list[TokenPair]:
    """Cut a text into pairs that score each of its tokens once, with as much context as there is.

    The first window predicts from the prefix token on; each further one holds `max_model_len`
    tokens and predicts those that are still missing (`get_rolling_token_windows` with a context of
    1 token in lm_eval/utils.py). An empty text gives no pairs.
    """
    tokens = (prefix_token_id, *token_ids)
    pairs = []
    for start in range(1, len(tokens), max_model_len):
        end = min(start + max_model_len, len(tokens))
        first = max(0, end - 1 - max_model_len)
        pairs.append(TokenPair(tokens[first:start], tokens[start:end]))
    return pairs
