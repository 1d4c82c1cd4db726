"""The draft model's own cache never shows: its drafts are those of a model without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.engine.request import Request
from llmopt.engine.speculation.draft_model import DraftModel
from llmopt.engine.token_chooser import sampling_row
from llmopt.layers.sampler import distribution, sample
from llmopt.models.decoder import Decoder

PROMPT = [5, 17, 99, 23, 5, 17, 60, 61, 62, 3, 4]

Make = Callable[..., DraftModel]
MakeRequest = Callable[..., Request]
Continue = Callable[..., tuple[int, ...]]


def held_blocks(proposer: DraftModel) -> int:
    proposer.blocks.check_invariants([m.request for m in proposer._mirrors.values()], [])
    return proposer.blocks.num_used_blocks


@pytest.mark.parametrize("model", ["tiny_model", "windowed_model"])
@given(
    data=st.data(),
    chunk=st.sampled_from([1, 3, 16, 512]),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_drafts_are_greedy_continuations_whatever_was_taken_before(
    model: str,
    request: pytest.FixtureRequest,
    make_draft_model: Make,
    make_request: MakeRequest,
    continue_greedily: Continue,
    data: st.DataObject,
    chunk: int,
    lengths: list[int],
) -> None:
    decoder: Decoder = request.getfixturevalue(model)
    proposer = make_draft_model(decoder, num_blocks=200, max_num_batched_tokens=chunk)
    requests = [make_request((PROMPT * 3)[:n], str(i)) for i, n in enumerate(lengths)]
    for _ in range(4):
        asked = [r for r in requests if data.draw(st.booleans())]
        limits = [data.draw(st.integers(1, 5)) for _ in asked]
        for one, limit, draft in zip(asked, limits, proposer.propose(asked, limits), strict=True):
            assert draft.probs is None
            assert draft.token_ids == continue_greedily(decoder, one.token_ids, limit)
            num_taken = data.draw(st.integers(0, limit))
            one.token_ids += draft.token_ids[:num_taken]
            one.token_ids.append(data.draw(st.integers(2, 127)))
        for one in requests:  # steps without a draft
            one.token_ids += data.draw(st.lists(st.integers(2, 127), max_size=3))
        held_blocks(proposer)
    for one in requests:
        proposer.forget(one.request_id)
    assert held_blocks(proposer) == 0


def test_only_new_tokens_are_computed(
    make_draft_model: Make, make_request: MakeRequest, tiny_model: Decoder, monkeypatch: Any
) -> None:
    computed: list[int] = []
    forward = Decoder.forward

    def counting(self: Decoder, input_ids: torch.Tensor, *rest: object) -> torch.Tensor:
        computed.append(len(input_ids))
        return forward(self, input_ids, *rest)

    monkeypatch.setattr(Decoder, "forward", counting)
    proposer, one = make_draft_model(tiny_model), make_request(PROMPT)
    [draft] = proposer.propose([one], [4])
    assert computed == [len(PROMPT) - 1, 1, 1, 1, 1]
    computed.clear()
    one.token_ids += [*draft.token_ids, 7]  # all taken: the last one was never computed
    proposer.propose([one], [3])
    assert computed == [2, 1, 1]
    computed.clear()
    one.token_ids += [8]  # nothing taken, or a preemption: the same
    proposer.propose([one], [2])
    assert computed == [1, 1]
    computed.clear()
    again = make_request(one.token_ids, "again")  # its first blocks are known
    proposer.propose([again], [1])
    assert computed == [len(one.token_ids) - len(one.token_ids) // 4 * 4]


def test_without_room_nothing_is_proposed_and_old_requests_give_way(
    make_draft_model: Make,
    make_request: MakeRequest,
    tiny_model: Decoder,
    continue_greedily: Continue,
) -> None:
    proposer = make_draft_model(tiny_model, num_blocks=4)  # 16 tokens
    old, new, long = (
        make_request(PROMPT, "old"),
        make_request(PROMPT[::-1], "new"),
        make_request(PROMPT * 2, "long"),
    )
    assert len(proposer.propose([old], [2])[0]) == 2
    expected = continue_greedily(tiny_model, new.token_ids, 2)
    assert [d.token_ids for d in proposer.propose([new, long], [2, 2])] == [expected, ()]
    assert [len(d) for d in proposer.propose([new, old], [2, 2])] == [2, 0]
    proposer.forget("new")
    assert [len(d) for d in proposer.propose([old], [2])] == [2]
    proposer.forget("old")
    assert held_blocks(proposer) == 0


def test_drafts_end_where_the_draft_model_ends(
    make_draft_model: Make, make_request: MakeRequest, tiny_model: Decoder
) -> None:
    proposer = make_draft_model(tiny_model, max_model_len=12)
    requests = [make_request([5] * n, str(n)) for n in (9, 11, 12, 13)]
    assert [len(draft) for draft in proposer.propose(requests, [4] * 4)] == [3, 1, 0, 0]


def test_drawn_drafts_come_with_what_they_were_drawn_from(
    make_draft_model: Make,
    make_request: MakeRequest,
    tiny_model: Decoder,
    logits_of: Callable[..., torch.Tensor],
) -> None:
    proposer = make_draft_model(tiny_model)
    hot = make_request(PROMPT, "hot", seed=3, temperature=1.3, top_k=20)
    drafts = proposer.propose([hot, make_request(PROMPT, "greedy")], [4, 4])
    assert drafts[1].probs is None
    assert drafts[0].probs is not None
    for i in range(4):
        past = [*PROMPT, *drafts[0].token_ids[:i]]
        expected = distribution(logits_of(tiny_model, past)[None], [sampling_row(hot, i)])[0]
        assert torch.allclose(drafts[0].probs[i], expected, atol=1e-5)
        assert expected[drafts[0].token_ids[i]] > 0


def test_shared_draws_are_the_target_s_own(
    make_draft_model: Make,
    make_request: MakeRequest,
    tiny_model: Decoder,
    logits_of: Callable[..., torch.Tensor],
) -> None:
    proposer = make_draft_model(tiny_model, sampling="shared")
    hot = make_request(PROMPT, seed=3, temperature=1.3)
    [draft] = proposer.propose([hot], [5])
    assert draft.probs is None
    plain: list[int] = []
    for i in range(5):
        logits = logits_of(tiny_model, [*PROMPT, *plain])
        plain += sample(logits[None], [sampling_row(hot, i)])
    assert draft.token_ids == tuple(plain)


@pytest.mark.parametrize("vocab_size", [100, 128, 150])
def test_a_padded_vocabulary_is_cut_or_filled(
    make_draft_model: Make, make_request: MakeRequest, tiny_model: Decoder, vocab_size: int
) -> None:
    proposer = make_draft_model(tiny_model, vocab_size=vocab_size)
    for seed in range(10):
        hot = make_request(PROMPT, str(seed), seed=seed, temperature=3.0)
        [draft] = proposer.propose([hot], [5])
        assert draft.probs is not None
        assert draft.probs.shape == (5, vocab_size)
        assert max(draft.token_ids) < min(vocab_size, 128)
        proposer.forget(str(seed))
