"""What other engines take: one row per engine and way of storing, with where that is written.

Data only. Read in the sources of vLLM 0.33.0 (vllm-gguf-plugin 0.0.5, vllm-bnb-plugin 0.0.3),
SGLang 0.5.23, transformers 5.23.0, gptqmodel 7.6.0, text-generation-inference at db931fcf (January
2026), the gguf package 0.19.0 and Ollama's docs/import.mdx. Law: every row names its source, and a
limit is written as the engine's own code checks it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Storage = Literal[
    "gptq", "awq", "pack-quantized", "int-quantized", "float-quantized", "bitsandbytes", "gguf"
]
Activations = Literal["int8", "fp8"]
# run: tests of this project load such files with the engine; source: read in its code, not run;
# unverified: neither
Evidence = Literal["run", "source", "unverified"]

ENGINES = ("vLLM", "SGLang", "transformers", "gptqmodel", "llama.cpp", "Ollama", "TGI")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A matrix multiplication and the weights that it takes.

    hardware: where it runs
    fast: one of the engine's tuned kernels, not a fallback that unpacks weights first
    zeros: weights with zero points (True), symmetric ones (False)
    group_sizes: None in it stands for one group per output; None instead of it for any size
    tiles: multiples of (O, K); a shape must fit one of them
    checked: whether its limits were read
    """

    name: str
    hardware: str
    fast: bool
    bits: tuple[int, ...]
    zeros: tuple[bool, ...] = (False, True)
    group_sizes: tuple[int | None, ...] | None = None
    tiles: tuple[tuple[int, int], ...] = ((1, 1),)
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Reader:
    """An engine's way with one storage. Without kernels it does not read it; `note` says why.

    splits: it shards such files over GPUs; fuses: q, k, v and gate, up become one matrix
    group_act_order: the columns of a group may lie anywhere
    zero_versions: of GPTQ files with zero points
    activations: inputs quantized at run time that the weights may ask for (None: not quantized)
    """

    engine: str
    version: str
    storage: Storage
    kernels: tuple[Kernel, ...]
    source: str
    note: str = ""
    evidence: Evidence = "source"
    splits: bool = False
    fuses: bool = False
    group_act_order: bool = False
    zero_versions: tuple[int, ...] = (1, 2)
    activations: tuple[Activations | None, ...] = (None,)


_NO_ZEROS = (False,)
_ZEROS = (True,)
_CHANNEL = (None,)
_MARLIN_GROUPS = (None, 32, 64, 128)
_MARLIN_TILES = ((64, 128), (128, 64))
_TURING, _AMPERE = "NVIDIA from Turing", "NVIDIA from Ampere"
_WIDTHS = (2, 3, 4, 5, 6, 7, 8)

