"""Which engines will take a quantized checkpoint, with which kernel, on how many GPUs.

Applies the table of `portability_rules` to a checkpoint's config and shapes; reads no files and
runs no engine. Law: "loads" is said only where every layer passes every limit in the table, and
each verdict says whether it was tested, read in the engine's code, or neither.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmopt.errors import CheckpointError
from llmopt.formats.portability_rules import (
    ARCHITECTURES,
    ENGINES,
    LACKING,
    READERS,
    Evidence,
    Kernel,
    Reader,
)
from llmopt.formats.portability_scheme import Scheme, module_schemes

Status = Literal["loads", "loads with a slower kernel", "refused", "not checked"]
GPU_COUNTS = (1, 2, 4, 8)
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_SPLIT_BY_INPUTS = ("o_proj", "down_proj")  # all others by outputs
_KEY_VALUE = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one engine will make of a checkpoint.

    version: of the engine that the rule was written for; source: where it was read
    kernels: those that take every layer, in the engine's order, with the hardware that they need
    gpu_counts: of 1, 2, 4 and 8, those over which the engine can split it (tensor parallelism)
    reason: why it is refused or slower, what must be installed, what stops more GPUs; or empty
    """

    engine: str
    version: str
    status: Status
    kernels: tuple[str, ...]
    gpu_counts: tuple[int, ...]
    reason: str
    evidence: Evidence
    source: str


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """What there is to judge."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, int]]
    schemes: Mapping[str, Scheme]

    @property
    def architecture(self) -> str:
        """The model class that config.json names."""
        return str((self.config.get("architectures") or ["an unnamed architecture"])[0])


@dataclass(frozen=True, slots=True)
class _Layer:
    """One matrix on one GPU: `rows` outputs, and `columns` of the `all_columns` inputs."""

    name: str
    scheme: Scheme
    rows: int
    columns: int
    all_columns: int


def check_portability(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], format: str
) -> tuple[Verdict, ...]:
    """Judge a checkpoint for every engine in the table, in its order.

    config: config.json with its `quantization_config` (for "gguf" that of the source model)
    shapes: (O, K) of each quantized layer, by module name ("model.layers.0.self_attn.q_proj")
    format: "gptq", "awq", "compressed-tensors", "bitsandbytes" or "gguf"
    Raises `CheckpointError` for a `quantization_config` that is unusable, exempts every layer, or
    stores layers in several ways.
    """
    schemes = module_schemes(config, shapes, format)
    storages = {scheme.storage for scheme in schemes.values()}
    if len(storages) != 1:
        raise CheckpointError(
            f"quantization_config stores layers in {len(storages)} ways",
            "Only checkpoints with one are judged.",
        )
    checkpoint = _Checkpoint(config, {name: shapes[name] for name in schemes}, schemes)
    (storage,) = storages
    return tuple(_judge(READERS[engine, storage], checkpoint) for engine in ENGINES)


def _judge(reader: Reader, checkpoint: _Checkpoint) -> Verdict:
    if not reader.kernels:
        status: Status = "not checked" if reader.evidence == "unverified" else "refused"
        return _verdict(reader, status, reader.note)
    refusal = _whole_refusal(reader, checkpoint)
    layers = [] if refusal else list(_layers(reader, checkpoint, 1))
    refusal = refusal or _kernel_refusal(reader, layers)
    if refusal:
        return _verdict(reader, "refused", refusal)
    taken = [_kernels(reader, layer) for layer in layers]
    fast = all(any(kernel.fast for kernel in kernels) for kernels in taken)
    checked = all(any(kernel.checked for kernel in kernels) for kernels in taken)
    reasons = [reader.note] if reader.note else []
    counts, stop = _gpu_counts(reader, checkpoint)
    reasons += [stop] if stop else []
    known = checkpoint.architecture in ARCHITECTURES[reader.engine]
    if not known:
        reasons.append(f"whether it knows {checkpoint.architecture} was not checked")
    return _verdict(
        reader,
        "loads" if fast else "loads with a slower kernel",
        "; ".join(reasons),
        kernels=_kernel_names(reader, taken),
        gpu_counts=counts,
        evidence=reader.evidence if known and checked else "unverified",
    )


def _verdict(
    reader: Reader,
    status: Status,
    reason: str,
    *,
    kernels: tuple[str, ...] = (),
    gpu_counts: tuple[int, ...] = (),
    evidence: Evidence | None = None,
) -> Verdict:
    return Verdict(
        reader.engine,
        reader.version,
        status,
        kernels,
        gpu_counts,
        reason,
        evidence or reader.evidence,
        reader.source,
    )


def _whole_refusal(reader: Reader, checkpoint: _Checkpoint) -> str:
    """Why the engine refuses the checkpoint whatever its shapes; empty if it does not."""
    if checkpoint.architecture in LACKING.get(reader.engine, ()):
        return f"it does not know {checkpoint.architecture}"
    for scheme in dict.fromkeys(checkpoint.schemes.values()):
        if scheme.act_order and not reader.group_act_order:
            return "it no longer takes groups whose columns lie anywhere (desc_act, actorder group)"
        if scheme.zeros and scheme.zero_version not in reader.zero_versions:
            return "it knows version 1 only and would read every zero point one too high"
        if scheme.activations not in reader.activations:
            wanted = scheme.activations or "unquantized"
            return f"it does not take {scheme.storage} weights with {wanted} inputs"
    return _fusion_refusal(checkpoint) if reader.fuses else ""


def _fusion_refusal(checkpoint: _Checkpoint) -> str:
    """Engines that join q, k, v and gate, up need one setting for all parts."""
    for module in checkpoint.schemes:
        for part in _fused_parts(module):
            if checkpoint.schemes.get(part) != checkpoint.schemes[module]:
                return f"it joins {module} and {part}, which are not quantized alike"
    return ""


def _fused_parts(module: str) -> tuple[str, ...]:
    """All modules of the matrix that this one becomes a part of, itself included."""
    parent, _, name = module.rpartition(".")
    parts = next((parts for parts in _FUSED if name in parts), (name,))
    return tuple(f"{parent}.{part}" for part in parts)


def _layers(reader: Reader, checkpoint: _Checkpoint, num_gpus: int) -> Iterator[_Layer]:
    """The matrices of one GPU as the engine holds them; all sizes divide (`_split_refusal`)."""
    for module, scheme in checkpoint.schemes.items():
        parts = _fused_parts(module) if reader.fuses else (module,)
        if module != parts[0]:
            continue
        rows = [_rows(part, checkpoint, num_gpus) for part in parts]
        all_columns = checkpoint.shapes[module][1]
        split = num_gpus if module.endswith(_SPLIT_BY_INPUTS) else 1
        name = "+".join((module, *(part.rpartition(".")[2] for part in parts[1:])))
        yield _Layer(name, scheme, sum(rows), all_columns // split, all_columns)


def _rows(module: str, checkpoint: _Checkpoint, num_gpus: int) -> int:
    """Outputs of a module on one GPU; key/value heads are repeated where there are too few."""
    rows = checkpoint.shapes[module][0]
    if module.endswith(_SPLIT_BY_INPUTS):
        return rows
    if module.endswith(_KEY_VALUE):
        return rows // min(num_gpus, _num_kv_heads(checkpoint.config))
    return rows // num_gpus


def _kernels(reader: Reader, layer: _Layer) -> tuple[Kernel, ...]:
    """The kernels that take this layer, the preferred one first."""
    return tuple(kernel for kernel in reader.kernels if not _refusal(kernel, layer))


def _kernel_refusal(reader: Reader, layers: Sequence[_Layer]) -> str:
    """Why a layer finds no kernel; empty if each finds one."""
    for layer in layers:
        if not _kernels(reader, layer):
            reasons = dict.fromkeys(f"{k.name}: {_refusal(k, layer)}" for k in reader.kernels)
            return "; ".join(reasons)
    return ""


def _refusal(kernel: Kernel, layer: _Layer) -> str:
    """Why a kernel does not take a layer; empty if it does."""
    scheme, size = layer.scheme, layer.scheme.group_size
    if scheme.bits not in kernel.bits:
        return f"takes {_list(kernel.bits)} bits, not {scheme.bits}"
    if scheme.zeros not in kernel.zeros:
        return f"takes no {'' if scheme.zeros else 'symmetric '}weights" + (
            " with zero points" if scheme.zeros else ""
        )
    if kernel.group_sizes is not None and size not in kernel.group_sizes:
        return f"takes groups of {_list(kernel.group_sizes)}, not {size or 'one per output'}"
    if size is not None and size < layer.all_columns and layer.columns % size:
        return f"{layer.columns} inputs of {layer.name} are no whole number of groups of {size}"
    if not any(layer.rows % o == 0 and layer.columns % k == 0 for o, k in kernel.tiles):
        tiles = " or ".join(f"{o} x {k}" for o, k in kernel.tiles)
        return f"takes multiples of {tiles}, not the {layer.rows} x {layer.columns} of {layer.name}"
    return ""


def _kernel_names(reader: Reader, taken: Sequence[Sequence[Kernel]]) -> tuple[str, ...]:
    """Kernels that take every layer; where none does, all that take some."""
    common = [kernel for kernel in reader.kernels if all(kernel in kernels for kernels in taken)]
    some = [kernel for kernel in reader.kernels if any(kernel in kernels for kernels in taken)]
    return tuple(f"{kernel.name} ({kernel.hardware})" for kernel in common or some)


def _gpu_counts(reader: Reader, checkpoint: _Checkpoint) -> tuple[tuple[int, ...], str]:
    """Over how many GPUs it can be split, and what stops the first count that it cannot."""
    counts, stop = [1], ""
    for num_gpus in GPU_COUNTS[1:] if reader.splits else ():
        refusal = _split_refusal(checkpoint, num_gpus) or _kernel_refusal(
            reader, list(_layers(reader, checkpoint, num_gpus))
        )
        if not refusal:
            counts.append(num_gpus)
        elif not stop:
            stop = f"not on {num_gpus} GPUs: {refusal}"
    return tuple(counts), stop


def _split_refusal(checkpoint: _Checkpoint, num_gpus: int) -> str:
    """Why heads or sizes do not divide over GPUs; empty if they do."""
    heads = int(checkpoint.config.get("num_attention_heads") or 1)
    kv_heads = _num_kv_heads(checkpoint.config)
    if heads % num_gpus:
        return f"{heads} attention heads do not divide"
    if kv_heads % num_gpus and num_gpus % kv_heads:
        return f"{kv_heads} key/value heads do not divide"
    for module, (rows, columns) in checkpoint.shapes.items():
        size = columns if module.endswith(_SPLIT_BY_INPUTS) else rows
        if not module.endswith(_KEY_VALUE) and size % num_gpus:
            return f"{size} channels of {module} do not divide"
    return ""


def _num_kv_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 1)


def _list(values: Sequence[int | None]) -> str:
    return ", ".join("one per output" if value is None else str(value) for value in values)
