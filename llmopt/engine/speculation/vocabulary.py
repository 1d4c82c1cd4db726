"""Whether a draft model speaks the target's tokens.

Knows nothing about models' weights.
Law: a draft model of another vocabulary is refused; its guesses would all be wrong.
"""

from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import Tokenizer, load_tokenizer

_TOLERATED_SHARE = 0.01  # models of a family name some of their special tokens differently


def check_draft_tokenizer(target: Tokenizer, speculation: SpeculationConfig) -> None:
    """Raise UsageError if the config names a draft model whose token ids mean other tokens.

    Raises:
        ModelError, CheckpointError: it has no tokenizer that can be read.
    """
    kind, name = speculation.parse()
    if kind != "draft":
        return
    draft = load_tokenizer(resolve_model(name))
    ours, theirs = (_tokens_by_id(tokenizer) for tokenizer in (target, draft))
    shared = ours.keys() & theirs.keys()
    num_different = sum(ours[token_id] != theirs[token_id] for token_id in shared)
    if num_different > _TOLERATED_SHARE * len(shared):
        raise UsageError(
            f"{num_different} of {len(shared)} token ids mean other tokens to the draft model"
            f" {name} than to the model",
            "Draft with a model of the same family, whose tokenizer is the same.",
        )


def _tokens_by_id(tokenizer: Tokenizer) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.backend.get_vocab().items()}
