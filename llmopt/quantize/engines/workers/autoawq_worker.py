"""Drives AutoAWQ: scale and clip search, GEMM layout."""

from typing import Any

from awq import AutoAWQForCausalLM


def quantize(job: dict[str, Any]) -> None:
    """Quantize with AutoAWQ's defaults; every window is exactly as long as it wants them."""
    windows = job["calibration"]
    model = AutoAWQForCausalLM.from_pretrained(
        job["model"], trust_remote_code=False, low_cpu_mem_usage=True
    )
    config = {
        "w_bit": job["bits"],
        "q_group_size": job["group_size"],
        "zero_point": True,
        "version": "GEMM",
    }
    model.quantize(
        None,  # a tokenizer, which token ids do without
        quant_config=config,
        calib_data=windows,
        max_calib_samples=len(windows),
        max_calib_seq_len=len(windows[0]),
    )
    model.save_quantized(job["output"])
