"""What `llmopt eval` was asked for, checked, and as the quality layer wants it.

Knows the options of the command; measures nothing. The law: what makes no sense together is refused
before anything is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from llmopt.cli.output import require_place
from llmopt.errors import UsageError
from llmopt.layers.native_linear import WeightActivations
from llmopt.quality.external.sources import SourceKind
from llmopt.quality.options import QualityOptions
from llmopt.quality.windows import ProtocolName

OWN_RUNTIME: SourceKind = "llmopt"
DEFAULT_WINDOWS = 16
ALL = "all"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The command as it was typed; `None` and empty: not given."""

    model: str
    base: str | None
    text: str
    protocol: ProtocolName
    window: int | None
    num_windows: str | None
    until_ci: str | None
    divergence: bool
    noise: bool
    cache: bool
    backend: str
    dtype: str
    base_dtype: str
    activations: WeightActivations
    device: str
    tasks: str | None
    requests: tuple[Path, ...]
    limit: int | None
    greedy: bool
    prompts: Path | None
    atlas: bool
    atlas_detail: bool
    html: Path | None
    out: Path | None
    json: bool

    @property
    def task_names(self) -> list[str]:
        """The tasks of lm-evaluation-harness."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]

    @property
    def has_tasks(self) -> bool:
        """Whether any task is asked for."""
        return bool(self.task_names or self.requests)


def check(asked: Evaluation) -> None:
    """Raise UsageError for options that make no sense together."""
    further = {
        "--tasks": bool(asked.task_names),
        "--requests": bool(asked.requests),
        "--greedy": asked.greedy,
        "--atlas": asked.atlas,
    }
    named = ", ".join(name for name, given in further.items() if given)
    if not asked.divergence and not named:
        raise UsageError(
            "there is nothing to measure",
            "Drop --no-divergence, or add --tasks, --requests, --greedy or --atlas.",
        )
    if named and asked.base is None:
        raise UsageError(f"{named} compares with a base", "Add --base MODEL.")
    for path in (asked.out, asked.html):
        if path is not None:
            require_place(path)
    kind, url = runtime(asked.backend)
    if named and kind != OWN_RUNTIME:
        raise UsageError(
            f"{named} needs the model in llmopt's own runtime, and the backend is {asked.backend}",
            "Leave --backend out, or ask for the divergence alone.",
        )
    if asked.activations != "auto" and kind != OWN_RUNTIME:
        raise UsageError(
            f"--activations is about llmopt's own runtime, and the backend is {asked.backend}",
            "Leave one of the two out.",
        )
    is_rounded = asked.activations in ("int8", "int16")
    if asked.atlas and is_rounded and asked.dtype == "auto" and asked.base_dtype == "float32":
        raise UsageError(
            f"--atlas runs both models in float32, which has no activations of {asked.activations}",
            "Add --dtype bfloat16, or leave --activations out.",
        )
    if url is not None and asked.base is None:
        raise UsageError(
            "a server does not give its tokenizer", "Add --base MODEL: its tokenizer is used."
        )
    if asked.until_ci is not None and asked.base is None:
        raise UsageError(
            "--until-ci is about the divergence from a base",
            "Add --base MODEL, or choose --num-windows.",
        )


def runtime(backend: str) -> tuple[SourceKind, str | None]:
    """The runtime that `--backend` names, and the URL if it is a server. Raises UsageError."""
    name, _, url = backend.partition(":")
    kinds: tuple[SourceKind, ...] = get_args(SourceKind)
    for kind in kinds:
        if name == kind and bool(url) == (kind == "vllm"):
            return kind, url or None
    raise UsageError(
        f"the backend is {backend!r}",
        "Use llmopt, transformers, llama.cpp or vllm:URL, such as vllm:http://127.0.0.1:8000.",
    )


def quality_options(asked: Evaluation) -> QualityOptions:
    """The text, the protocol and how sure to be. Raises UsageError."""
    return QualityOptions(
        text=asked.text,
        protocol=asked.protocol,
        window=asked.window,
        num_windows=_num_windows(asked),
        until_ci=None if asked.until_ci is None else _share(asked.until_ci),
    )


def _num_windows(asked: Evaluation) -> int | None:
    if asked.num_windows is None:
        return DEFAULT_WINDOWS if asked.until_ci is None else None
    if asked.num_windows == ALL:
        return None
    try:
        return int(asked.num_windows)
    except ValueError as error:
        raise UsageError(
            f"--num-windows is {asked.num_windows!r}", f"Give a whole number, or {ALL}."
        ) from error


def _share(text: str) -> float:
    """5% and 0.05 are the same."""
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError as error:
        raise UsageError(f"--until-ci is {text!r}", "Give a share, such as 5% or 0.05.") from error
    return value / 100 if percent else value
