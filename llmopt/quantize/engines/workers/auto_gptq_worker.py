"""Drives AutoGPTQ, whose transformers is older than the configs that are written today."""

import json
from pathlib import Path
from typing import Any

from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig


def quantize(job: dict[str, Any]) -> None:
    """Quantize with AutoGPTQ's defaults, but for the settings of the job."""
    config = BaseQuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"] or -1,
        sym=job["symmetric"],
        desc_act=False,
    )
    source = with_older_config(Path(job["model"]), Path(job["output"]).with_name("older"))
    model = AutoGPTQForCausalLM.from_pretrained(str(source), config)
    windows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
    model.quantize(windows, batch_size=4)
    model.save_quantized(job["output"], use_safetensors=True)


def with_older_config(model: Path, view: Path) -> Path:
    """Make a directory of links to the model, whose config.json has the rotary base and the dtype
    where transformers 4 looks for them; it would take defaults in silence.
    """
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    view.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (view / file.name).symlink_to(file.resolve())
    (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return view
