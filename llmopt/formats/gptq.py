"""The GPTQ checkpoint layout, versions 1 and 2.

Per linear layer with K inputs, O outputs and G groups (AutoGPTQ; read by transformers, vLLM,
SGLang, TGI, exllama):

    qweight  int32   [K * bits / 32, O]   codes packed along K
    qzeros   int32   [G, O * bits / 32]   zero points packed along O
    scales   float16 [G, O]
    g_idx    int32   [K]                  the group of each input

Version 1 stores each zero point minus one, version 2 the zero point itself. Symmetric weights only
are written, as version 1, which every reader takes. Reading looks at the data as well as at the
config, because files exist that claim version 1 and hold version 2.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def pack_gptq(prefix: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The version 1 tensors of one layer, named `prefix.qweight` and so on."""
    assert weight.spec.symmetric, "version 1 cannot hold every asymmetric zero point"
    rows, columns = weight.shape
    groups = weight.spec.num_groups(columns)
    stored_zero = torch.full((rows, groups), weight.spec.midpoint - 1, dtype=torch.uint8)
    g_idx = weight.g_idx
    if g_idx is None:
        g_idx = torch.arange(columns, dtype=torch.int32) // weight.spec.columns_per_group(columns)
    return {
        f"{prefix}.qweight": pack_words(weight.codes.T, weight.spec.bits).contiguous(),
        f"{prefix}.qzeros": pack_words(stored_zero, weight.spec.bits).T.contiguous(),
        f"{prefix}.scales": weight.scales.T.contiguous(),
        f"{prefix}.g_idx": g_idx.to(torch.int32),
    }


def unpack_gptq(
    prefix: str, tensor: Callable[[str], torch.Tensor], spec: QuantSpec, checkpoint_format: str
) -> QuantizedWeight:
    """Read one layer; `tensor` maps a name to its tensor. Raises CheckpointError on inconsistent
    shapes.
    """
    codes = unpack_words(tensor(f"{prefix}.qweight"), spec.bits).T.contiguous()
    scales = tensor(f"{prefix}.scales").T.contiguous()
    stored = unpack_words(tensor(f"{prefix}.qzeros").T.contiguous(), spec.bits)
    rows, columns = codes.shape
    groups = spec.num_groups(columns)
    if scales.shape != (rows, groups) or stored.shape != (rows, groups):
        raise CheckpointError(
            f"layer {prefix} has scales {tuple(scales.shape)} and zero points "
            f"{tuple(stored.shape)} where [{rows}, {groups}] was expected",
            "The tensors contradict quantization_config; fetch or make the checkpoint again.",
        )
    zeros = _zero_points(stored, spec, checkpoint_format)
    if spec.symmetric and not bool((zeros == spec.midpoint).all()):
        raise CheckpointError(
            f"layer {prefix} is declared symmetric but has zero points other than {spec.midpoint}",
            "Set sym to false in its quantization_config, or make the checkpoint again.",
        )
    return QuantizedWeight(
        codes=codes,
        scales=scales,
        zeros=None if spec.symmetric else zeros,
        g_idx=_group_index(tensor(f"{prefix}.g_idx"), spec, columns, prefix),
        spec=spec,
    )


def _zero_points(stored: torch.Tensor, spec: QuantSpec, checkpoint_format: str) -> torch.Tensor:
    """Undo version 1's minus one, unless the data says that it was never applied."""
    if spec.symmetric and bool((stored == spec.midpoint).all()):
        return stored
    if checkpoint_format == "gptq_v2":
        return stored
    return ((stored.to(torch.int16) + 1) % spec.levels).to(torch.uint8)


def _group_index(
    g_idx: torch.Tensor, spec: QuantSpec, columns: int, prefix: str
) -> torch.Tensor | None:
    size = spec.columns_per_group(columns)
    natural = torch.arange(columns, dtype=torch.int32, device=g_idx.device) // size
    if g_idx.shape == natural.shape and torch.equal(g_idx.to(torch.int32), natural):
        return None
    counts = torch.bincount(g_idx.long().clamp_min(0), minlength=spec.num_groups(columns))
    if g_idx.shape != natural.shape or bool((counts != size).any()):
        raise CheckpointError(
            f"layer {prefix} has a g_idx that does not give every group {size} inputs",
            "The file is damaged; fetch or make the checkpoint again.",
        )
    return g_idx.to(torch.int32)


def quantization_config(spec: QuantSpec, *, damping: float | None, method: str) -> dict[str, Any]:
    """`quantization_config` for config.json, with the keys that transformers, vLLM and SGLang
    read.
    """
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": spec.bits,
        "group_size": spec.group_size if spec.group_size is not None else -1,
        "sym": spec.symmetric,
        "desc_act": False,
        "damp_percent": damping if damping is not None else 0.01,
        "true_sequential": True,
        "lm_head": False,
        "dynamic": {},
        "meta": {"quantizer": ["llmopt"], "method": method},
    }


def parse_quantization_config(config: Mapping[str, Any]) -> tuple[QuantSpec, str]:
    """(spec, checkpoint_format) of a GPTQ `quantization_config`; CheckpointError if it is
    unusable.
    """
    try:
        bits, group_size = int(config["bits"]), int(config["group_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config has no usable 'bits' and 'group_size' ({error})",
            "Fetch the checkpoint again, or restore quantize_config.json's values in config.json.",
        ) from error
    if config.get("dynamic"):
        raise CheckpointError(
            "quantization_config sets 'dynamic' per-layer overrides, which are not supported",
            "Use a checkpoint with one setting for all layers.",
        )
    spec = QuantSpec(bits, group_size if group_size > 0 else None, bool(config.get("sym", True)))
    return spec, str(config.get("checkpoint_format", "gptq"))
