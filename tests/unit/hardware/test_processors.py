import json
import subprocess
import sys

import pytest

from llmopt.errors import UsageError
from llmopt.hardware.processors import parse_processors, run_on, usable_processors

FIRST = str(usable_processors()[0])
PROBE = """
import json, os, sys
from llmopt.cli.app import app
app([*sys.argv[1:], "recipes"], standalone_mode=False)
import torch
print(json.dumps([sorted(os.sched_getaffinity(0)), torch.get_num_threads()]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("2-4", (2, 3, 4)), ("8,0-1,1", (0, 1, 8))]
)
def test_numbers_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_processors(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "3-2", "0x1"])
def test_what_names_no_processor_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no processors"):
        parse_processors(text)


def test_processors_that_are_not_there_are_refused() -> None:
    before = usable_processors()
    with pytest.raises(UsageError, match="may not run on processor 9999"):
        run_on((before[0], 9999))
    assert usable_processors() == before


@pytest.mark.parametrize("options", [("--cpus", FIRST), ("--cpus", FIRST, "--threads", "1")])
def test_a_command_computes_where_and_with_as_many_threads_as_it_is_told(
    options: tuple[str, ...],
) -> None:
    command = [sys.executable, "-c", PROBE, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [[int(FIRST)], 1]


def test_fewer_threads_than_processors() -> None:
    command = [sys.executable, "-c", PROBE, "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [list(usable_processors()), 1]
