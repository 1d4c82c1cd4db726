import subprocess
import sys

from llmopt.hardware.children import ChildrenMeter

HOLDS_MEMORY = "import time; held = bytearray(b'x') * (%d << 20); time.sleep(0.5)"


def run(megabytes: int) -> None:
    subprocess.run([sys.executable, "-c", HOLDS_MEMORY % megabytes], check=True)


def test_the_peak_is_that_of_the_children() -> None:
    with ChildrenMeter() as small:
        run(1)
    with ChildrenMeter() as large:
        run(101)
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    grown = (large.peak_bytes - small.peak_bytes) / (1 << 20)
    assert 98 < grown < 120


def test_without_children_nothing_is_known() -> None:
    with ChildrenMeter() as meter:
        pass
    assert meter.peak_bytes is None
