"""The engine with a large model of random weights: its decode steps, and prompts computed at once.

Knows nothing of kernels. The law: a step is timed from the outside, as a caller of the engine sees
it, after everything has been compiled and recorded; what it needs is counted by the cost model.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.repeated_weights import Drawn, make_large_model
from bench.timing import first_line
from llmopt.bench.cost import cost_model
from llmopt.engine.config import EngineConfig
from llmopt.engine.engine import Engine
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder
from llmopt.results.kernels import EngineRow
from llmopt.results.schema import CostModel

BF16 = "bf16"
_BLOCK_SIZE = 16
_WARM_STEPS = 8
_SLACK = 64  # tokens that a request could still get when its steps have been measured


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What is measured: decodes of `batches` requests with prompts of `prompt_len` tokens, for
    `num_steps` steps, and prompts of each of `prompts` tokens, `num_prompts` times.
    """

    batches: tuple[int, ...] = (1, 8, 64, 256)
    prompt_len: int = 128
    num_steps: int = 48
    prompts: tuple[int, ...] = (2048, 8192)
    num_prompts: int = 3

    @property
    def decode_len(self) -> int:
        """The most tokens that a request of a decode has."""
        return self.prompt_len + _WARM_STEPS + self.num_steps + _SLACK

    def engine_config(self) -> EngineConfig:
        """Room for the largest batch and the longest prompt, and no more."""
        longest = max(self.decode_len, *(length + 1 for length in self.prompts))
        blocks = max(self.batches) * -(-self.decode_len // _BLOCK_SIZE)
        return EngineConfig(
            block_size=_BLOCK_SIZE,
            num_blocks=max(blocks, -(-longest // _BLOCK_SIZE)) + 1,
            max_num_batched_tokens=max(self.prompts),
            max_num_seqs=max(self.batches),
            max_model_len=longest,
            prefix_caching=False,
        )


LARGE = EngineLoad()
TINY = EngineLoad(batches=(1, 3), prompt_len=5, num_steps=4, prompts=(20,), num_prompts=2)


def check_engine(
    config: Path,
    scheme: str | None,
    device: torch.device,
    load: EngineLoad,
    drawn: Drawn,
    is_late: Callable[[], bool],
) -> Iterator[EngineRow]:
    """The rows of a scheme; none after `is_late`. What fails is a row that says why."""
    try:
        yield from _rows(config, scheme, device, load, drawn, is_late)
    except Exception as error:  # a scheme that cannot run is a row that says why
        yield EngineRow(
            scheme or BF16, "decode", 0, 0, 0, None, None, None, None, (), first_line(error)
        )
    finally:  # the next scheme needs the memory
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rows(
    config: Path,
    scheme: str | None,
    device: torch.device,
    load: EngineLoad,
    drawn: Drawn,
    is_late: Callable[[], bool],
) -> Iterator[EngineRow]:
    name = scheme or BF16
    model = make_large_model(config, scheme, device, drawn)
    settings = load.engine_config()
    engine = Engine(model, settings)
    cost = cost_model(
        model.config, weight_bytes=model.weight_bytes, dtype=model.dtype, engine=settings
    )
    for batch in load.batches:
        if is_late():
            return
        yield _decode(engine, name, batch, load, cost, model)
    for length in load.prompts:
        if is_late():
            return
        yield _prefill(engine, name, length, load, cost, model)


def _decode(
    engine: Engine, name: str, batch: int, load: EngineLoad, cost: CostModel, model: Decoder
) -> EngineRow:
    max_tokens = load.decode_len - load.prompt_len
    names = [_add(engine, index, load.prompt_len, max_tokens) for index in range(batch)]
    while len(engine.step()) < batch:  # until every request decodes
        assert engine.has_unfinished(), "requests outlive their prompts"
    for _ in range(_WARM_STEPS):
        engine.step()
    busy = _host_s(engine, model.device)
    seconds = [_timed_step(engine) for _ in range(load.num_steps)]
    busy = _host_s(engine, model.device) - busy
    for request in names:
        engine.abort(request)
    _drain(engine)
    context = load.prompt_len + _WARM_STEPS + load.num_steps // 2
    per_token = cost.flops_per_token_linear + cost.flops_lm_head
    return EngineRow(
        scheme=name,
        stage="decode",
        batch=batch,
        context=context,
        num_steps=load.num_steps,
        step_s=statistics.median(seconds),
        host_s=busy / load.num_steps,
        num_bytes=cost.weight_bytes + batch * context * cost.kv_bytes_per_token,
        num_flops=batch * (per_token + context * cost.flops_attention_per_token_per_context),
        kernels=model.kernels,
    )


def _prefill(
    engine: Engine, name: str, length: int, load: EngineLoad, cost: CostModel, model: Decoder
) -> EngineRow:
    """Prompts one by one, from the request to its first token; the first one only warms up."""
    seconds = []
    busy = 0.0
    for number in range(load.num_prompts + 1):
        before = _host_s(engine, model.device)
        start = time.perf_counter()
        _add(engine, number, length, 1)
        _drain(engine)
        seconds.append(time.perf_counter() - start)
        busy = _host_s(engine, model.device) - before
    attended = length * (length + 1) // 2
    return EngineRow(
        scheme=name,
        stage="prefill",
        batch=1,
        context=length,
        num_steps=load.num_prompts,
        step_s=statistics.median(seconds[1:]),
        host_s=busy,
        num_bytes=cost.weight_bytes + length * cost.kv_bytes_per_token,
        num_flops=length * cost.flops_per_token_linear
        + cost.flops_lm_head
        + attended * cost.flops_attention_per_token_per_context,
        kernels=model.kernels,
    )


def _add(engine: Engine, number: int, prompt_len: int, max_tokens: int) -> str:
    chance = random.Random(number)
    prompt = [chance.randrange(engine.model.config.vocab_size) for _ in range(prompt_len)]
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    (request,) = engine.add_request(f"{prompt_len}-{number}", prompt, params)
    return request


def _timed_step(engine: Engine) -> float:
    start = time.perf_counter()
    engine.step()
    return time.perf_counter() - start


def _drain(engine: Engine) -> None:
    while engine.has_unfinished():
        engine.step()


def _host_s(engine: Engine, device: torch.device) -> float:
    """Seconds in which the host prepared, launched and recorded steps. It waits for a GPU in the
    stage of sampling; on a CPU it computes there, and in the forward pass.
    """
    times = engine.times
    waiting = times.sample_s if device.type == "cuda" else times.sample_s + times.forward_s
    return times.total_s - waiting
