"""What a request asks for: how its tokens are chosen, when they stop, what is reported of them.

Knows nothing about tensors, tokenizers or the state of a request.
Law: parameters that exist are within their ranges and do not contradict each other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmopt.errors import UsageError

ConstraintKind = Literal["json_schema", "regex", "grammar"]

# Within these, whatever a model computes stays finite in float32.
MIN_TEMPERATURE = 1e-5  # that logits are divided by
_MAX_TEMPERATURE = 1e5
_MAX_REPETITION = 100.0
_MAX_BIAS = 1e4


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an output has to match: the text of a JSON schema, a regular expression or a grammar."""

    kind: ConstraintKind
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose and when to stop the tokens of one request.

    The arguments about choosing are applied in the order in which they are listed, which is that
    of transformers; see `llmopt.layers.sampler`. Penalties and `logit_bias` concern greedy requests
    too.

    Args:
        max_tokens: most tokens to generate; clipped to what fits in the model's length.
        min_tokens: end-of-sequence tokens, stop tokens and stop strings are impossible, or without
            effect, before this many tokens.
        json_schema: the output is a JSON document that this schema (JSON text) allows.
        regex: the output as a whole matches this regular expression.
        grammar: the output is a sentence of this grammar, in the syntax of Lark.
        choice: the output is one of these texts. At most one of these four.
        logit_bias: added to the logits of these token ids; from -10000 to 10000.
        repetition_penalty: from 0.01 to 100; logits of tokens in prompt or output are divided by it
            where positive and multiplied where negative (Keskar et al., 2019, CTRL); 1 is off.
        frequency_penalty: subtracted from a token's logit for each time that it was generated.
        presence_penalty: subtracted once if it was generated. Both are OpenAI's, from -2 to 2.
        temperature: 0 is greedy; otherwise, up to 1e5, logits are divided by it, or by 1e-5 where
            it is smaller.
        top_k: keep the k most likely tokens; None keeps all.
        top_p: then keep the smallest set of most likely tokens whose probability reaches top_p.
        min_p: then keep tokens at least this fraction as likely as the most likely one.
        seed: the random stream; None draws a fresh one per request.
        ignore_eos: end-of-sequence tokens of the model do not stop the request.
        stop_token_ids: further tokens that stop it; they stop it even under `ignore_eos`.
        stop: texts that stop it; the output's text ends before the first of them.
        logprobs: report the log-probability of each output token and of this many of the most
            likely ones, from the logits of the model before anything above; None: no.
        prompt_logprobs: the same for the tokens of the prompt behind its first.
        n: outputs of the prompt. Output i draws from seed + i.
        best_of: generate this many and report the n of the greatest mean log-probability per token.
        priority: requests of smaller numbers go first, under the policy "priority".

    Raises:
        UsageError: a value is out of its range, or two contradict each other.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        _check_lengths(self)
        _check_distribution(self)
        _check_penalties(self)
        _check_reports(self)
        _check_constraint(self)

    @property
    def num_samples(self) -> int:
        """Outputs that are generated, reported or not."""
        return self.best_of or self.n

    @property
    def num_logprobs(self) -> int | None:
        """Most likely tokens whose log-probabilities are computed; None: not even the chosen's."""
        return 0 if self.logprobs is None and self.num_samples > self.n else self.logprobs

    @property
    def has_penalties(self) -> bool:
        """Whether tokens of the prompt or the output change the logits."""
        return bool(self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty)

    @property
    def is_constrained(self) -> bool:
        """Whether the output has to match something."""
        return bool(self.json_schema or self.regex or self.grammar or self.choice)

    @property
    def changes_logits(self) -> bool:
        """Whether anything but a distribution's shape and stop tokens decides what is chosen."""
        return bool(self.logit_bias) or self.has_penalties or self.is_constrained

    @property
    def constraint(self) -> Constraint | None:
        """What the output has to match."""
        if self.json_schema is not None:
            return Constraint("json_schema", self.json_schema)
        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.grammar is not None:
            return Constraint("grammar", self.grammar)
        if self.choice:
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choice)
            return Constraint("grammar", f"start: {texts}")
        return None


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {value}", remedy)