_vllm = partial(Reader, "vLLM", "0.33.0", splits=True, fuses=True)
_MACHETE = Kernel(
    "Machete", "Hopper", True, (4, 8), group_sizes=(None, 64, 128), tiles=((128, 64),)
)
_VLLM_MARLIN = Kernel("Marlin", _TURING, True, (4, 8), _NO_ZEROS, _MARLIN_GROUPS)
_VLLM_MARLIN_ZEROS = Kernel("Marlin", _TURING, True, (4,), _ZEROS, _MARLIN_GROUPS)
_AWQ = Kernel("AWQ", _TURING, False, (4,), tiles=((8, 1),))
_INT8 = partial(Kernel, fast=True, bits=(8,), zeros=_NO_ZEROS, group_sizes=_CHANNEL)
_VLLM = (
    _vllm(
        "gptq",
        (
            Kernel("Machete", "Hopper", True, (4, 8), _NO_ZEROS, (None, 64, 128), ((128, 64),)),
            _VLLM_MARLIN,
        ),
        "vllm/model_executor/layers/quantization/auto_gptq.py",
    ),
    _vllm(
        "awq",
        (_MACHETE, _VLLM_MARLIN_ZEROS, _AWQ),
        "vllm/model_executor/layers/quantization/auto_awq.py",
    ),
    _vllm(
        "pack-quantized",
        (
            _MACHETE,
            _VLLM_MARLIN,
            _VLLM_MARLIN_ZEROS,
            Kernel(
                "Triton W4A16",
                "NVIDIA, AMD",
                False,
                (4,),
                group_sizes=(None, 32, 64, 128, 256),
                tiles=((8, 1),),
            ),
            Kernel("Humming", _TURING, False, _WIDTHS, checked=False),
        ),
        "vllm/model_executor/layers/quantization/compressed_tensors/schemes/"
        "compressed_tensors_wNa16.py, vllm/model_executor/kernels/linear/mixed_precision",
    ),
    _vllm(
        "int-quantized",
        (_INT8("CUTLASS INT8", _TURING),),
        "vllm/model_executor/layers/quantization/compressed_tensors/compressed_tensors.py",
        activations=("int8",),
    ),
    _vllm(
        "float-quantized",
        (_INT8("CUTLASS FP8", "NVIDIA from Ada"), _INT8("Marlin FP8, weights only", _TURING)),
        "vllm/model_executor/layers/quantization/compressed_tensors/compressed_tensors.py",
        activations=(None, "fp8"),
    ),
    _vllm(
        "bitsandbytes",
        (Kernel("bitsandbytes", "NVIDIA", False, (4, 8)),),
        "vllm_bnb_plugin/bitsandbytes_loader.py",
        "needs `pip install vllm-bnb-plugin` since 0.28",
        splits=False,
    ),
    _vllm(
        "gguf",
        (Kernel("GGUF", "NVIDIA, AMD", False, (0,)),),
        "vllm_gguf_plugin/quantization; its README",
        "needs `pip install vllm-gguf-plugin` and --tokenizer with the original model; "
        "how it splits files over GPUs was not checked",
        evidence="unverified",
        splits=False,
    ),
)

_sglang = partial(Reader, "SGLang", "0.5.23", splits=True, fuses=True, group_act_order=True)
_SGLANG_MARLIN = Kernel("Marlin", _AMPERE, True, (4, 8), _NO_ZEROS, _MARLIN_GROUPS, _MARLIN_TILES)
_SGLANG = (
    _sglang("gptq", (_SGLANG_MARLIN,), "sglang/srt/layers/quantization/gptq/gptq.py"),
    _sglang(
        "awq",
        (Kernel("Marlin", _AMPERE, True, (4,), _ZEROS, _MARLIN_GROUPS, ((64, 128),)), _AWQ),
        "sglang/srt/layers/quantization/awq/awq.py",
    ),
    _sglang(
        "pack-quantized",
        (
            _SGLANG_MARLIN,
            Kernel("Marlin", _AMPERE, True, (4,), _ZEROS, _MARLIN_GROUPS, _MARLIN_TILES),
        ),
        "sglang/srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py",
    ),
    _sglang(
        "int-quantized",
        (_INT8("INT8", _TURING),),
        "sglang/srt/layers/quantization/compressed_tensors/compressed_tensors.py",
        activations=("int8",),
    ),
    _sglang(
        "float-quantized",
        (_INT8("FP8", "NVIDIA from Ada"), _INT8("FP8, weights only", _AMPERE)),
        "sglang/srt/layers/quantization/compressed_tensors/compressed_tensors.py",
        activations=(None, "fp8"),
    ),
    _sglang(
        "bitsandbytes",
        (Kernel("bitsandbytes", "NVIDIA", False, (4, 8)),),
        "sglang/srt/model_loader/loader.py, BitsAndBytesModelLoader",
        "needs --load-format bitsandbytes",
        splits=False,
    ),
    _sglang(
        "gguf",
        (Kernel("GGUF", "NVIDIA", False, (0,)),),
        "sglang/srt/layers/quantization/gguf.py",
        "how it splits files over GPUs was not checked",
        evidence="unverified",
        splits=False,
    ),
)

