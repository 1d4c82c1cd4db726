"""A model on disk against its base on disk: load both, then measure.

Knows nothing about terminals. The law it keeps: both are read with the same tokenizer, or the
comparison is refused.
"""

from pathlib import Path

import torch

from llmopt.errors import UsageError
from llmopt.formats.weights import scheme
from llmopt.models.loader import load_model, open_checkpoint
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.logits import DEFAULT_CACHE_BYTES, BaseLogits
from llmopt.quality.measure import OnWindow, measure_quality
from llmopt.quality.options import QualityOptions
from llmopt.quality.text import EvaluationWindows, load_windows
from llmopt.results.schema import QualityRecord


def compare(
    model_path: Path,
    base_path: Path,
    options: QualityOptions,
    *,
    base_name: str,
    dtype: str = "auto",
    base_dtype: str = "float32",
    device: str = "cpu",
    max_cache_bytes: int = DEFAULT_CACHE_BYTES,
    on_window: OnWindow | None = None,
) -> QualityRecord:
    """Measure what the model at `model_path` lost against the base at `base_path`.

    `base_name` names the base in the record. The dtypes are those that the activations are
    computed in; "auto" is the checkpoint's. Raises UsageError when the two cannot be compared or
    the text is unfit, and whatever loading raises (CheckpointError, ModelError).
    """
    windows = load_windows(load_tokenizer(base_path), options)
    _check_tokenizer(model_path, base_path, windows, options)
    base_model = load_model(base_path, dtype=base_dtype, device=device)
    base = BaseLogits(
        base_model,
        windows,
        name=base_name,
        scheme=scheme(open_checkpoint(base_path), base_model.dtype),
        max_cache_bytes=max_cache_bytes,
    )
    target = load_model(model_path, dtype=dtype, device=device)
    return measure_quality(target, base, options, on_window)


def _check_tokenizer(
    model_path: Path, base_path: Path, windows: EvaluationWindows, options: QualityOptions
) -> None:
    """Refuse a model whose own tokenizer reads the text as other tokens than the base's."""
    own = load_windows(load_tokenizer(model_path), options)
    if not torch.equal(own.token_ids, windows.token_ids):
        raise UsageError(
            f"the tokenizers of {model_path} and {base_path} read the same text as other tokens",
            "Compare a model with the one that it was made from.",
        )
