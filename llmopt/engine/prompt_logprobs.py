"""Log-probabilities of the tokens of prompts, chunk by chunk.

Knows nothing about sampling.
Law: each token behind the first of a prompt gets its own once, however the prompt is cut into
chunks, and whatever was computed again after a preemption.
"""

from collections.abc import Callable

from torch import Tensor

from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.layers.logprobs import token_logprobs
from llmopt.layers.token_logprobs import TokenLogprobs

_MAX_ROWS = 128  # of logits at a time


def prompt_logprobs(
    output: SchedulerOutput, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]
) -> dict[str, list[TokenLogprobs]]:
    """By request id, what a step tells about prompts, behind what was known of them before.

    Args:
        hidden: [T, C], of the tokens of the step, in the order of its requests.
        compute_logits: from [R, C] to logits [R, V].
    """
    found: dict[str, list[TokenLogprobs]] = {}
    first_row = 0
    for item in output.scheduled:
        if item.request.lacks_prompt_logprobs:
            rows = hidden[first_row : first_row + item.num_scheduled_tokens]
            found[item.request.request_id] = _of_request(item, rows, compute_logits)
        first_row += item.num_scheduled_tokens
    return found


def _of_request(
    item: ScheduledRequest, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]
) -> list[TokenLogprobs]:
    """hidden: [n, C] of the scheduled tokens; that at position p tells about token p + 1."""
    request = item.request
    num_top = request.params.prompt_logprobs
    assert num_top is not None, "the request asks for them"
    begin = max(item.start, len(request.prompt_logprobs))
    end = min(item.start + item.num_scheduled_tokens, request.num_prompt_tokens - 1)
    found: list[TokenLogprobs] = []
    for start in range(begin, end, _MAX_ROWS):
        stop = min(start + _MAX_ROWS, end)
        logits = compute_logits(hidden[start - item.start : stop - item.start])
        targets = request.token_ids[start + 1 : stop + 1]
        found += token_logprobs(logits, targets, [num_top] * len(targets))
    return found
