"""How much memory a run needs at its peak, by arithmetic.

From a model's config, the jobs and the number of calibration tokens; no weights are looked at.
Law: an upper bound, of what is resident at once; measured peaks lie a little below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.models.config import ModelConfig
from llmopt.quantize.block_stream import CHUNK_TOKENS, KEEP_BYTES
from llmopt.quantize.layout import Place, block_modules, layer_widths
from llmopt.quantize.options import Job

_FLOAT = 4
# What GPTQ holds of a layer at once, in copies of its Hessian and of its weight: see gptq.py.
HESSIAN_COPIES = 4
WEIGHT_COPIES = 5
# What AWQ holds: the weight scaled, rounded and dequantized.
SCALED_COPIES = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes at the peak.

    blocks: the weights of the decoder block that are resident
    layer: what the layer that is being quantized needs besides: Hessian, factors, copies
    activations: of one chunk of tokens
    hidden_states: of all calibration tokens, always in host memory
    """

    blocks: int
    layer: int
    activations: int
    hidden_states: int

    @property
    def device_bytes(self) -> int:
        """On the compute device."""
        return self.blocks + self.layer + self.activations


def footprint(config: ModelConfig, jobs: Sequence[Job], num_tokens: int) -> Footprint:
    """Return the peak of a run over `num_tokens` calibration tokens."""
    weights = {
        place: sum(modules.part_rows) * width
        for (place, width), modules in zip(
            layer_widths(config).items(), block_modules(config, 0), strict=True
        )
    }
    reads_data = any(job.scheme.needs_calibration for job in jobs)
    scaling = sum(job.scheme.uses_awq or job.scheme.method == "w8a8" for job in jobs)
    on_source = sum(job.scheme.needs_calibration and not job.has_own_prefix for job in jobs)
    copies = 1 + (scaling if on_source else min(scaling, 1)) + (len(jobs) > 1)
    layer = max(_layer_values(config, jobs, weights, place) for place in Place)
    streams = sum(job.has_own_prefix for job in jobs) + (on_source > 0)
    return Footprint(
        blocks=_FLOAT * copies * sum(weights.values()),
        layer=_FLOAT * layer,
        activations=_FLOAT * _activation_values(config, num_tokens) if reads_data else 0,
        hidden_states=_hidden_bytes(config, num_tokens, streams) if reads_data else 0,
    )


def _layer_values(
    config: ModelConfig, jobs: Sequence[Job], weights: dict[Place, int], place: Place
) -> int:
    """Numbers that a layer needs while it is quantized."""
    hessian, weight = layer_widths(config)[place] ** 2, weights[place]
    if any(job.scheme.uses_gptq for job in jobs):
        crosses = any(job.scheme.method == "qronos" for job in jobs)
        factoring = (HESSIAN_COPIES + crosses) * hessian + weight
        return max(factoring, (2 + crosses) * hessian + WEIGHT_COPIES * weight)
    if any(job.scheme.uses_awq for job in jobs):
        return 2 * hessian + SCALED_COPIES * weight
    return 2 * weight


def _activation_values(config: ModelConfig, num_tokens: int) -> int:
    """Numbers of one chunk of tokens: an MLP's inputs, gate and up, and their product."""
    heads = 3 * config.num_heads * config.head_dim + 2 * config.num_kv_heads * config.head_dim
    mlp = config.hidden_size + 3 * config.intermediate_size
    return min(CHUNK_TOKENS, num_tokens) * max(config.hidden_size + heads, mlp)


def _hidden_bytes(config: ModelConfig, num_tokens: int, streams: int) -> int:
    widths = layer_widths(config)
    kept = [_FLOAT * num_tokens * widths[place] for place in (Place.OUTPUT, Place.DOWN)]
    waiting = max((size for size in kept if size <= KEEP_BYTES), default=0)
    return _FLOAT * num_tokens * config.hidden_size * streams + waiting