_hf = partial(Reader, "transformers", "5.23.0", group_act_order=True)
_gptqmodel = partial(Reader, "gptqmodel", "7.6.0", group_act_order=True)
_GPTQMODEL_GPTQ = (
    Kernel("Marlin", "NVIDIA", True, (4, 8), _NO_ZEROS, _MARLIN_GROUPS),
    Kernel("ExLlamaV2", "NVIDIA", True, (4,), group_sizes=_MARLIN_GROUPS, tiles=((32, 32),)),
    Kernel("Triton", "GPU", False, (2, 4, 8), tiles=((32, 32),)),
    Kernel("Torch", "any device", False, _WIDTHS),
)
_GPTQMODEL_AWQ = (
    Kernel("Marlin", "NVIDIA", True, (4,), group_sizes=_MARLIN_GROUPS),
    Kernel("ExLlamaV2", "NVIDIA", True, (4,), group_sizes=_MARLIN_GROUPS, tiles=((32, 32),)),
    Kernel("Torch", "any device", False, (4,), tiles=((8, 1),)),
)
_UNPACKED = Kernel("weights unpacked when loaded", "any device", False, (*_WIDTHS, 0))
_COMPRESSED_RUN: tuple[tuple[Storage, Evidence], ...] = (
    ("pack-quantized", "run"),
    ("int-quantized", "run"),
    ("float-quantized", "source"),
)
_TRANSFORMERS = (
    _hf(
        "gptq",
        _GPTQMODEL_GPTQ,
        "transformers/quantizers/quantizer_gptq.py",
        "needs optimum and gptqmodel",
        evidence="run",
    ),
    _hf(
        "awq",
        _GPTQMODEL_AWQ,
        "transformers/quantizers/quantizer_awq.py",
        "needs gptqmodel",
        evidence="run",
    ),
    *(
        _hf(
            storage,
            (_UNPACKED,),
            "transformers/quantizers/quantizer_compressed_tensors.py",
            "needs compressed-tensors",
            evidence=evidence,
            activations=(None, "int8", "fp8"),
        )
        for storage, evidence in _COMPRESSED_RUN
    ),
    _hf(
        "bitsandbytes",
        (Kernel("bitsandbytes", "NVIDIA, AMD, Intel, CPU", False, (4, 8)),),
        "transformers/quantizers/quantizer_bnb_4bit.py, quantizer_bnb_8bit.py",
        "needs bitsandbytes and accelerate",
    ),
    _hf(
        "gguf",
        (_UNPACKED,),
        "transformers/modeling_gguf_pytorch_utils.py",
        "needs gguf, and gguf_file=... when loading",
    ),
)
_GPTQMODEL = (
    _gptqmodel("gptq", _GPTQMODEL_GPTQ, "gptqmodel/nn_modules/qlinear", evidence="run"),
    _gptqmodel("awq", _GPTQMODEL_AWQ, "gptqmodel/nn_modules/qlinear", evidence="run"),
    *(
        _gptqmodel(
            storage,
            (),
            "gptqmodel/quantization/config.py, METHOD and FORMAT",
            "it does not read compressed-tensors: write GPTQ or AWQ",
        )
        for storage in ("pack-quantized", "int-quantized", "float-quantized")
    ),
    *(
        _gptqmodel(
            storage,
            (),
            "gptqmodel/models/loader.py",
            "whether it reads files that it did not write itself was not checked",
            evidence="unverified",
        )
        for storage in ("bitsandbytes", "gguf")
    ),
)

