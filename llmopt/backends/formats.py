"""The format matrix: which checkpoint each runtime loads, on which device, and if not, why not.

Knows checkpoints by their config only; starts nothing. The law: what is refused here would fail
after the runtime was started, and the reason says what to do instead. Sources: for GPUs the table
of `formats.portability_rules`; vLLM's CPU build: docs/getting_started/installation/cpu.md and
docs/features/quantization/README.md of vLLM, and kernels/linear/mixed_precision/cpu.py; OpenVINO:
the guides "Run GGUF models" and "Model preparation" of openvino.genai; LMDeploy: its
docs/en/quantization; TensorRT-LLM: its docs/source/features/quantization.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llmopt.backends.catalogue import BackendKind
from llmopt.environment.cuda import has_nvidia_driver
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.portability_rules import LACKING, READERS, Storage
from llmopt.formats.weights import Checkpoint
from llmopt.models.loader import open_checkpoint

Format = Literal["full", Storage, "random"]

LABELS: Mapping[Format, str] = {
    "full": "full precision (safetensors)",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "pack-quantized": "compressed-tensors pack-quantized",
    "int-quantized": "compressed-tensors int-quantized",
    "float-quantized": "compressed-tensors float-quantized",
    "gguf": "GGUF",
    "random": "random weights",
}
_FORMATS: tuple[Format, ...] = get_args(Literal["full"]) + get_args(Storage)
_COMPRESSED: tuple[Format, ...] = ("pack-quantized", "int-quantized", "float-quantized")
_NEEDS_GPU = ("sglang", "trtllm", "lmdeploy")
_READS_GGUF_ONLY = ("llama-server", "llama-cpp-python")
_ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "tgi": "TGI", "ollama": "Ollama"}
_WRITE_GGUF = "write a GGUF file with `quantize: gguf-q4_k_m` (or gguf-bf16)"
# The environments of quantizers also read what these write.
_TRANSFORMERS_ENVIRONMENTS: Mapping[Format, str] = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    **dict.fromkeys(_COMPRESSED, "llm-compressor"),
}


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What decides who can load a checkpoint.

    quantization: the `quant_method` of its config, "gguf", or None for full precision
    bits, symmetric: of GPTQ, AWQ and pack-quantized weights
    activations: whether inputs are quantized at run time
    max_positions: tokens of the longest sequence that the model was made for
    kv_bytes_per_token: keys and values in 16 bits; None where the config does not say
    """

    format: Format
    architecture: str
    quantization: str | None = None
    bits: int | None = None
    symmetric: bool = True
    activations: bool = False
    max_positions: int | None = None
    kv_bytes_per_token: int | None = None


RANDOM = CheckpointFacts("random", "a config alone")


def read_facts(path: Path) -> CheckpointFacts:
    """The facts of a model directory or a GGUF file. Raises CheckpointError."""
    reader = open_checkpoint(path)
    facts = _facts(reader)
    limit = reader.config.get("max_position_embeddings")
    return replace(
        facts,
        max_positions=limit if isinstance(limit, int) else None,
        kv_bytes_per_token=_kv_bytes_per_token(reader.config),
    )


def _facts(reader: Checkpoint) -> CheckpointFacts:
    config = reader.config
    architecture = str((config.get("architectures") or ["an unnamed architecture"])[0])
    if isinstance(reader, GgufCheckpoint):
        return CheckpointFacts("gguf", architecture, "gguf")
    quant = config.get("quantization_config")
    if not isinstance(quant, Mapping):
        return CheckpointFacts("full", architecture)
    method = str(quant.get("quant_method"))
    if method == "compressed-tensors":
        return _compressed_facts(architecture, quant)
    found: Format = next((name for name in _FORMATS if name == method), "full")
    bits = quant.get("bits", quant.get("w_bit"))
    symmetric = bool(quant.get("sym", True)) if method == "gptq" else not quant.get("zero_point")
    return CheckpointFacts(found, architecture, method, bits, symmetric)


def why_not(kind: BackendKind, facts: CheckpointFacts, device: str | None) -> str | None:
    """Why this runtime cannot serve this checkpoint on "cpu" or "cuda" (None: on a machine that is
    not known), in one clause that begins with its name; None if nothing is known against it.
    """
    if kind.how == "in-process" or kind.name == "openai":
        return None
    if facts.format == "random":
        return f"{kind.name} needs a checkpoint, and random weights are in llmopt's memory only"
    reason = _device_refusal(kind, device) or _format_refusal(kind, facts, device)
    return None if reason is None else f"{kind.name} {reason}"


