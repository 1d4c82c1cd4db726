import numpy as np
import pytest

from llmopt.bench.peer_definitions import TOOLS, restate
from llmopt.errors import UsageError


@pytest.fixture
def run(make):
    """Wanted at 0.2, sent at 0.3; a role at 0.8, tokens at 1.0, 1.5 (3 of them) and 2.5, the finish
    reason at 2.55; end 2.6. The second request: one token. The third failed.
    """
    first = make.request(
        token_times_s=(1.0, 1.5, 2.5),
        token_counts=(1, 3, 1),
        first_event_s=0.8,
        empty_event_times_s=(0.8, 2.55),
        done_s=2.6,
    )
    single = make.request(token_times_s=(0.7,), done_s=0.7)
    return make.run([first, single, make.request(error="gone", token_times_s=())])


def test_vllm(run):
    found = restate(run, "vllm")
    assert found["completed"] == 2
    assert found["failed"] == 1
    assert found["mean_ttft_ms"] == pytest.approx(np.mean([500, 400]))  # to the role
    assert found["mean_tpot_ms"] == pytest.approx((2250 - 500) / 4)  # of 5 tokens, to the finish
    gaps = [200, 500, 1000, 50]  # of chunks, from the role to the finish
    assert found["mean_itl_ms"] == pytest.approx(np.mean(gaps))
    assert found["median_itl_ms"] == pytest.approx(np.median(gaps))
    assert found["p99_itl_ms"] == pytest.approx(np.percentile(gaps, 99))
    assert found["p99_e2el_ms"] == pytest.approx(np.percentile([2250, 400], 99))
    assert found["std_e2el_ms"] == pytest.approx(np.std([2250, 400]))
    assert found["output_throughput"] == pytest.approx(6 / 4)
    assert found["total_token_throughput"] == pytest.approx(26 / 4)
    assert found["max_concurrent_requests"] == 2
    # chunks in the seconds from 0.3 on: (0.8, 1.0 and 0.7), (1.5), (2.5, 2.55)
    assert found["max_output_tokens_per_s"] == 3


def test_vllm_counts_a_request_in_every_second_that_saw_it(make):
    def one(start, end):
        return make.request(sent_s=start, token_times_s=(end,), done_s=end)

    found = restate(make.run([one(0.0, 0.3), one(0.4, 0.6), one(0.7, 1.2)]), "vllm")
    assert found["max_concurrent_requests"] == 3  # never two at once


@pytest.mark.parametrize(
    ("known", "ttft_ms", "e2el_ms"),
    [
        ({"empty_event_times_s": ()}, 700, 2200),  # the reason came with the last token
        ({"empty_event_times_s": (2.55,)}, 700, 2250),
        ({"empty_event_times_s": (0.8,)}, 500, 2200),
        ({"empty_event_times_s": (2.0,)}, 700, 2200),  # in the middle: one gap is two
        ({"first_event_s": 0.8}, 500, 2200),  # a record of before
        ({"first_event_s": 1.0}, 700, 2200),
        ({}, 700, 2200),
    ],
)
def test_vllm_times_events_without_a_token_but_with_choices(make, known, ttft_ms, e2el_ms):
    found = restate(make.run([make.request(**known)]), "vllm")
    assert found["median_ttft_ms"] == pytest.approx(ttft_ms)
    assert found["median_e2el_ms"] == pytest.approx(e2el_ms)
    assert found["mean_tpot_ms"] == pytest.approx((e2el_ms - ttft_ms) / 2)
    events = {*(1.0, 1.5, 2.5), *known.get("empty_event_times_s", ())}
    events |= {known["first_event_s"]} if "first_event_s" in known else set()
    assert found["mean_itl_ms"] == pytest.approx(np.mean(1e3 * np.diff(sorted(events))))


def test_vllms_chat_client_leaves_events_without_output_out(make):
    run = make.run([make.request(empty_event_times_s=(0.8, 2.55), first_event_s=0.8)])
    assert restate(run, "vllm", is_chat=True) == restate(make.run([make.request()]), "vllm")
    assert restate(run, "vllm") != restate(run, "vllm", is_chat=True)


@pytest.mark.parametrize("tool", ["guidellm", "aiperf"])
def test_others_do_not_see_events_without_a_token(make, tool):
    plain = restate(make.run([make.request()]), tool)
    with_finish = make.request(empty_event_times_s=(0.8, 2.505), first_event_s=0.8)
    assert restate(make.run([with_finish]), tool) == plain


def test_guidellm(run):
    found = restate(run, "guidellm")
    assert found["time_to_first_token_ms.mean"] == pytest.approx(np.mean([700, 400]))
    assert found["time_per_output_token_ms.mean"] == pytest.approx((2200 + 400) / 6)  # by tokens
    assert found["inter_token_latency_ms.mean"] == pytest.approx(1500 / 4)
    assert found["request_latency.mean"] == pytest.approx(np.mean([2.3, 0.4]))
    assert found["time_to_first_token_ms.p50"] == pytest.approx(400)  # the lower of the two


def test_guidellm_weights_by_tokens_as_its_own_formula_does(make):
    """Percentiles of the values repeated as often as each request has tokens."""
    rng = np.random.default_rng(0)
    requests, tpots, itls = [], [], []
    for _ in range(40):
        size = int(rng.integers(1, 30))
        times = (0.3 + np.cumsum(rng.uniform(0.01, 0.2, size))).tolist()
        requests.append(make.request(token_times_s=tuple(times)))
        tpots += [1e3 * (times[-1] - 0.3) / size] * size
        itls += [1e3 * (times[-1] - times[0]) / max(1, size - 1)] * (size - 1)
    found = restate(make.run(requests), "guidellm")
    for name, values in (("time_per_output_token_ms", tpots), ("inter_token_latency_ms", itls)):
        assert found[f"{name}.mean"] == pytest.approx(np.mean(values))
        for percent in (50, 90, 95, 99):
            expected = np.percentile(values, percent, method="inverted_cdf")
            assert found[f"{name}.p{percent}"] == pytest.approx(expected)


def test_aiperf(run):
    found = restate(run, "aiperf")
    assert found["inter_token_latency.mean"] == pytest.approx(1500 / 4)
    assert found["inter_chunk_latency.p50"] == pytest.approx(750)
    assert found["request_latency.p50"] == pytest.approx(np.median([2200, 400]))
    assert found["output_token_throughput"] == pytest.approx(6 / 2.2)  # first sent to last token
    assert found["output_token_throughput_per_user.mean"] == pytest.approx(4 / 1.5)


def test_mlperf_counts_from_the_schedule(run):
    found = restate(run, "mlperf")
    assert found["mean_latency_ns"] == pytest.approx(1e9 * np.mean([2.3, 0.5]))
    assert found["50.00_percentile_latency_ns"] == pytest.approx(2.3e9)  # sorted[floor(2 * 0.5)]
    assert found["99.00_percentile_first_token_latency_ns"] == pytest.approx(0.8e9)
    assert found["mean_tpot_ns"] == pytest.approx(1.5e9 / 4)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_run_without_a_served_request_has_no_numbers(make, tool):
    assert restate(make.run([make.request(error="gone")]), tool) == {}


def test_an_unknown_tool_is_refused(run):
    with pytest.raises(UsageError, match="vllm, guidellm, aiperf, mlperf"):
        restate(run, "wrk")
