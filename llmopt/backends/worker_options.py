"""What a rival that runs as a worker process is started with.

Data only; knows nothing of processes or of the engines behind them. The law: whatever changes what
is measured is stated here or in what the worker says of itself, and both go into the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

_SCRIPTS = Path(__file__).parent / "workers"


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """One way of using one library.

    name: as recipes and results call the backend
    script: run by the environment's own Python, under `workers/run_worker.py`
    settings: of the script, where nothing else is asked
    converts: it serves a conversion of the checkpoint, which is kept for the next time
    """

    name: str
    script: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    converts: bool = False


WORKER_KINDS: Mapping[str, WorkerKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            WorkerKind("transformers", _SCRIPTS / "transformers_worker.py", {"mode": "static"}),
            WorkerKind(
                "transformers-cb", _SCRIPTS / "transformers_worker.py", {"mode": "continuous"}
            ),
            WorkerKind("llama-cpp-python", _SCRIPTS / "llama_cpp_worker.py"),
            WorkerKind(
                "openvino",
                _SCRIPTS / "openvino_worker.py",
                {"export_args": ["--weight-format", "fp16"]},
                converts=True,
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """A worker, the checkpoint it serves, and its limits.

    python: the interpreter of the environment that has the library
    checkpoint: a directory of safetensors (an OpenVINO model too), or a GGUF file
    log: what the worker's standard error is appended to
    num_threads: that compute
    max_model_len: tokens that prompt and answer of a request have together at most
    max_num_seqs: requests that are computed at once; more of them wait
    dtype: "float32", "bfloat16" or "float16": of weights that are not quantized, and of the
        computation where the library lets it be chosen
    device: "cpu" or "cuda"
    prefix_caching: whether what an earlier prompt left in the cache is used again
    variables: all environment variables of the process; None: those of this one
    settings: for the script, by the names that it documents
    start_timeout_s: for loading, and converting where the engine needs another format
    """

    kind: WorkerKind
    python: Path
    checkpoint: Path
    log: Path
    num_threads: int
    max_model_len: int
    max_num_seqs: int
    dtype: str = "bfloat16"
    device: str = "cpu"
    prefix_caching: bool = False
    variables: Mapping[str, str] | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    start_timeout_s: float = 300.0

    @property
    def command(self) -> tuple[str, ...]:
        """The command line that starts the worker."""
        return (str(self.python), str(_SCRIPTS / "run_worker.py"), str(self.kind.script))

    @property
    def limits(self) -> dict[str, object]:
        """What the worker is told, but for where the checkpoint is; goes into the result file."""
        names = ("num_threads", "max_model_len", "max_num_seqs", "dtype", "device")
        return {
            **{name: getattr(self, name) for name in names},
            "prefix_caching": self.prefix_caching,
            **self.kind.settings,
            **self.settings,
        }
