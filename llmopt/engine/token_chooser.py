"""From the logits of a step to the tokens of its requests, with all that a request may ask for.

Knows nothing about the model or the cache.
Law: what a request gets depends on its own logits, tokens and parameters only. What is kept about a
request follows from its tokens, so it survives preemption, and costs a step no more for a longer
output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from llmopt.engine.request import Request, RequestStatus
from llmopt.engine.sampling_params import MIN_TEMPERATURE, Constraint, SamplingParams
from llmopt.engine.scheduler import ScheduledRequest
from llmopt.engine.structured import GrammarCompiler, GrammarState
from llmopt.errors import UsageError
from llmopt.layers.logprobs import token_logprobs
from llmopt.layers.penalties import Penalties, TokenCounts, penalize
from llmopt.layers.rejection_sampler import Draft, verify
from llmopt.layers.sampler import DeviceTokens, SamplingRow, sample, sample_async
from llmopt.layers.token_logprobs import TokenLogprobs


@dataclass(slots=True)
class _Memory:
    """What is known of the tokens of a request: `num_outputs` of them are in counts and grammar."""

    request: Request
    slot: int | None
    grammar: GrammarState | None
    num_outputs: int = 0


class TokenChooser:
    """Chooses tokens, and remembers what was said by the requests for which that matters.

    Args:
        vocab_size: V.
        grammars: for outputs that have to match something; None: they are refused.
    """

    def __init__(
        self, vocab_size: int, device: torch.device, grammars: GrammarCompiler | None = None
    ) -> None:
        self._counts = TokenCounts(vocab_size, device)
        self._grammars = grammars
        self._memories: dict[str, _Memory] = {}

    def check(self, params: SamplingParams) -> None:
        """Raise UsageError or MissingDependencyError if an output cannot be made to match."""
        if params.constraint is not None:
            self._compiler(params.constraint).check(params.constraint)

    def choose(
        self, logits: Tensor, items: Sequence[ScheduledRequest], drafts: Mapping[str, Draft]
    ) -> list[tuple[int, ...]]:
        """The tokens of each request: those of its draft that are taken, and one more; none where
        its constraint can be followed no further.

        Args:
            logits: [R, V]; one row for each request, and one behind each token of its draft.
            items: requests that sample, as scheduled.
            drafts: by request id, at least what was scheduled of them.

        Raises:
            EngineError: logits are not finite numbers.
        """
        logits = self._change(logits, items)
        rows = [
            sampling_row(item.request, offset)
            for item in items
            for offset in range(len(item.draft_token_ids) + 1)
        ]
        if len(rows) == len(items):
            chosen: list[tuple[int, ...]] = [(token_id,) for token_id in sample(logits, rows)]
        else:
            scheduled = [
                drafts[item.request.request_id].cut(len(item.draft_token_ids))
                if item.draft_token_ids
                else Draft()
                for item in items
            ]
            chosen = verify(logits, rows, scheduled)
        return [
            () if self._has_failed(item.request) else token_ids
            for item, token_ids in zip(items, chosen, strict=True)
        ]

    def choose_ahead(self, logits: Tensor, items: Sequence[ScheduledRequest]) -> DeviceTokens:
        """As `choose`, without waiting for a GPU, for requests without drafts of which none
        `changes_logits`.
        """
        return sample_async(logits, [sampling_row(item.request) for item in items])

    def _change(self, logits: Tensor, items: Sequence[ScheduledRequest]) -> Tensor:
        """Logits with constraints, biases and penalties; those given if there are none."""
        if not any(item.request.params.changes_logits for item in items):
            return logits
        self._catch_up([item.request for item in items if item.request.params.changes_logits])
        logits = self._constrain(logits, items)
        return penalize(
            logits, list(chain.from_iterable(map(self._penalties, items))), self._counts
        )

    def _catch_up(self, requests: Sequence[Request]) -> None:
        """Forget requests that ended, and learn what the others said since the last time."""
        ended = [m for m in self._memories.values() if m.request.status is RequestStatus.FINISHED]
        for memory in ended:
            del self._memories[memory.request.request_id]
            if memory.slot is not None:
                self._counts.close(memory.slot)
        slots: list[int] = []
        said: list[int] = []
        for request in requests:
            memory = self._memories.get(request.request_id) or self._remember(request)
            new = request.token_ids[request.num_prompt_tokens + memory.num_outputs :]
            memory.num_outputs += len(new)
            if memory.slot is not None:
                slots += [memory.slot] * len(new)
                said += new
            if memory.grammar is not None:
                memory.grammar.consume(new)
        self._counts.add(slots, said)

    def _remember(self, request: Request) -> _Memory:
        params = request.params
        slot = self._counts.open(request.prompt_token_ids) if params.has_penalties else None
        constraint = params.constraint
        grammar = None if constraint is None else self._compiler(constraint).start(constraint)
        memory = self._memories[request.request_id] = _Memory(request, slot, grammar)
        return memory

    def _constrain(self, logits: Tensor, items: Sequence[ScheduledRequest]) -> Tensor:
        changed = logits
        row = 0
        for item in items:
            num_rows = len(item.draft_token_ids) + 1
            memory = self._memories.get(item.request.request_id)
            if memory is not None and memory.grammar is not None:
                if changed is logits:
                    changed = logits.clone()
                allowed = torch.from_numpy(memory.grammar.allowed(item.draft_token_ids))
                refused = ~allowed.to(logits.device)  # [1 + k, V]
                changed[row : row + num_rows].masked_fill_(refused, -torch.inf)
            row += num_rows
        return changed

    def _has_failed(self, request: Request) -> bool:
        if not request.params.is_constrained:
            return False
        grammar = self._memories[request.request_id].grammar
        return grammar is not None and grammar.has_failed

    def _penalties(self, item: ScheduledRequest) -> list[Penalties]:
        """For the row of a request, and for each token of its draft."""
        params = item.request.params
        if not (params.has_penalties or params.logit_bias):
            return [Penalties()] * (len(item.draft_token_ids) + 1)
        return [
            Penalties(
                slot=self._memories[item.request.request_id].slot,
                more_token_ids=item.draft_token_ids[:length],
                repetition=params.repetition_penalty,
                frequency=params.frequency_penalty,
                presence=params.presence_penalty,
                biases=tuple(params.logit_bias.items()),
            )
            for length in range(len(item.draft_token_ids) + 1)
        ]

    def _compiler(self, constraint: Constraint) -> GrammarCompiler:
        if self._grammars is None:
            raise UsageError(
                f"{constraint.kind} is given to an engine that does not know the text of tokens",
                "Give the engine the grammars of a tokenizer, or use LLM.",
            )
        return self._grammars


def sampling_row(request: Request, offset: int = 0) -> SamplingRow:
    """How to choose the token that is `offset` tokens behind the next one of a request.

    Stop tokens are banned below `min_tokens`.
    """
    params = request.params
    position = request.num_output_tokens + offset
    return SamplingRow(
        temperature=params.temperature and max(params.temperature, MIN_TEMPERATURE),
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=request.seed,
        position=position,
        banned_token_ids=request.stop_token_ids if position < params.min_tokens else (),
    )


def output_logprobs(
    logits: Tensor, items: Sequence[ScheduledRequest], token_ids: Sequence[Sequence[int]]
) -> dict[str, tuple[TokenLogprobs, ...]]:
    """By request id, log-probabilities of the tokens of the requests that ask for them.

    Args:
        logits: [R, V], of the model.
        items, token_ids: the requests that sample, and what was chosen for each.
    """
    rows: list[int] = []
    chosen: list[int] = []
    num_top: list[int] = []
    lengths: dict[str, int] = {}
    row = 0
    for item, own in zip(items, token_ids, strict=True):
        wanted = item.request.params.num_logprobs
        if wanted is not None:
            rows += range(row, row + len(own))
            chosen += own
            num_top += [wanted] * len(own)
            lengths[item.request.request_id] = len(own)
        row += len(item.draft_token_ids) + 1
    if not rows:
        return {}
    found = iter(token_logprobs(logits[rows], chosen, num_top))
    return {name: tuple(next(found) for _ in range(n)) for name, n in lengths.items()}
