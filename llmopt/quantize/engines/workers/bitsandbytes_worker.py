"""Drives bitsandbytes through transformers: NF4, FP4 and LLM.int8.

Law: the model is saved before it computes anything. On CPUs with AVX512-BF16 the first forward pass
repacks 4-bit weights, and their scales would be saved in another order.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

BLOCK_SIZE = 64


def quantize(job: dict[str, Any]) -> None:
    """Quantize while loading, save, and look at the scales that were saved."""
    if job["method"] == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=job["method"],
            bnb_4bit_use_double_quant=job["double_quant"],
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    device = job["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], quantization_config=config, device_map={"": device}, dtype="auto"
    )
    model.save_pretrained(job["output"])
    for shard in sorted(Path(job["output"]).glob("*.safetensors")):
        check_scales(shard, job["double_quant"])


def check_scales(shard: Path, double_quant: bool) -> None:
    """Raise unless every block has one scale, a flat list in the type that was asked for."""
    with safe_open(shard, framework="pt") as file:
        names = [name for name in file.keys() if name.endswith(".weight.absmax")]  # noqa: SIM118 - no dict
        for name in names:
            packed = file.get_slice(name.removesuffix(".absmax")).get_shape()
            scales = file.get_slice(name)
            wanted = [math.ceil(2 * math.prod(packed) / BLOCK_SIZE)]
            dtype = "U8" if double_quant else "F32"
            if scales.get_shape() != wanted or scales.get_dtype() != dtype:
                raise ValueError(
                    f"{name} was saved as {scales.get_dtype()} {scales.get_shape()} and should be "
                    f"{dtype} {wanted}"
                )
