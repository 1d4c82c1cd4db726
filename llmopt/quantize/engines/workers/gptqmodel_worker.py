"""Drives GPTQModel: GPTQ (version 2 of the file format where asymmetric) and AWQ."""

from typing import Any

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def quantize(job: dict[str, Any]) -> None:
    """Quantize the linear layers of the decoder blocks with GPTQModel's defaults."""
    import torch

    gptq = job["method"] == "gptq"
    config = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"] or -1,
        sym=job["symmetric"],
        quant_method=job["method"],
        format=("gptq" if job["symmetric"] else "gptq_v2") if gptq else "gemm",
    )
    device = job["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(job["model"], config, device=device)
    # its default for AWQ needs CUDA
    backend = BACKEND.AUTO if gptq or device == "cuda" else BACKEND.AWQ_TORCH
    windows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
    model.quantize(
        windows,
        batch_size=4,
        calibration_sort=None,
        calibration_data_min_length=0,  # no window is dropped
        backend=backend,
    )
    model.save(job["output"])
