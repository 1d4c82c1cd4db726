from llmopt.bench.observer import SilentObserver
from llmopt.bench.run_progress import RunProgress, SearchProgress
from llmopt.results.schema import ProbeRecord


class Recorder(SilentObserver):
    def __init__(self):
        self.heard = []

    def stage_advanced(self, done, total, detail):
        self.heard.append((done, total, detail))


def test_progress_says_how_many_and_how_fast():
    observer, now = Recorder(), iter([10.0, 12.0, 14.0])
    progress = RunProgress(observer, 5, 8, "cell 1 of 2", clock=lambda: next(now))
    progress(1)
    progress(9)
    assert observer.heard == [
        (5, 8, "cell 1 of 2"),
        (6, 8, "cell 1 of 2, 0.5 requests/s"),
        (8, 8, "cell 1 of 2, 2.25 requests/s"),
    ]


def test_it_says_how_another_runtime_gets_ready():
    observer = Recorder()
    RunProgress(observer, 5, 8, "cell 1").waiting(12.4, "x" * 100)
    assert observer.heard[-1] == (5, 8, "cell 1, starting for 12 s: " + 60 * "x")


def test_a_search_says_what_each_rate_did():
    observer = Recorder()
    progress = SearchProgress(observer)
    for number, met in ((1, True), (3, False)):
        progress(ProbeRecord(3.16, met, False, 3.0, number, 60, (400.0,), (met,)))
    assert observer.heard == [
        (1, 12, "3.16 requests/s holds in 60 requests"),
        (2, 12, "3.16 requests/s fails in 60 requests"),
    ]
