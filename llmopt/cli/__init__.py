"""The command line: parses, calls one function of a lower layer, shows what it returns.

Nothing heavy is imported until a command runs. The laws: an error that a user can cause is one
sentence with the remedy on standard error and exit code 2; results are the only thing on standard
output; an ending by a signal or by whoever reads the output has the code that shells give it; and
what is a mistake of llmopt has one that no command uses for an answer.
"""

import os
import signal
import sys
import traceback
from types import FrameType

CLOSED_PIPE = 128 + signal.SIGPIPE
DEFECT = 70  # EX_SOFTWARE of sysexits.h


def main() -> None:
    """The console script `llmopt`."""
    received = _count_signals()
    try:
        code = _run()
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # whoever reads the output has seen enough, as in `llmopt report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED_PIPE
    except BaseException:
        # An extension module may turn the KeyboardInterrupt that hits it into an error of its own.
        if not received:
            traceback.print_exc()
        code = DEFECT
    if received and code != 0:
        _say("interrupted; whatever was finished before is kept")
        code = 128 + received[0]
    sys.exit(code)


def _count_signals() -> list[int]:
    """A list that gets every signal that asks for the end, which is as a Ctrl-C, so that what was
    begun is tidied up. One that the parent ignores, as nohup does, stays ignored.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    return received


def _run() -> int | str | None:
    """Run the command and return its exit code."""
    from llmopt.cli.app import app
    from llmopt.errors import LLMOptError

    stdout = sys.stdout
    try:
        app()
    except LLMOptError as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # one that no lower layer expected: a path that may not be looked at
        _say(f"error: {error}")
        return 2
    except SystemExit as end:
        # typer puts another stream in the place of one that is a closed pipe
        return end.code if sys.stdout is stdout else CLOSED_PIPE
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
