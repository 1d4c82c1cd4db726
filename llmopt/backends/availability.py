"""Which backends there are on this machine, and how to get those that are not.

Starts nothing but a Python that is asked for a version. The law: what is said to be installed is
what would be started.
"""

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from llmopt import __version__
from llmopt.backends.catalogue import BackendKind
from llmopt.backends.formats import CheckpointFacts, environment_for, loadable, read_facts
from llmopt.backends.profiles.launch import ContainerSteps, LaunchRequest
from llmopt.backends.profiles.registry import PROFILES
from llmopt.environment.catalogue import find_environment
from llmopt.environment.cuda import has_nvidia_driver
from llmopt.environment.installation import find_installation, package_version

State = Literal["installed", "absent", "broken", "attach only"]
_PLACEHOLDER = Path("/path/to/model")
_CONTEXT_LENGTH = 4096
_NUM_PARALLEL = 16
_FOR_TRANSFORMERS = (
    "comes with llmopt; for quantized files `llmopt backend install` gptqmodel (GPTQ, AWQ), "
    "bitsandbytes, llm-compressor (compressed-tensors)"
)
_DEFAULT_PORTS = {"ollama": 11434, "tgi": 8080, "trtllm": 8000}


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend here. environment: that it runs in, if it is one of ours

    formats: the labels of the checkpoints it loads on this machine's best device
    """

    kind: BackendKind
    state: State
    version: str | None
    formats: tuple[str, ...]
    environment: str | None
    how_to_get: str


def backend_state(kind: BackendKind) -> BackendState:
    """Look for a backend."""
    device = "cuda" if has_nvidia_driver() else "cpu"
    state, found, how_to_get = _find(kind)
    return BackendState(
        kind, state, found, loadable(kind, device), environment_for(kind), how_to_get
    )


def container_steps(kind: BackendKind, checkpoint: Path | None) -> ContainerSteps | None:
    """What is done by hand to serve a checkpoint (or a placeholder) with a backend that comes as a
    container; None for one that does not. Raises CheckpointError.
    """
    profile = PROFILES.get(kind.name)
    if kind.how != "server" or profile is None or profile.container is None:
        return None
    facts = CheckpointFacts("full", "") if checkpoint is None else read_facts(checkpoint)
    served = (checkpoint or _PLACEHOLDER).absolute()
    request = LaunchRequest(
        program="docker",
        checkpoint=served,
        quantization=facts.quantization,
        model_name=served.stem if served.suffix == ".gguf" else served.name,
        port=_DEFAULT_PORTS.get(kind.name, 8000),
        context_length=min(_CONTEXT_LENGTH, facts.max_positions or _CONTEXT_LENGTH),
        num_parallel=_NUM_PARALLEL,
        dtype="bfloat16",
        device="cuda" if has_nvidia_driver() else "cpu",
    )
    return profile.container(request)


def _find(kind: BackendKind) -> tuple[State, str | None, str]:
    """State, version, and how to get it."""
    if kind.how == "in-process":
        return "installed", __version__, "comes with llmopt"
    if kind.name.startswith("transformers"):
        return "installed", version("transformers"), _FOR_TRANSFORMERS
    profile = PROFILES.get(kind.name)
    program = None if profile is None or kind.how != "server" else profile.program
    if program is not None and (named := os.environ.get(kind.program_variable)):
        return ("installed" if shutil.which(named) else "broken"), None, kind.program_variable
    name = environment_for(kind)
    installation = None if name is None else find_installation(find_environment(name))
    if installation is not None and installation.python is not None:
        return "installed", package_version(installation), f"`llmopt backend install {name}`"
    if program not in (None, "python") and (path := shutil.which(str(program))):
        return "installed", None, path
    if installation is None:
        shown = f"`llmopt backend install {kind.name}` shows how (docker)"
        return "attach only", None, shown if kind.name in _DEFAULT_PORTS else "--url"
    state: State = "broken" if installation.state == "broken" else "absent"
    return state, None, f"`llmopt backend install {name}`"