def _check_lengths(params: SamplingParams) -> None:
    _require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "Give at least 1.")
    _require(
        0 <= params.min_tokens <= params.max_tokens,
        "min_tokens",
        params.min_tokens,
        f"Give a number from 0 to max_tokens ({params.max_tokens}).",
    )
    for name, texts in (("stop", params.stop), ("choice", params.choice)):
        _require(
            not isinstance(texts, str) and all(texts),
            name,
            repr(texts),
            "Give a tuple of texts, none of them empty.",
        )


def _check_distribution(params: SamplingParams) -> None:
    _require(
        0 <= params.temperature <= _MAX_TEMPERATURE,
        "temperature",
        params.temperature,
        f"Give 0 for greedy decoding, or a number up to {_MAX_TEMPERATURE:g}.",
    )
    _require(
        params.top_k is None or params.top_k >= 1,
        "top_k",
        params.top_k,
        "Give at least 1, or leave it out to keep all tokens.",
    )
    _require(
        0 < params.top_p <= 1,
        "top_p",
        params.top_p,
        "Give a number above 0 and at most 1; 1 keeps all tokens.",
    )
    _require(
        0 <= params.min_p <= 1,
        "min_p",
        params.min_p,
        "Give a number from 0 to 1; 0 keeps all tokens.",
    )
    _require(
        params.seed is None or 0 <= params.seed < 2**64,
        "seed",
        params.seed,
        "Give a whole number from 0 to 2**64 - 1, or leave it out for a random one.",
    )


def _check_penalties(params: SamplingParams) -> None:
    _require(
        1 / _MAX_REPETITION <= params.repetition_penalty <= _MAX_REPETITION,
        "repetition_penalty",
        params.repetition_penalty,
        f"Give a number from {1 / _MAX_REPETITION:g} to {_MAX_REPETITION:g}; 1 is off.",
    )
    for name, value in (
        ("frequency_penalty", params.frequency_penalty),
        ("presence_penalty", params.presence_penalty),
    ):
        _require(-2 <= value <= 2, name, value, "Give a number from -2 to 2; 0 is off.")
    for token_id, value in params.logit_bias.items():
        _require(
            -_MAX_BIAS <= value <= _MAX_BIAS,
            f"logit_bias of token {token_id}",
            value,
            f"Give a number from {-_MAX_BIAS:g} to {_MAX_BIAS:g}; -100 bans the token.",
        )


def _check_reports(params: SamplingParams) -> None:
    for name, value in (
        ("logprobs", params.logprobs),
        ("prompt_logprobs", params.prompt_logprobs),
    ):
        _require(
            value is None or value >= 0,
            name,
            value,
            "Give the number of most likely tokens to report, 0 for only the chosen one.",
        )
    _require(params.n >= 1, "n", params.n, "Give at least 1.")
    _require(
        params.best_of is None or params.best_of >= params.n,
        "best_of",
        params.best_of,
        f"Give at least n ({params.n}), or leave it out.",
    )


def _check_constraint(params: SamplingParams) -> None:
    given = {
        "json_schema": params.json_schema,
        "regex": params.regex,
        "grammar": params.grammar,
        "choice": params.choice or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return
    if len(names) > 1:
        raise UsageError(f"an output has to match {' and '.join(names)}", "Give one of them.")
    _require(bool(given[names[0]]), names[0], "empty", "Give a text, or leave it out.")
    for name, is_given in (("ignore_eos", params.ignore_eos), ("min_tokens", params.min_tokens)):
        if is_given:
            raise UsageError(
                f"{names[0]} says where an output ends, and {name} forbids its end",
                f"Leave {name} out.",
            )
