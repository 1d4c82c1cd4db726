"""The command line: parses, calls one function of a lower layer, shows what it returns.

Nothing heavy is imported until a command runs. The law: an error that a user can cause is one
sentence with the remedy on standard error and exit code 2, an interruption is exit code 130, and
results are the only thing on standard output.
"""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count; typer returns it for a KeyboardInterrupt


def main() -> None:
    """The console script `llmopt`."""
    from llmopt.cli.app import app
    from llmopt.errors import LLMOptError

    try:
        app()
    except LLMOptError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # whoever reads the output has seen enough, as in `llmopt report | head`
        sys.exit(0)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("interrupted; whatever was finished before is kept")
        raise


def _say(text: str) -> None:
    print(text, file=sys.stderr)
