import math
import random

import pytest

from llmopt.bench.goodput import goodput, is_good, is_met, term_ms
from llmopt.bench.metrics import summarize
from llmopt.results.schema import SloTerm

TTFT = SloTerm("ttft", 500)
TPOT = SloTerm("tpot", 100)


def request(make, ttft_s=0.1, tpot_s=0.05, **changes):
    times = (0.2 + ttft_s, 0.2 + ttft_s + tpot_s, 0.2 + ttft_s + 2 * tpot_s)
    return make.request(**({"token_times_s": times} | changes))


def test_a_request_is_good_within_every_bound(make):
    assert is_good(request(make), (TTFT, TPOT))
    assert not is_good(request(make, ttft_s=0.6), (TTFT, TPOT))
    assert not is_good(request(make, tpot_s=0.2), (TTFT, TPOT))
    assert is_good(request(make, tpot_s=0.2), (TTFT,))
    assert not is_good(request(make, error="gone"), (TTFT,))
    assert not is_good(make.request(token_times_s=()), (TTFT,))


def test_a_single_token_has_no_tpot_to_exceed(make):
    assert is_good(make.request(token_times_s=(0.3,)), (TTFT, TPOT))
    assert not is_good(make.request(token_times_s=()), (TPOT,))


def test_rates_and_share(make):
    runs = [make.run([request(make), request(make, ttft_s=0.9), request(make, error="x")])] * 2
    found = goodput(runs, (TTFT,))
    assert found.requests_per_s == pytest.approx(1 / 4)
    assert found.tokens_per_s == pytest.approx(3 / 4)
    assert found.share == pytest.approx(1 / 3)
    assert not found.met
    assert goodput(runs, ()) is None


@pytest.mark.parametrize(
    ("percent", "met"), [(None, False), (50, True), (90, False), (80, True), (85, False)]
)
def test_a_percentile_of_all_requests_must_keep_its_bound(make, percent, met):
    # TTFT of 100 ms five times and of 900 ms once: position 5 * 0.85 = 4.25 lies between the two
    requests = [request(make)] * 5 + [request(make, ttft_s=0.9)]
    limit = SloTerm("ttft", 200, percent)
    assert is_met([make.run(requests)], limit) is met


def test_failed_requests_are_later_than_any_bound(make):
    requests = [request(make)] * 5 + [request(make, error="gone")]
    for percent, met in ((50, True), (80, True), (85, False), (99, False)):
        assert is_met([make.run(requests)], SloTerm("ttft", math.inf, percent)) is (
            met or percent >= 85
        )
        assert is_met([make.run(requests)], SloTerm("ttft", 1e9, percent)) is met
    assert not is_met([make.run([])], TTFT)


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
@pytest.mark.parametrize("metric", ["ttft", "tpot", "itl", "e2e"])
def test_a_bound_is_on_the_percentile_that_the_report_shows(make, metric, percent):
    chance = random.Random(0)
    runs = []
    for _ in range(2):
        requests = []
        for size in [1, *(chance.randint(1, 12) for _ in range(30))]:
            gaps = [chance.uniform(0.05, 0.9) for _ in range(size)]
            times = tuple(0.3 + sum(gaps[: i + 1]) for i in range(size))
            counts = (1, *(chance.randint(1, 3) for _ in range(size - 1)))
            requests.append(make.request(token_times_s=times, token_counts=counts))
        runs.append(make.run(requests))
    shown = getattr(summarize(runs, None, None, "float32"), f"{metric}_ms")
    found = term_ms(runs, SloTerm(metric, 1.0, percent))
    assert found == pytest.approx(getattr(shown, f"p{percent}"))


def test_a_failed_request_has_as_many_late_tokens_as_it_was_asked_for(make):
    failed = request(make, error="gone", max_tokens=11)  # ten gaps of 13 in all
    itl = SloTerm("itl", 60, 20)
    assert term_ms([make.run([request(make)] * 5)], itl) == pytest.approx(50)
    assert is_met([make.run([request(make)] * 5 + [failed])], itl)
    assert not is_met([make.run([request(make), failed])], itl)  # 10 of 12 are late
    assert is_met([make.run([request(make), failed])], SloTerm("itl", 60, 5))


def test_without_such_a_latency_nothing_is_exceeded(make):
    single = make.request(token_times_s=(0.3,))
    assert term_ms([make.run([single])], SloTerm("tpot", 1, 95)) == 0
    assert term_ms([make.run([single])], SloTerm("itl", 1, 95)) == 0
    assert term_ms([make.run([])], SloTerm("tpot", 1, 95)) == math.inf
