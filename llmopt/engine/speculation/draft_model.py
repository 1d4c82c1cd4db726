"""A smaller decoder as proposer, with a paged cache of its own.

It follows each request with tokens of its own (a "mirror"): those that it computed and that came
true are kept, the others are computed over, so it catches up by itself after drafts that were
taken in part and after preemptions.
Knows nothing about verification or about how the target keeps its cache.
Law: what it proposes depends on the request's tokens and seed only; without room in its cache it
proposes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from llmopt.engine.batch import build_batch
from llmopt.engine.block_space import BlockSpace
from llmopt.engine.kv_cache import PagedKV
from llmopt.engine.kv_plan import KVPlan
from llmopt.engine.model_runner import DecoderModel
from llmopt.engine.request import Request
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.speculation.config import DraftSampling
from llmopt.engine.token_chooser import sampling_row
from llmopt.layers.rejection_sampler import Draft, draw_drafts
from llmopt.layers.sampler import sample

_MAX_JOINT_CHUNK = 8


@dataclass(slots=True, eq=False)
class _Mirror:
    """A request as the draft model knows it: the request's tokens, then tokens that it drafted.

    `num_known` of the tokens are the request's own.
    """

    request: Request
    num_known: int


@dataclass(slots=True)
class _Drafting:
    """A draft in the making."""

    mirror: _Mirror
    target: Request
    limit: int
    token_ids: list[int] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)

    def draft(self) -> Draft:
        """What was drafted."""
        return Draft(tuple(self.token_ids), torch.stack(self.probs) if self.probs else None)


class DraftModel:
    """Proposes what a decoder would say next, one token after another, for all requests together.

    Args:
        model: any decoder that knows the target's tokens.
        plan: its cache.
        max_chunk: most tokens of a prompt that it computes at once.
        vocab_size: of the target; ids beyond it are never proposed.
        sampling: how to draft for requests with a temperature; see `SpeculationConfig`.
    """

    def __init__(
        self,
        model: DecoderModel,
        plan: KVPlan,
        *,
        max_chunk: int,
        vocab_size: int,
        sampling: DraftSampling,
    ) -> None:
        self._model = model
        self._plan = plan
        self._max_chunk = max_chunk
        self._vocab_size = vocab_size
        self._sampling = sampling
        self._kv = PagedKV(plan.groups, plan.num_blocks, plan.layout, model.device)
        self._blocks = BlockSpace(
            plan.groups,
            plan.num_blocks,
            block_size=plan.layout.block_size,
            max_chunk=max_chunk,
            prefix_caching=True,
        )
        self._mirrors: dict[str, _Mirror] = {}  # the one used longest ago first

    @property
    def blocks(self) -> BlockSpace:
        """Its cache blocks."""
        return self._blocks

    @torch.inference_mode()
    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """A draft of its limit for each request, less where the draft model's length ends.

        Requests for which there is no room get none.
        """
        protected = {request.request_id for request in requests}
        drafting: dict[str, _Drafting] = {}
        for request, limit in zip(requests, limits, strict=True):
            limit = min(limit, self._plan.max_model_len - request.num_tokens)
            if limit < 1:
                continue
            mirror = self._follow(request, protected)
            if mirror is not None and self._catch_up(mirror, limit, protected):
                drafting[request.request_id] = _Drafting(mirror, request, limit)
        active = list(drafting.values())
        while active:
            self._draft_one(active)
            active = [one for one in active if len(one.token_ids) < one.limit]
        return [
            drafting[request.request_id].draft() if request.request_id in drafting else Draft()
            for request in requests
        ]

    def forget(self, request_id: str) -> None:
        """Free the blocks of a request, if it has any."""
        mirror = self._mirrors.pop(request_id, None)
        if mirror is not None:
            self._blocks.release(mirror.request)

    def _follow(self, target: Request, protected: set[str]) -> _Mirror | None:
        """The mirror of a request with the request's tokens; None: no room for a new one."""
        mirror = self._mirrors.pop(target.request_id, None)
        if mirror is None:
            mirror = self._make_mirror(target, protected)
            if mirror is None:
                return None
        else:
            mine, known = mirror.request, mirror.num_known
            pairs = zip(mine.token_ids[known:], target.token_ids[known:], strict=False)
            num_right = known + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            mine.token_ids[known:] = target.token_ids[known:]
            # At least one token is computed again: its logits are the first of the draft.
            mine.num_computed_tokens = min(
                mine.num_computed_tokens, num_right, target.num_tokens - 1
            )
            mirror.num_known = target.num_tokens
            self._blocks.register(mine)
        self._mirrors[target.request_id] = mirror
        return mirror

    def _make_mirror(self, target: Request, protected: set[str]) -> _Mirror | None:
        mine = Request(
            request_id=target.request_id,
            token_ids=list(target.token_ids),
            num_prompt_tokens=target.num_tokens,
            params=target.params,
            max_tokens=target.max_tokens,
            seed=target.seed,
            cache_salt=target.cache_salt,
        )
        while True:
            match = self._blocks.find_match(mine)
            copies = self._blocks.admit(mine, match, 0, 0)
            if copies is not None:
                break
            if not self._forget_oldest(protected):
                return None
        if copies:
            self._kv.move(SchedulerOutput((), copies=tuple(copies)))
        return _Mirror(mine, target.num_tokens)

    def _catch_up(self, mirror: _Mirror, limit: int, protected: set[str]) -> bool:
        """Compute all but the last tokens that are known, and make room to draft; False: no room.

        The last ones are computed with those of the other requests.
        """
        mine = mirror.request
        while mine.num_new_tokens > _MAX_JOINT_CHUNK:
            num_tokens = min(mine.num_new_tokens - 1, self._max_chunk)
            if not self._extend(mine, num_tokens, protected):
                return False
            start = mine.num_computed_tokens
            self._forward([ScheduledRequest(mine, start, num_tokens, samples=False)])
            mine.num_computed_tokens += num_tokens
            self._blocks.register(mine)
        # All at once: blocks that leave a window while drafting may be needed after a refusal.
        return self._extend(mine, mine.num_new_tokens + limit - 1, protected)

    def _extend(self, mine: Request, num_tokens: int, protected: set[str]) -> bool:
        while not self._blocks.extend(mine, num_tokens):
            if not self._forget_oldest(protected):
                return False
        return True

    def _forget_oldest(self, protected: set[str]) -> bool:
        """Free the blocks of the request that was not drafted for longest; False: there is none."""
        oldest = next((name for name in self._mirrors if name not in protected), None)
        if oldest is None:
            return False
        self.forget(oldest)
        return True

    def _draft_one(self, active: Sequence[_Drafting]) -> None:
        """Add a token to each draft."""
        items = []
        for one in active:
            mine = one.mirror.request
            num_new = mine.num_new_tokens
            items.append(ScheduledRequest(mine, mine.num_computed_tokens, num_new, samples=True))
        logits = self._forward(items)
        assert logits is not None, "every item samples"
        token_ids, probs = self._choose(logits, active)
        for one, item, token_id, row in zip(active, items, token_ids, probs, strict=True):
            mine = one.mirror.request
            mine.num_computed_tokens += item.num_scheduled_tokens
            mine.token_ids.append(token_id)
            one.token_ids.append(token_id)
            if row is not None:
                one.probs.append(row)

    def _forward(self, items: Sequence[ScheduledRequest]) -> Tensor | None:
        """Logits [R, V] of the target's vocabulary, of the items that sample; None: there is none.

        Tokens that the draft model does not know have -inf.
        """
        model = self._model
        step = SchedulerOutput(tuple(items))
        block_size = self._plan.layout.block_size
        batch = build_batch(step, block_size, model.device, self._plan.groups)
        hidden = model.forward(batch.input_ids, batch.positions, batch.metadata, self._kv.layers)
        if not items[0].samples:
            return None
        logits = model.compute_sampling_logits(hidden[batch.logits_indices])[:, : self._vocab_size]
        missing = self._vocab_size - logits.shape[1]
        if missing:
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits

    def _choose(
        self, logits: Tensor, active: Sequence[_Drafting]
    ) -> tuple[list[int], list[Tensor | None]]:
        """A token for each draft, and what it was drawn from where the target must know."""
        rows = [sampling_row(one.target, len(one.token_ids)) for one in active]
        probs: list[Tensor | None] = [None] * len(active)
        token_ids = [0] * len(active)
        by_drawing = self._sampling == "rejection"
        drawn = [i for i, row in enumerate(rows) if by_drawing and row.temperature > 0]
        plain = [i for i in range(len(rows)) if i not in set(drawn)]
        if plain:
            chosen = sample(logits[plain], [rows[i] for i in plain])
            for i, token_id in zip(plain, chosen, strict=True):
                token_ids[i] = token_id
        if drawn:
            chosen, used = draw_drafts(logits[drawn], [rows[i] for i in drawn])
            for i, token_id, row in zip(drawn, chosen, used, strict=True):
                token_ids[i], probs[i] = token_id, row
        return token_ids, probs
