"""The command line: parses, calls one function of a lower layer, shows what it returns.

Nothing heavy is imported until a command runs. The law: an error that a user can cause is one
sentence with the remedy on standard error and exit code 2, an interruption is exit code 130, and
results are the only thing on standard output.
"""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count; typer returns it for a KeyboardInterrupt


def main() -> None:
    """The console script `llmopt`."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever reads the output has seen enough, as in `llmopt report | head`
        code = 0
    if code == INTERRUPTED:
        _say("interrupted; whatever was finished before is kept")
    sys.exit(code)


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
