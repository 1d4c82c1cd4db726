"""Logits that Hugging Face transformers computes, in this process.

Knows nothing of our own models or statistics. The law it keeps: only local files are read and no
code that comes with a model is run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.errors import BackendError, CheckpointError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.weights import scheme
from llmopt.models.loader import DTYPES, resolve_device
from llmopt.quality.source import rows_per_chunk
from llmopt.quality.windows import Window


class TransformersLogits:
    """Logits of an `AutoModelForCausalLM`."""

    def __init__(self, model: Any, *, name: str, scheme: str) -> None:
        self.model = model
        self.name = name
        self.scheme = scheme

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        size: int = self.model.config.get_text_config().vocab_size
        return size

    @property
    def max_tokens(self) -> int:
        """The model's own limit."""
        limit: int = self.model.config.get_text_config().max_position_embeddings
        return limit

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits of the rows that have a scored token next.

        The head runs on those rows and the last one; all of them are held at once, since the model
        is read in one call, whatever its architecture. A last token beyond the model's limit is not
        read.
        """
        read = window.token_ids[: self.max_tokens]
        num_unscored = len(read) - (len(window.token_ids) - 1)  # the last row, if it was read
        with torch.inference_mode():
            logits = self.model(
                read.unsqueeze(0).to(self.model.device),
                use_cache=False,
                logits_to_keep=window.num_scored + num_unscored,
            ).logits[0, : window.num_scored]  # [num_scored, V]
        yield from torch.split(logits, rows_per_chunk(self.vocab_size))


def load_transformers(
    path: Path, *, dtype: str = "auto", device: str = "cpu"
) -> TransformersLogits:
    """Load a model directory with transformers.

    dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16". Raises UsageError (a file
    in place of a directory, an unknown dtype, no such device), CheckpointError (no model in it) and
    BackendError (transformers cannot load it, for lack of a package that its format needs).
    """
    from transformers import AutoModelForCausalLM

    if not path.is_dir():
        raise UsageError(
            f"transformers reads model directories, and {path} is none",
            "Give the directory of a model, or read a GGUF file with llmopt or llama.cpp.",
        )
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"the dtype {dtype} is not supported", f"Use auto or {', '.join(DTYPES)}.")
    target, reader = resolve_device(device), CheckpointReader(path)
    try:
        with _without_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=DTYPES.get(dtype, "auto"),
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # whatever the model's code and its format's package raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(
            f"transformers cannot load {path} ({reason})",
            "Install what it asks for, or measure the model with llmopt's own runtime.",
        ) from error
    stored = _scheme(reader, model.dtype)
    return TransformersLogits(model.eval().to(target), name=path.name, scheme=stored)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _scheme(reader: CheckpointReader, dtype: torch.dtype) -> str:
    """The scheme of the weights; of a format that only transformers reads, the format's name."""
    try:
        return scheme(reader, dtype)
    except CheckpointError:
        return str(reader.config["quantization_config"]["quant_method"])
