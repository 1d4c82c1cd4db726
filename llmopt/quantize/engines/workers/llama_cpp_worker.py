"""Drives llama.cpp's quantizer of GGUF files."""

import ctypes
import os
from pathlib import Path
from typing import Any

import llama_cpp


def quantize(job: dict[str, Any]) -> None:
    """Quantize a GGUF file in float16 or float32 with llama.cpp's per-tensor types."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = os.cpu_count() or 1
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['gguf_type'].upper()}")
    importance = importance_matrix(job["importance"])
    if importance is not None:
        parameters.imatrix = importance
    status = llama_cpp.llama_model_quantize(
        job["model"].encode(), job["output"].encode(), ctypes.byref(parameters)
    )
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}")


def importance_matrix(description: dict[str, Any] | None) -> Any:
    """An array of one entry per tensor, ended by an empty one, as llama.cpp wants it.

    The file holds float32 numbers in the machine's byte order, one tensor after the other.
    """
    if description is None:
        return None
    values = bytearray(Path(description["file"]).read_bytes())
    entries = (llama_cpp.llama_model_imatrix_data * (len(description["tensors"]) + 1))()
    start = 0
    for entry, (name, count) in zip(entries, description["tensors"].items(), strict=False):
        numbers = (ctypes.c_float * count).from_buffer(values, start)
        entry.name = name.encode()
        entry.data = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float))
        entry.size = count
        start += ctypes.sizeof(numbers)
    entries.keep_alive = values
    return entries
