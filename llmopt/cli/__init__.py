"""The command line: parses, calls one function of a lower layer, shows what it returns.

Nothing heavy is imported until a command runs. The law: an error that a user can cause is one
sentence with the remedy on standard error and exit code 2, an interruption is exit code 130, and
results are the only thing on standard output.
"""

import sys


def main() -> None:
    """The console script `llmopt`."""
    import click

    from llmopt.cli.app import app
    from llmopt.errors import LLMOptError

    try:
        code = app(standalone_mode=False)
    except LLMOptError as error:
        _say(f"error: {error}")
        code = 2
    except click.exceptions.Abort:
        _say("interrupted; whatever was finished before is kept")
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code or 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
