"""Every error that a user can cause, as one tree.

    LLMOptError
    ├── UsageError            an argument or a combination of arguments makes no sense
    ├── ModelError            a model cannot be found, fetched or is of an unknown architecture
    ├── CheckpointError       a checkpoint is missing parts, truncated or contradicts its config
    ├── QuantizationError     the requested quantization is impossible for these weights
    ├── EngineError           a request or a setting that the runtime can never serve
    ├── BackendError          a serving backend is missing, broken or refused a request
    ├── RecipeError           a recipe file is malformed
    ├── ResultError           a result file is unreadable, truncated or of another schema
    ├── OutputError           the output cannot be written (permissions, full disk, already there)
    └── MissingDependencyError  an optional part is not installed

Only the command line catches them: it prints one line and exits with code 2. A law of our own that
is broken is an `assert`, never one of these.
"""


class LLMOptError(Exception):
    """What happened and what was given (`message`), and what to do about it (`remedy`)."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.remedy}"


class UsageError(LLMOptError):
    """An argument or a combination of arguments makes no sense."""


class ModelError(LLMOptError):
    """A model cannot be found, fetched, or is of an unknown architecture."""


class CheckpointError(LLMOptError):
    """A checkpoint is missing parts, truncated, or contradicts its config."""


class QuantizationError(LLMOptError):
    """The requested quantization is impossible for these weights."""


class EngineError(LLMOptError):
    """A request or a setting that the runtime can never serve."""


class BackendError(LLMOptError):
    """A serving backend is missing, broken, or refused a request."""


class RecipeError(LLMOptError):
    """A recipe file is malformed."""


class ResultError(LLMOptError):
    """A result file is unreadable, truncated, or of another schema."""


class OutputError(LLMOptError):
    """The output cannot be written: permissions, a full disk, or something is already there."""


class MissingDependencyError(LLMOptError):
    """An optional part is not installed."""
