import asyncio
from typing import Any

import pytest

from llmopt.bench.client_monitor import TICK_S, ClientMonitor


async def watch_while(monitor: ClientMonitor, work: Any) -> None:
    watcher = asyncio.create_task(monitor.watch())
    await asyncio.sleep(0)
    await work
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)


def test_mean_in_flight_is_weighted_by_time(make):
    async def main(loop: Any) -> dict[str, float]:
        monitor = ClientMonitor(loop.time)

        async def work() -> None:
            with monitor.request():
                await asyncio.sleep(1)
                with monitor.request():
                    await asyncio.sleep(2)
            await asyncio.sleep(1)

        await watch_while(monitor, work())
        return monitor.stats()

    stats = make.run_virtual(main)
    assert stats["client_mean_in_flight"] == pytest.approx((1 * 1 + 2 * 2 + 0 * 1) / 4, rel=0.02)
    assert stats["client_num_ticks"] == pytest.approx(4 / TICK_S, abs=2)
    assert stats["client_lag_p99_s"] == pytest.approx(0, abs=1e-9)


def test_a_blocked_event_loop_is_seen(make):
    async def main(loop: Any) -> ClientMonitor:
        monitor = ClientMonitor(loop.time)

        async def work() -> None:
            for _ in range(10):
                await asyncio.sleep(0.1)
                loop.now_s += 0.05  # work that does not yield

        await watch_while(monitor, work())
        return monitor

    monitor = make.run_virtual(main)
    assert 0.04 < monitor.max_lag_s < 0.051
    assert monitor.stats()["client_lag_p50_s"] == pytest.approx(0, abs=1e-9)
    assert monitor.stats()["client_lag_p99_s"] > 0.03


def test_a_run_shorter_than_a_tick_saw_nothing(make):
    async def main(loop: Any) -> ClientMonitor:
        monitor = ClientMonitor(loop.time)
        await watch_while(monitor, asyncio.sleep(TICK_S / 2))
        return monitor

    monitor = make.run_virtual(main)
    assert monitor.max_lag_s is None
    assert monitor.stats() == {"client_num_ticks": 0}


def test_in_flight_goes_down_when_a_request_fails(make):
    async def main(loop: Any) -> dict[str, float]:
        monitor = ClientMonitor(loop.time)
        with pytest.raises(ValueError, match="x"), monitor.request():
            raise ValueError("x")
        await watch_while(monitor, asyncio.sleep(1))
        return monitor.stats()

    assert make.run_virtual(main)["client_mean_in_flight"] == 0
