"""One line for whatever went wrong with a request or a cell.

The law: the line says what an `LLMOptError` says, and names the type of anything else.
"""

from llmopt.errors import LLMOptError


def describe(error: Exception) -> str:
    """The error in one line."""
    text = str(error) if isinstance(error, LLMOptError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