def loadable(kind: BackendKind, device: str) -> tuple[str, ...]:
    """The labels of the formats that a runtime loads on a device, with usual settings."""
    usual = {"gptq": 4, "awq": 4, "pack-quantized": 4}
    return tuple(
        LABELS[name]
        for name in _FORMATS
        if why_not(
            kind,
            CheckpointFacts(
                name,
                "LlamaForCausalLM",
                name,
                usual.get(name),
                symmetric=name != "awq",
                activations=name in ("int-quantized", "float-quantized"),
            ),
            device,
        )
        is None
    )


def environment_for(kind: BackendKind, facts: CheckpointFacts | None = None) -> str | None:
    """The environment that serves a checkpoint: of vLLM the build for this machine, of
    transformers one with the library that reads the format. None: that of llmopt itself, or a
    runtime that no package registry has.
    """
    if kind.name.startswith("transformers"):
        return None if facts is None else _TRANSFORMERS_ENVIRONMENTS.get(facts.format)
    if kind.name == "vllm":
        return "vllm" if has_nvidia_driver() else "vllm-cpu"
    return next(iter(kind.environments), None)


def _kv_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    layers = config.get("num_hidden_layers")
    if not (isinstance(heads, int) and isinstance(hidden, int) and isinstance(layers, int)):
        return None
    head_dim = config.get("head_dim") or hidden // heads
    return 2 * layers * (config.get("num_key_value_heads") or heads) * int(head_dim) * 2


def _compressed_facts(architecture: str, quant: Mapping[str, Any]) -> CheckpointFacts:
    groups = [group for group in (quant.get("config_groups") or {}).values() if group]
    first = groups[0] if groups else {}
    layout = str(first.get("format") or quant.get("format"))
    weights = first.get("weights") or {}
    found: Format = next((name for name in _COMPRESSED if name == layout), "float-quantized")
    return CheckpointFacts(
        found,
        architecture,
        "compressed-tensors",
        weights.get("num_bits"),
        bool(weights.get("symmetric", True)),
        bool(first.get("input_activations")),
    )


def _device_refusal(kind: BackendKind, device: str | None) -> str | None:
    if device == "cpu" and kind.name in _NEEDS_GPU:
        return "needs an NVIDIA GPU, and the device is cpu"
    if device == "cuda" and kind.name == "openvino":
        return "does not compute on NVIDIA GPUs"
    return None


def _format_refusal(kind: BackendKind, facts: CheckpointFacts, device: str | None) -> str | None:
    label = LABELS[facts.format]
    if kind.name in (*_READS_GGUF_ONLY, "ollama") and facts.architecture in LACKING["llama.cpp"]:
        return f"does not know {facts.architecture}"
    if kind.name in _READS_GGUF_ONLY:
        return None if facts.format == "gguf" else f"loads GGUF files, not {label}: {_WRITE_GGUF}"
    if kind.name == "openvino":
        if facts.format in ("full", "gguf"):
            return None
        return f"loads full precision and GGUF, not {label}"
    if kind.name == "vllm" and device is not None and facts.format in ("gguf", "bitsandbytes"):
        return f"does not load {label} since 0.28 without a plugin, which is not installed here"
    if kind.name == "vllm" and device == "cpu":
        return _vllm_cpu_refusal(facts)
    if kind.name in _ENGINES and facts.format != "full" and facts.format != "random":
        reader = READERS[_ENGINES[kind.name], facts.format]
        return None if reader.kernels else f"does not load {label}: {reader.note}"
    if kind.name == "trtllm" and facts.format not in ("full", "gptq", "awq"):
        return f"loads full precision, GPTQ and AWQ here, not {label}"
    if kind.name == "lmdeploy" and not (
        facts.format == "full" or (facts.format in ("gptq", "awq") and facts.bits == 4)
    ):
        return f"loads full precision and 4-bit GPTQ and AWQ, not {label}"
    return None


def _vllm_cpu_refusal(facts: CheckpointFacts) -> str | None:
    """vLLM's table for x86 CPUs has AWQ, GPTQ and INT8 W8A8; its kernel for 4-bit weights takes
    symmetric ones, in GPTQ and pack-quantized files alike.
    """
    label = LABELS[facts.format]
    if facts.format == "float-quantized":
        return f"does not load {label} on a CPU"
    if facts.format in ("gptq", "pack-quantized") and not (facts.bits == 4 and facts.symmetric):
        kind = "symmetric" if facts.symmetric else "asymmetric"
        return f"loads symmetric 4-bit {label} on a CPU, not {kind} {facts.bits}-bit weights"
    if facts.format == "int-quantized" and not facts.activations:
        return f"loads {label} on a CPU with quantized inputs only (w8a8)"
    return None
