import torch
from torch import Tensor

from llmopt.engine.prompt_logprobs import prompt_logprobs
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput

VOCAB_SIZE = 11


def request(num_prompt_tokens: int, num_top: int | None = 1) -> Request:
    return Request(
        request_id=f"r{num_prompt_tokens}",
        token_ids=[(3 * i) % VOCAB_SIZE for i in range(num_prompt_tokens)],
        num_prompt_tokens=num_prompt_tokens,
        params=SamplingParams(prompt_logprobs=num_top),
        max_tokens=5,
        seed=0,
    )


def compute(items: list[tuple[Request, int, int]], hidden: Tensor) -> dict[str, list[int]]:
    """The tokens that each request learns of; items are (request, start, tokens)."""
    scheduled = tuple(ScheduledRequest(r, start, n, samples=False) for r, start, n in items)
    assert hidden.shape[0] == sum(n for _, _, n in items)
    found = prompt_logprobs(SchedulerOutput(scheduled), hidden, lambda rows: rows.clone())
    expected = torch.log_softmax(hidden, -1)
    row = 0
    for one, start, n in items:
        known = len(one.prompt_logprobs)
        for position, logprobs in enumerate(found.get(one.request_id, []), start=known):
            at = row + position - start
            assert logprobs.token_id == one.token_ids[position + 1]
            assert logprobs.logprob == float(expected[at, logprobs.token_id])
            assert logprobs.top[0][0] == int(hidden[at].argmax())
        one.prompt_logprobs += found.get(one.request_id, [])
        row += n
    return {name: [logprobs.token_id for logprobs in own] for name, own in found.items()}


def rows(num_rows: int) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(num_rows))


def test_chunks_beside_others_and_tokens_that_are_computed_again() -> None:
    one, quiet = request(9), request(4, num_top=None)
    ids = one.token_ids
    assert compute([(quiet, 0, 4), (one, 0, 3)], rows(7)) == {"r9": ids[1:4]}
    assert compute([(one, 3, 2)], rows(2)) == {"r9": ids[4:6]}
    # Preempted: all over again, and nothing is reported twice.
    assert compute([(one, 0, 4)], rows(4)) == {"r9": []}
    assert compute([(one, 4, 5), (quiet, 0, 4)], rows(9)) == {"r9": ids[6:]}
    assert [logprobs.token_id for logprobs in one.prompt_logprobs] == ids[1:]
    assert compute([(one, 0, 9)], rows(9)) == {}


def test_a_long_prompt_is_computed_in_parts() -> None:
    one = request(400)
    assert compute([(one, 0, 400)], rows(400)) == {"r400": one.token_ids[1:]}


def test_a_prompt_of_one_token_has_nothing_to_report() -> None:
    assert compute([(request(1), 0, 1)], rows(1)) == {}
