"""The shapes at which kernels are measured: those of a model's layers and of batches.

Knows nothing of kernels. The law: `REAL` is what an 8B model has (Llama 3.1 8B) and a mixture of
experts (Qwen3 30B-A3B); `TINY` is only for trying the benchmark itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of a model, and batches.

    tokens:   batches of decoding, small to large: where 4-bit weights are compared with bf16
    prompts:  tokens of prompts that are computed at once
    contexts: tokens that decodes see
    batches:  of decodes in attention and sampling
    """

    hidden: int = 4096
    inner: int = 14336
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 128_256
    num_experts: int = 128
    num_chosen: int = 8
    expert_hidden: int = 2048
    expert_inner: int = 768
    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompts: tuple[int, ...] = (2048, 8192)
    contexts: tuple[int, ...] = (1024, 8192)
    batches: tuple[int, ...] = (1, 8, 64)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(O, K) of the linear layers of a block: qkv, attention output, gate and up, down."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attended = self.num_heads * self.head_dim
        return (
            (heads, self.hidden),
            (self.hidden, attended),
            (2 * self.inner, self.hidden),
            (self.hidden, self.inner),
        )


REAL = Shapes()
QUICK = replace(REAL, tokens=(1, 16, 64, 256), prompts=(2048,), batches=(1, 64))
ON_CPU = replace(  # the shapes of a 1B model
    REAL,
    hidden=2048,
    inner=8192,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    tokens=(1, 4, 16, 64),
    prompts=(256,),
    contexts=(1024,),
    batches=(1, 8),
)
TINY = Shapes(
    hidden=128,
    inner=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=300,
    num_experts=4,
    num_chosen=2,
    expert_hidden=128,
    expert_inner=64,
    tokens=(1, 3),
    prompts=(20,),
    contexts=(40,),
    batches=(2,),
)
SHAPES: Mapping[str, Shapes] = {"real": REAL, "quick": QUICK, "cpu": ON_CPU, "tiny": TINY}
