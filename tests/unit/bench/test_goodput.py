import math

import pytest

from llmopt.bench.goodput import goodput, is_good, is_met
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
