import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from llmopt.backends.probe import NUM_TOKENS, probe
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.errors import BackendError

PROMPT = [1, 2, 3]


@dataclass
class Scripted:
    """A backend that gives one list of events after the other."""

    answers: list[list[TokenEvent]]
    asked: list[tuple[Sequence[int], GenerationParams]] = field(default_factory=list)
    name: str = "scripted"
    version: str = "1"

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def stats(self) -> dict[str, float]:
        return {}

    def drive(self, client: Callable[[], T]) -> T:
        return client()

    async def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        self.asked.append((prompt_token_ids, params))
        for event in self.answers[len(self.asked) - 1]:
            await asyncio.sleep(0)
            yield event


def answer(text: str, **last: object) -> list[TokenEvent]:
    fields = {"finish_reason": "length", "num_prompt_tokens": 3} | last
    return [*(TokenEvent(1, text=letter) for letter in text), TokenEvent(0, **fields)]


def test_what_is_asked():
    backend = Scripted([answer("abcdefgh"), answer("abcdefgh")])
    findings = probe(backend, PROMPT)
    assert [prompt for prompt, _ in backend.asked] == [PROMPT, PROMPT]
    assert {params for _, params in backend.asked} == {GenerationParams(NUM_TOKENS, True, 0.0)}
    assert findings.gives_all_tokens
    assert findings.is_repeatable
    assert findings.counts_events
    assert findings.counts_tokens
    assert findings.num_output_tokens == (8, 8)
    assert findings.tokens_per_event == 1.0


def test_an_end_of_text_that_was_not_ignored():
    findings = probe(Scripted([answer("abcdefgh"), answer("abc", finish_reason="stop")]), PROMPT)
    assert not findings.gives_all_tokens
    assert findings.finish_reasons == ("length", "stop")
    assert findings.num_output_tokens == (8, 3)


def test_another_text_the_second_time():
    assert not probe(Scripted([answer("abcdefgh"), answer("abcdefgi")]), PROMPT).is_repeatable


def test_nothing_is_said_of_a_text_that_was_not_seen():
    events = [TokenEvent(8), TokenEvent(0, finish_reason="length")]
    findings = probe(Scripted([events, events]), PROMPT)
    assert findings.is_repeatable is None
    assert findings.tokens_per_event == 8.0
    assert findings.num_prompt_tokens_counted is None


def test_a_prompt_that_became_another():
    cut = answer("abcdefgh", num_prompt_tokens=2)
    findings = probe(Scripted([cut, cut]), PROMPT)
    assert findings.num_prompt_tokens_sent == 3
    assert findings.num_prompt_tokens_counted == 2


def test_guessed_events_with_and_without_a_total():
    guesses = [TokenEvent(1, text=letter, is_guess=True) for letter in "abcd"]
    end = TokenEvent(0, finish_reason="length")
    total = TokenEvent(0, total_tokens=8, num_cached_tokens=2, server_timings_s={"prompt_s": 0.1})
    findings = probe(Scripted([[*guesses, end, total]] * 2), PROMPT)
    assert not findings.counts_events
    assert findings.counts_tokens
    assert findings.num_output_tokens == (8, 8)
    assert findings.tokens_per_event == 2.0
    assert findings.num_cached_tokens == 2
    assert findings.server_timings == ("prompt_s",)
    assert not probe(Scripted([[*guesses, end]] * 2), PROMPT).counts_tokens


def test_a_request_that_fails_fails_the_probe():
    class Failing(Scripted):
        async def stream(
            self, prompt_token_ids: Sequence[int], params: GenerationParams
        ) -> AsyncGenerator[TokenEvent, None]:
            raise BackendError("it fell over", "See its log.")
            yield TokenEvent(1)

    with pytest.raises(BackendError, match="fell over"):
        probe(Failing([]), PROMPT)
