"""The command line: parses, calls one function of a lower layer, shows what it returns.

Nothing heavy is imported until a command runs. The law: an error that a user can cause is one
sentence with the remedy on standard error and exit code 2, an interruption is exit code 130, and
results are the only thing on standard output.
"""

import signal
import sys
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """The console script `llmopt`."""
    interrupts = _count_interrupts()
    try:
        code = _run()
    except BrokenPipeError:
        sys.stderr.close()  # whoever reads the output has seen enough, as in `llmopt report | head`
        code = 0
    except BaseException:
        # An extension module may turn the KeyboardInterrupt that hits it into an error of its own.
        if not interrupts:
            raise
        code = INTERRUPTED
    if interrupts and code != 0:
        _say("interrupted; whatever was finished before is kept")
        code = INTERRUPTED
    sys.exit(code)


def _count_interrupts() -> list[int]:
    """A list that gets an entry for every SIGINT, which raises KeyboardInterrupt as always."""
    interrupts: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    return interrupts


def _run() -> int | str | None:
    """Run the command and return its exit code."""
    from llmopt.cli.app import app
    from llmopt.errors import LLMOptError

    try:
        app()
    except LLMOptError as error:
        _say(f"error: {error}")
        return 2
    except SystemExit as end:
        return end.code
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
