"""Drives openvino-genai: its continuous batching pipeline, stepped here, one request a handle.

A checkpoint that is no OpenVINO model is converted into the directory that `converted` names, if it
is not there yet, by `optimum-cli export openvino` with `export_args`; GGUF files are read as they
are. Settings: properties, of the device's plugin, over those that follow from dtype and threads;
cache_gigabytes (1); max_num_batched_tokens (256, the library's own).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

Message = dict[str, Any]
Send = Callable[[Iterable[Message]], None]

MODEL_FILE = "openvino_model.xml"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
RUNNING = openvino_genai.GenerationStatus.RUNNING
REASONS = {
    openvino_genai.GenerationFinishReason.STOP: "stop",
    openvino_genai.GenerationFinishReason.LENGTH: "length",
}


def load(settings: Message) -> "Pipeline":
    """Read the model, converted first where it must be, and compile it."""
    model = openvino_model(settings)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = settings.get("cache_gigabytes", 1)
    scheduler.max_num_seqs = settings["max_num_seqs"]
    scheduler.enable_prefix_caching = settings["prefix_caching"]
    scheduler.max_num_batched_tokens = settings.get("max_num_batched_tokens", 256)
    properties = {
        "INFERENCE_NUM_THREADS": settings["num_threads"],
        "INFERENCE_PRECISION_HINT": PRECISIONS[settings["dtype"]],
        "KV_CACHE_PRECISION": PRECISIONS[settings["dtype"]],
        **settings.get("properties", {}),
    }
    device = DEVICES[settings["device"]]
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, device, properties)
    chosen = {"max_num_batched_tokens": scheduler.max_num_batched_tokens, "properties": properties}
    return Pipeline(pipeline, chosen)


def openvino_model(settings: Message) -> str:
    """The path of a model that the library reads."""
    checkpoint = Path(settings["checkpoint"])
    if checkpoint.suffix == ".gguf" or (checkpoint / MODEL_FILE).exists():
        return str(checkpoint)
    target = Path(settings["converted"])
    if not (target / MODEL_FILE).exists():
        export(checkpoint, target, settings["export_args"])
    return str(target)


def export(checkpoint: Path, target: Path, arguments: list[str]) -> None:
    """Convert as the library's documentation says; the target is there only when it is whole."""
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    command += ["-m", str(checkpoint), "--task", "text-generation-with-past", *arguments]
    try:
        subprocess.run([*command, str(partial)], check=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Pipeline:
    """The pipeline, and the requests that are in it."""

    version = openvino_genai.__version__

    def __init__(self, pipeline: Any, chosen: Message) -> None:
        self._pipeline = pipeline
        self._handles: dict[int, Any] = {}  # of requests in the pipeline
        self._num_steps = 0
        self.settings = {**chosen, "openvino": openvino.__version__}

    def stats(self) -> dict[str, float]:
        """Steps of the pipeline, and the largest part of its cache that was in use, in percent."""
        return {
            "num_steps": self._num_steps,
            "peak_cache_usage_percent": self._pipeline.get_metrics().max_cache_usage,
        }

    def serve(self, inbox: Any, send: Send) -> None:
        """Add what came, step, and pass on what the step gave."""
        while True:
            for request in inbox.take(sys.maxsize, wait=not self._handles):
                self._add(request)
            for number in inbox.aborted() & self._handles.keys():
                self._handles.pop(number).cancel()
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                self._num_steps += 1
            send(self._read())

    def _add(self, request: Message) -> None:
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.max_new_tokens = request["max_tokens"]
        config.ignore_eos = request["ignore_eos"]
        if not request["ignore_eos"]:
            config.stop_token_ids = self._pipeline.get_config().stop_token_ids
        prompt = openvino.Tensor(np.array([request["prompt_token_ids"]], dtype=np.int64))
        self._handles[request["id"]] = self._pipeline.add_request(request["id"], prompt, config)

    def _read(self) -> list[Message]:
        messages = []
        for number, handle in list(self._handles.items()):
            while handle.can_read():
                (output,) = handle.read().values()  # one sequence: it is greedy
                message: Message = {"id": number, "token_ids": output.generated_ids}
                if reason := REASONS.get(output.finish_reason):
                    message["finish_reason"] = reason
                    message["num_prompt_tokens"] = handle.get_perf_metrics().get_num_input_tokens()
                    del self._handles[number]
                messages.append(message)
            status = handle.get_status()
            if number in self._handles and status != RUNNING:
                del self._handles[number]
                messages.append({"id": number, "error": f"the library says {status.name}"})
        return messages
