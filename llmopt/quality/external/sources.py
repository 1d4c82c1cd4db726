"""One way to open a model in any runtime that tells its probabilities.

Knows which runtime reads what; knows nothing of statistics. The law it keeps: what was opened is
closed when the `with` block ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from llmopt.formats.weights import scheme
from llmopt.models.loader import load_model, open_checkpoint
from llmopt.quality.external.llama_cpp_source import open_llama_cpp
from llmopt.quality.external.transformers_source import load_transformers
from llmopt.quality.external.truncated import TruncatedSource
from llmopt.quality.external.vllm_source import open_server
from llmopt.quality.source import LogitSource, ModelLogits

SourceKind = Literal["llmopt", "transformers", "llama.cpp", "vllm"]
Source = LogitSource | TruncatedSource


@contextmanager
def open_source(
    kind: SourceKind,
    target: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    served_name: str | None = None,
) -> Iterator[Source]:
    """A model in a runtime, for as long as the `with` block lasts.

    target: a model directory ("llmopt", "transformers"), a GGUF file ("llmopt", "llama.cpp") or the
        URL of a server ("vllm")
    dtype, device: what "llmopt" and "transformers" compute with; "llama.cpp" follows its build and
        takes as many threads as torch has here
    served_name: of the model on a server that serves several

    Raises UsageError (a target of another kind), CheckpointError, ModelError and BackendError.
    """
    path = Path(target)
    if kind == "vllm":
        with open_server(str(target), model=served_name) as server:
            yield server
    elif kind == "llama.cpp":
        with open_llama_cpp(path, num_threads=torch.get_num_threads()) as worker:
            yield worker
    elif kind == "transformers":
        yield load_transformers(path, dtype=dtype, device=device)
    else:
        model = load_model(path, dtype=dtype, device=device)
        stored = scheme(open_checkpoint(path), model.dtype)
        yield ModelLogits(model, name=path.name, scheme=stored)
