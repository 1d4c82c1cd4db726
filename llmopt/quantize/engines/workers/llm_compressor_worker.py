"""Drives llm-compressor: GPTQ with weights only, SmoothQuant with GPTQ for W8A8, and dynamic FP8.

The output head stays as it is, as in llm-compressor's own examples.
"""

from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

IGNORED = ["lm_head"]
SMOOTHING = 0.8


def quantize(job: dict[str, Any]) -> None:
    """Quantize the linear layers of the decoder blocks and save them compressed."""
    device = job["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype="auto", device_map={"": device}
    )
    windows = job["calibration"]
    if windows is None:
        oneshot(model=model, recipe=modifiers(job), pipeline="datafree")
    else:
        tokens = torch.tensor(windows)
        rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
        oneshot(
            model=model,
            recipe=modifiers(job),
            dataset=DataLoader(rows, batch_size=1),
            num_calibration_samples=len(rows),
            max_seq_length=tokens.shape[1],
            pipeline="sequential",
        )
    model.save_pretrained(job["output"], save_compressed=True)


def modifiers(job: dict[str, Any]) -> list[Any]:
    """What is done to the model, in order."""
    if job["method"] == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=IGNORED)]
    if job["method"] == "w8a8":
        return [
            SmoothQuantModifier(smoothing_strength=SMOOTHING),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=IGNORED),
        ]
    weights: dict[str, Any] = {
        "num_bits": job["bits"],
        "type": "int",
        "symmetric": job["symmetric"],
        "strategy": "group" if job["group_size"] else "channel",
        "group_size": job["group_size"],
    }
    group = {"targets": ["Linear"], "weights": weights}
    return [GPTQModifier(config_groups={"group_0": group}, ignore=IGNORED)]