_tgi = partial(Reader, "TGI", "3.3, commit db931fcf", splits=True, fuses=True)
_TGI_LAYERS = "server/text_generation_server/layers"
_TGI = (
    _tgi(
        "gptq",
        (
            Kernel("Marlin", _AMPERE, True, (4, 8), _NO_ZEROS, _MARLIN_GROUPS, _MARLIN_TILES),
            Kernel("ExLlama or Triton", "NVIDIA", False, (2, 4, 8)),
        ),
        f"{_TGI_LAYERS}/marlin/gptq.py, {_TGI_LAYERS}/gptq/__init__.py",
        "in maintenance only",
        group_act_order=True,
        zero_versions=(1,),
    ),
    _tgi(
        "awq",
        (
            Kernel("Marlin", _AMPERE, True, (4,), _ZEROS, _MARLIN_GROUPS, _MARLIN_TILES),
            Kernel("AWQ", "NVIDIA", False, (4,), tiles=((8, 1),)),
        ),
        f"{_TGI_LAYERS}/marlin/gptq.py, {_TGI_LAYERS}/gptq/__init__.py",
        "in maintenance only",
    ),
    _tgi(
        "pack-quantized",
        (Kernel("Marlin", _AMPERE, True, (4, 8), _NO_ZEROS, _MARLIN_GROUPS, _MARLIN_TILES),),
        f"{_TGI_LAYERS}/compressed_tensors/wna16_int.py",
        "in maintenance only",
        group_act_order=True,
    ),
    _tgi(
        "int-quantized",
        (_INT8("INT8", "NVIDIA"),),
        f"{_TGI_LAYERS}/compressed_tensors/w8a8_int.py",
        "in maintenance only; quantizes inputs too, whatever the file says",
        activations=(None, "int8"),
    ),
    _tgi(
        "float-quantized",
        (_INT8("FP8", "NVIDIA"),),
        f"{_TGI_LAYERS}/compressed_tensors/w8an_fp.py",
        "in maintenance only",
        activations=(None, "fp8"),
    ),
    _tgi(
        "bitsandbytes",
        (),
        f"{_TGI_LAYERS}/bnb.py",
        "it quantizes with bitsandbytes while loading and reads no quantized files",
    ),
    _tgi("gguf", (), "server/text_generation_server/utils/quantization.py", "it reads no GGUF"),
)
_GGML = Kernel("ggml", "CPU, CUDA, Metal, Vulkan", True, (0,))
_llama_cpp = partial(Reader, "llama.cpp", "(llama-cpp-python 0.3.36)")
_ollama = partial(Reader, "Ollama", "(docs of 2026)")
_NOT_GGUF: tuple[Storage, ...] = (
    "gptq",
    "awq",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "bitsandbytes",
)
_LLAMA_CPP = (
    _llama_cpp("gguf", (_GGML,), "gguf/constants.py, MODEL_ARCH_NAMES"),
    *(
        _llama_cpp(storage, (), "llama.cpp's README", "it reads GGUF only: write a GGUF file too")
        for storage in _NOT_GGUF
    ),
    _ollama(
        "gguf",
        (_GGML,),
        "docs/import.mdx",
        "needs a Modelfile with FROM ./the-file.gguf",
        evidence="unverified",
    ),
    *(
        _ollama(
            storage,
            (),
            "docs/import.mdx",
            "it imports GGUF, and safetensors that are not quantized: write a GGUF file too",
        )
        for storage in _NOT_GGUF
    ),
)

READERS = {
    (reader.engine, reader.storage): reader
    for reader in (*_VLLM, *_SGLANG, *_TRANSFORMERS, *_GPTQMODEL, *_LLAMA_CPP, *_TGI)
}

# Architectures that an engine was seen to know (vllm/model_executor/models/registry.py,
# sglang/srt/models, transformers/integrations/ggml.py, gguf.MODEL_ARCH_NAMES, TGI's
# models/custom_modeling) and those that it was seen to lack.
_COMMON = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM")
_USUAL = (*_COMMON, "Qwen3ForCausalLM")
ARCHITECTURES = {
    "vLLM": (*_USUAL, "OPTForCausalLM"),
    "SGLang": (*_USUAL, "OPTForCausalLM"),
    "transformers": (*_USUAL, "OPTForCausalLM"),
    "gptqmodel": (*_USUAL, "OPTForCausalLM"),
    "llama.cpp": _USUAL,
    "Ollama": _USUAL,
    "TGI": (*_COMMON, "OPTForCausalLM"),
}
LACKING = {"llama.cpp": ("OPTForCausalLM",), "Ollama": ("OPTForCausalLM",)}
