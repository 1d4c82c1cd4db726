import numpy as np
import pytest

from llmopt.bench.peer_definitions import TOOLS, restate
from llmopt.errors import UsageError


@pytest.fixture
def run(make):
    """Wanted at 0.2, sent at 0.3; a role at 0.8, tokens at 1.0, 1.5 (3 of them) and 2.5; end 2.6.
    The second request: one token. The third failed.
    """
    first = make.request(
        token_times_s=(1.0, 1.5, 2.5), token_counts=(1, 3, 1), first_event_s=0.8, done_s=2.6
    )
    single = make.request(token_times_s=(0.7,), done_s=0.7)
    return make.run([first, single, make.request(error="gone", token_times_s=())])


def test_vllm(run):
    found = restate(run, "vllm")
    assert found["completed"] == 2
    assert found["failed"] == 1
    assert found["mean_ttft_ms"] == pytest.approx(np.mean([500, 400]))  # to the role
    assert found["mean_tpot_ms"] == pytest.approx((2200 - 500) / 4)  # of 5 tokens
    assert found["median_itl_ms"] == pytest.approx(np.median([200, 500, 1000]))  # chunks
    assert found["p99_e2el_ms"] == pytest.approx(np.percentile([2200, 400], 99))
    assert found["std_e2el_ms"] == pytest.approx(np.std([2200, 400]))
    assert found["output_throughput"] == pytest.approx(6 / 4)
    assert found["total_token_throughput"] == pytest.approx(26 / 4)
    assert found["max_concurrent_requests"] == 2


def test_guidellm(run):
    found = restate(run, "guidellm")
    assert found["time_to_first_token_ms.mean"] == pytest.approx(np.mean([700, 400]))
    assert found["time_per_output_token_ms.mean"] == pytest.approx(np.mean([2200 / 5, 400]))
    assert found["inter_token_latency_ms.mean"] == pytest.approx(1500 / 4)
    assert found["request_latency.mean"] == pytest.approx(np.mean([2.3, 0.4]))


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
