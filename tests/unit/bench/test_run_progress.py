from llmopt.bench.observer import SilentObserver
from llmopt.bench.run_progress import RunProgress


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
