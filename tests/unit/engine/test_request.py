from typing import Any

import pytest

from llmopt.engine.request import PENDING_TOKEN, Request, RequestStatus
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import UsageError


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"max_tokens": 4, "min_tokens": 5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_sampling_params_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    name = list(wrong)[-1]
    with pytest.raises(UsageError, match=f"^{name} is {wrong[name]}") as caught:
        SamplingParams(**wrong)
    assert caught.value.remedy


def make_request(**params: Any) -> Request:
    sampling = SamplingParams(**params)
    return Request("r", [7, 8, 9], 3, sampling, sampling.max_tokens, seed=0, eos_token_ids=(1,))


def test_lengths_are_derived_from_the_tokens() -> None:
    request = make_request()
    request.append(50)
    request.append(51)
    request.num_computed_tokens = 4
    assert (request.num_tokens, request.num_output_tokens, request.num_new_tokens) == (5, 2, 1)
    assert request.prompt_token_ids == [7, 8, 9]
    assert request.output_token_ids == [50, 51]


def test_the_last_allowed_token_ends_with_length() -> None:
    request = make_request(max_tokens=2)
    assert [request.append(50), request.append(51)] == [None, "length"]


def test_an_end_token_as_the_last_allowed_one_is_a_stop() -> None:
    assert make_request(max_tokens=1).append(1) == "stop"


def test_stop_tokens_stop_even_when_end_tokens_are_ignored() -> None:
    request = make_request(ignore_eos=True, stop_token_ids=(60,))
    assert [request.append(1), request.append(60)] == [None, "stop"]


def test_a_stop_token_before_min_tokens_does_not_stop() -> None:
    request = make_request(min_tokens=2)
    assert [request.append(1), request.append(1), request.append(1)] == [None, None, "stop"]


def test_a_finished_request_refuses_tokens() -> None:
    request = make_request()
    request.status = RequestStatus.FINISHED
    with pytest.raises(AssertionError, match="finished"):
        request.append(5)


def test_pending_tokens_are_settled_in_order_and_dropped_behind_the_last() -> None:
    request = make_request(max_tokens=5, stop_token_ids=(9,))
    for _ in range(3):
        request.append_pending()
    assert request.num_output_tokens == request.num_pending_tokens == 3
    assert request.settle(7) is None
    assert request.output_token_ids == [7, PENDING_TOKEN, PENDING_TOKEN]
    assert request.settle(9) == "stop"
    assert request.output_token_ids == [7, 9]
    assert request.num_pending_tokens == 0


def test_the_last_pending_token_ends_a_request_by_its_length() -> None:
    request = make_request(max_tokens=2)
    request.append_pending()
    request.append_pending()
    assert [request.settle(7), request.settle(8)] == [None, "length"]
