from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.detokenizer import Detokenizer
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.text_stream import StopMatcher, TextStream
from llmopt.layers.token_logprobs import TokenLogprobs


class Characters(Detokenizer):
    """Token i is the character of code i; -1 is half of a snowman."""

    def __init__(self) -> None:
        self.half = ""

    def push(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token_id in token_ids:
            if token_id >= 0:
                text += chr(token_id)
            elif self.half:
                text, self.half = text + "\u2603", ""
            else:
                self.half = "\ufffd"
        return text

    def finish(self) -> str:
        half, self.half = self.half, ""
        return half


def tokens(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def stream(**params: Any) -> TextStream:
    return TextStream(Characters(), SamplingParams(max_tokens=1000, **params))


def first_end(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Read character by character: the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


few_letters = st.text("abc", max_size=30)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(few_letters, stop_lists, st.data())
def test_the_cut_does_not_depend_on_how_the_text_comes(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher = StopMatcher(stops)
    expected, expected_stop = first_end(text, stops)
    given_out, rest = "", text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        part, stop = matcher.push(rest[:length])
        rest = rest[length:]
        given_out += part
        assert expected.startswith(given_out), "nothing is given out that has to be taken back"
        if stop is not None:
            assert (given_out, stop) == (expected, expected_stop)
            return
    assert expected_stop is None
    assert given_out + matcher.finish() == text


@given(few_letters, stop_lists)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    for character in text:
        if matcher.push(character)[1] is not None:
            return
        open_ends = [n for stop in stops for n in range(len(stop)) if matcher.held == stop[:n]]
        assert open_ends


def test_a_stop_string_over_several_tokens_is_cut_and_never_shown() -> None:
    output = stream(stop=("</s>",))
    deltas = [output.take(StepOutput("r", (token,))) for token in tokens("ab</i></s>")]
    assert [delta.text for delta in deltas] == [*"ab", "", "", "</i", ">", "", "", "", ""]
    assert [delta.finish_reason for delta in deltas] == [None] * 9 + ["stop"]
    done = output.completion()
    assert (done.text, done.finish_reason, done.stop_reason) == ("ab</i>", "stop", "</s>")
    assert done.token_ids == tokens("ab</i></s>")


def test_tokens_behind_a_stop_string_in_one_step_are_dropped() -> None:
    output = stream(stop=("xy",), logprobs=0)
    logprobs = tuple(TokenLogprobs(t, -1.0, 1) for t in tokens("axyzz"))
    delta = output.take(StepOutput("r", tokens("axyzz"), "length", logprobs=logprobs))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a", "stop", "xy")
    assert delta.token_ids == tokens("axy")
    done = output.completion()
    assert done.token_ids == tokens("axy")
    assert done.logprobs == logprobs[:3]


def test_what_was_held_back_is_given_out_at_the_end() -> None:
    output = stream(stop=("END",))
    assert output.take(StepOutput("r", tokens("anEN"))).text == "an"
    assert output.take(StepOutput("r", tokens("E"), "length")).text == "ENE"
    assert output.completion().text == "anENE"


def test_half_a_character_is_replaced_only_at_the_end() -> None:
    output = stream()
    assert output.take(StepOutput("r", (97, -1))).text == "a"
    assert output.take(StepOutput("r", (-1, -1))).text == "\u2603"
    assert output.take(StepOutput("r", (), "abort")).text == "\ufffd"


def test_a_stop_string_ends_within_a_character_of_several_tokens() -> None:
    output = stream(stop=("b\u2603",))
    assert [output.take(StepOutput("r", (t,))).text for t in (97, 98, -1)] == ["a", "", ""]
    assert output.take(StepOutput("r", (-1,))).finish_reason == "stop"
    assert output.completion().text == "a"


def test_the_text_of_a_stop_token_is_not_part_of_the_text() -> None:
    output = stream(stop_token_ids=(ord("!"),))
    delta = output.take(StepOutput("r", tokens("hi!"), "stop"))
    assert (delta.text, delta.stop_reason) == ("hi", ord("!"))
    assert output.completion().token_ids == tokens("hi!")


def test_a_stop_string_below_min_tokens_does_not_count() -> None:
    output = stream(stop=("a",), min_tokens=2)
    assert output.take(StepOutput("r", tokens("aa"))).text == "aa"
    assert output.take(StepOutput("r", tokens("ba"))).text == "b"
    assert output.completion().text == "aab"


def test_log_probabilities_only_where_they_were_asked_for() -> None:
    output = stream()
    output.take(StepOutput("r", tokens("a"), "length"))
    assert output.completion().logprobs is None
    assert output.completion().mean_logprob is None
    output = stream(n=1, best_of=2)
    output.take(StepOutput("r", (97,), logprobs=(TokenLogprobs(97, -1.0, 1),)))
    output.take(StepOutput("r", (97,), "length", logprobs=(TokenLogprobs(97, -3.0, 2),)))
    assert output.completion().cumulative_logprob == -4.0
    assert output.completion().mean_logprob == -2.0


def test_a_finished_output_takes_nothing_more() -> None:
    output = stream()
    output.take(StepOutput("r", tokens("a"), "length"))
    with pytest.raises(AssertionError, match="grows no more"):
        output.take(StepOutput("r", tokens("a")))
