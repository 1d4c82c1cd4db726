"""A model on disk against its base on disk: open both, score, judge by the noise floor.

Knows nothing about terminals. The law it keeps: both are read with the same tokenizer, or the
comparison is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmopt.errors import UsageError
from llmopt.formats.weights import Checkpoint, scheme
from llmopt.layers.native_linear import WeightActivations
from llmopt.models.loader import ModelLoader, open_checkpoint
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.base_cache import DiskLogits, base_cache_directory, base_cache_key
from llmopt.quality.base_logits import KeptLogits
from llmopt.quality.noise import UNROUNDED, NoiseScores, measure_noise, noise_dtype
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import OnWindow, score_windows
from llmopt.quality.source import DeferredLogits, LogitSource
from llmopt.quality.stopping import precision_goal
from llmopt.quality.summary import summarize
from llmopt.quality.text import load_windows
from llmopt.quality.windows import EvaluationWindows
from llmopt.quantize.identity import source_name
from llmopt.results.schema import QualityRecord


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """How the base is run. cache: keep its log-probabilities on disk; noise: measure the floor"""

    name: str
    dtype: str = "float32"  # of its activations
    cache: bool = True
    noise: bool = True


def compare(
    model_path: Path,
    base_path: Path,
    options: QualityOptions,
    base_options: BaseOptions,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    activations: WeightActivations = "auto",
    on_window: OnWindow | None = None,
    on_noise_window: OnWindow | None = None,
    on_remark: Callable[[str], None] | None = None,
) -> QualityRecord:
    """Measure what the model at `model_path` lost against the base at `base_path`.

    dtype: of the target's activations; "auto" is the checkpoint's. activations: what these are
    rounded to before quantized weights, as in `load_model`; the base's and the noise run's never
    are. `on_noise_window` hears of the windows of the noise run, which comes last; `on_remark` of a
    cache that could not be used.
    Raises UsageError when the two cannot be compared or the text is unfit, and whatever loading
    raises (CheckpointError, ModelError).
    """
    windows = load_windows(load_tokenizer(base_path), options)
    check_tokenizer(model_path, base_path, windows, options)
    base = open_base(base_path, base_options, device=device)
    scores = score_windows(
        open_model(
            model_path,
            source_name(model_path),
            dtype=dtype,
            device=device,
            activations=activations,
        ),
        base,
        windows,
        on_window=on_window,
        until=precision_goal(options),
    )
    noise = None
    if base_options.noise:
        noise = _measure_noise(
            base_path, base_options, device, base, scores.windows, on_noise_window
        )
    record = summarize(scores, options, base_name=base.name, base_scheme=base.scheme, noise=noise)
    if not isinstance(base, DiskLogits):
        return record
    if base.remark is not None and on_remark is not None:
        on_remark(base.remark)
    return replace(record, base_cache_error=base.error)


def open_model(
    path: Path, name: str, *, dtype: str, device: str, activations: WeightActivations
) -> DeferredLogits:
    """A model on disk that is loaded once its logits are asked for. Raises as `ModelLoader`."""
    reader = open_checkpoint(path)
    loader = ModelLoader(reader, dtype=dtype, device=device, activations=activations)
    return _deferred(reader, loader, name)


def open_base(path: Path, options: BaseOptions, *, device: str) -> KeptLogits | DiskLogits:
    """The base, whose logits are computed once: kept on disk, or in memory while they fit."""
    reader = open_checkpoint(path)
    loader = ModelLoader(reader, dtype=options.dtype, device=device, activations=UNROUNDED)
    source = _deferred(reader, loader, options.name)
    if not options.cache:
        return KeptLogits(source)
    key = base_cache_key(
        reader, dtype=loader.dtype, device=loader.device, activations=loader.activations
    )
    return DiskLogits(source, base_cache_directory() / key)


def open_noise(path: Path, options: BaseOptions, *, device: str) -> DeferredLogits | None:
    """The base in the 16-bit dtype that it is served in; None if `options` run it in 16 bits."""
    reader = open_checkpoint(path)
    served = ModelLoader(reader, dtype="auto", device=device).dtype
    compute = ModelLoader(reader, dtype=options.dtype, device=device).dtype
    chosen = noise_dtype(_dtype_name(served), _dtype_name(compute))
    if chosen is None:
        return None
    return open_model(path, options.name, dtype=chosen, device=device, activations=UNROUNDED)


def check_tokenizer(
    model_path: Path, base_path: Path, windows: EvaluationWindows, options: QualityOptions
) -> None:
    """Refuse a model whose own tokenizer reads the text as other tokens than the base's."""
    own = load_windows(load_tokenizer(model_path), options)
    if not own.has_tokens_of(windows):
        raise UsageError(
            f"the tokenizers of {model_path} and {base_path} read the same text as other tokens",
            "Compare a model with the one that it was made from.",
        )


def _deferred(reader: Checkpoint, loader: ModelLoader, name: str) -> DeferredLogits:
    return DeferredLogits(
        loader.model, loader.config, name=name, scheme=scheme(reader, loader.dtype)
    )


def _measure_noise(
    path: Path,
    options: BaseOptions,
    device: str,
    base: LogitSource,
    windows: EvaluationWindows,
    on_window: OnWindow | None,
) -> NoiseScores | None:
    source = open_noise(path, options, device=device)
    if source is None:
        return None
    return measure_noise(source, base, windows, on_window=on_window)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
