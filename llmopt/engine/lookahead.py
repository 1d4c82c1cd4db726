"""The scheduler one step ahead of the device: steps whose tokens are not known yet.

`advance` takes a step as computed when it is launched: what it samples stands in `token_ids` as
pending tokens, so the next step can be scheduled as always. `settle` puts the tokens in when the
device has told them. At most one step is launched between the two, so:

* a request that a token ended computes one token too many, which nobody sees; its blocks are freed
  when that is found, and only steps launched later, which the device runs later, get them;
* a request whose last token is pending for certain (`max_tokens`) computes nothing more: it gives
  its blocks back at once and is `ENDING`;
* a request that is preempted with a pending token learns it before it is admitted again.

Knows nothing about tensors or devices.
Law: each request gets the tokens that it gets without looking ahead, in the same order.
"""

from collections.abc import Sequence
from itertools import islice

from llmopt.engine.request import RequestStatus, StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import Scheduler, SchedulerOutput


def needs_host_tokens(params: SamplingParams) -> bool:
    """Whether each step of a request needs the tokens before it, or tells about them, on the host:
    constraints, penalties and biases, and log-probabilities. Drafts do too: an engine that
    speculates never looks ahead.
    """
    told = params.num_logprobs is not None or params.prompt_logprobs is not None
    return told or params.changes_logits


def can_look_ahead(scheduler: Scheduler) -> bool:
    """Whether there is a next step that can be scheduled before the tokens of this one are known:
    no request that it may have needs them on the host.
    """
    num_free = scheduler.max_num_seqs - len(scheduler.running)
    next_ones = [*scheduler.running, *islice(scheduler.waiting, max(0, num_free))]
    return bool(next_ones) and not any(request.needs_host_tokens for request in next_ones)


def advance(scheduler: Scheduler, output: SchedulerOutput) -> None:
    """Record a step that was launched; it has no drafts."""
    ending = False
    for item in output.scheduled:
        assert not item.draft_token_ids, "how many tokens a draft gives is not known ahead"
        request = item.request
        request.num_computed_tokens += item.num_known_tokens
        if item.samples:
            request.append_pending()
        scheduler.blocks.register(request)
        if request.num_output_tokens >= request.max_tokens:
            scheduler.blocks.release(request)
            request.status = RequestStatus.ENDING
            ending = True
    if ending:
        scheduler.running = [r for r in scheduler.running if r.status is RequestStatus.RUNNING]


def settle(
    scheduler: Scheduler, output: SchedulerOutput, token_ids: Sequence[int]
) -> list[StepOutput]:
    """Record the tokens of a step that was advanced; requests that ended meanwhile get nothing.

    Args:
        token_ids: one for each scheduled request that samples, in that order.

    Returns:
        One output for each request that got a token.
    """
    sampling = [item.request for item in output.scheduled if item.samples]
    step_outputs: list[StepOutput] = []
    for request, token_id in zip(sampling, token_ids, strict=True):
        if request.status is RequestStatus.FINISHED:
            continue
        reason = request.settle(token_id)
        if reason is not None:
            scheduler.finish(request, reason)
        step_outputs.append(request.output((token_id,), reason))
    return step_outputs
