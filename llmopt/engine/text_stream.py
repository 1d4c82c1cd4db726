"""The text of one output as its tokens come, cut exactly before a stop string.

Knows nothing about the engine.
Law: no character that turns out to belong to a stop string is ever given out, and neither is half
a character; what was given out, put together, is the text.
"""

from collections.abc import Sequence
from dataclasses import replace

from llmopt.engine.detokenizer import Detokenizer
from llmopt.engine.outputs import Completion, TextDelta
from llmopt.engine.request import FinishReason, StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.layers.token_logprobs import TokenLogprobs


class StopMatcher:
    """Finds the first stop string in a text that comes in parts, and holds back what may be one.

    The first is the one that is complete first, whatever the parts are; of two that end at the same
    place, the longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add text; return what may be given out, and the stop string that it ends before.

        may_stop: False where a stop string that ends in `text` does not count.
        """
        if not self.stops:
            return text, None
        content = self.held + text
        if may_stop:
            found = self._first(content)
            if found is not None:
                end, stop = found
                self.held = ""
                return content[: end - len(stop)], stop
        num_held = self._num_open(content)
        self.held = content[len(content) - num_held :]
        return content[: len(content) - num_held], None

    def finish(self) -> str:
        """What was held back and belongs to no stop string."""
        held, self.held = self.held, ""
        return held

    def _first(self, content: str) -> tuple[int, str] | None:
        """The end of the first stop string in `content`, and that string."""
        ends = [
            (start + len(stop), -len(stop), stop)
            for stop in self.stops
            if (start := content.find(stop)) >= 0
        ]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _num_open(self, content: str) -> int:
        """Length of the longest end of `content` that begins a stop string."""
        longest = min(len(content), max(map(len, self.stops)) - 1)
        for length in range(longest, 0, -1):
            tail = content[len(content) - length :]
            if any(len(stop) > length and stop.startswith(tail) for stop in self.stops):
                return length
        return 0


class TextStream:
    """One output in the making."""

    def __init__(self, detokenizer: Detokenizer, params: SamplingParams) -> None:
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._params = params
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(params.stop)

    def take(self, step: StepOutput, index: int = 0) -> TextDelta:
        """Add what a step gave; what comes behind a stop string is dropped.

        The text of a token that stopped the output is not part of its text.
        """
        assert self.finish_reason is None, "a finished output grows no more"
        parts: list[str] = []
        num_taken = 0
        for token_id in step.token_ids:
            num_taken += 1
            if num_taken == len(step.token_ids) and step.finish_reason == "stop":
                self.stop_reason = token_id
                break
            may_stop = len(self.token_ids) + num_taken > self._params.min_tokens
            text = self._detokenizer.push((token_id,))
            part, stop = self._matcher.push(text, may_stop=may_stop)
            parts.append(part)
            if stop is not None:
                return self._add(step, index, num_taken, parts, "stop", stop)
        if step.finish_reason is not None:
            rest, _ = self._matcher.push(self._detokenizer.finish(), may_stop=False)
            parts += [rest, self._matcher.finish()]
        return self._add(step, index, num_taken, parts, step.finish_reason, self.stop_reason)

    def completion(self, index: int = 0) -> Completion:
        """All so far, or to the end."""
        logprobs = tuple(self._logprobs) if self._params.num_logprobs is not None else None
        return Completion(
            index=index,
            token_ids=tuple(self.token_ids),
            text="".join(self._text),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=logprobs,
        )

    def _add(
        self,
        step: StepOutput,
        index: int,
        num_taken: int,
        parts: Sequence[str],
        reason: FinishReason | None,
        stop: str | int | None,
    ) -> TextDelta:
        text = "".join(parts)
        token_ids = step.token_ids[:num_taken]
        logprobs = step.logprobs[:num_taken]
        self.finish_reason, self.stop_reason = reason, stop
        self.token_ids += token_ids
        self._logprobs += logprobs
        self._text.append(text)
        kept = step
        if num_taken < len(step.token_ids) or reason != step.finish_reason:
            kept = replace(step, token_ids=token_ids, logprobs=logprobs, finish_reason=reason)
        return TextDelta(index=index, text=text, stop_reason=stop, step=kept)
