"""Launch configurations of the matrix products: classes of shapes, defaults and candidates.

Knows nothing of tensors or GPUs but the number of multiprocessors. The law: a configuration is a
function of the shape class only, so what was measured for a class holds for all of it.

Parameters: tiles BLOCK_O x BLOCK_T x BLOCK_K, SPLIT_K programs that share a tile, GROUP_T (see
`grouped_order`), num_warps, num_stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmopt_kernels.tuning import Config

NUM_SMS = 132  # of an H100 or H200; sets defaults only
SKINNY_TOKENS = 16  # up to which tokens fill one narrow tile
MOST_PARTS = 16
_DENSE_BITS = 16


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """Bits of a weight; tokens, rows and columns, rounded up to powers of two."""

    bits: int
    num_tokens: int
    num_rows: int
    num_columns: int

    def __str__(self) -> str:
        return f"t{self.num_tokens}-{self.of_weight}"

    @property
    def of_weight(self) -> str:
        """The class of the weight alone: of what does not depend on the batch."""
        return f"o{self.num_rows}-k{self.num_columns}-w{self.bits}"

    @classmethod
    def of(cls, bits: int, num_tokens: int, num_rows: int, num_columns: int) -> "ShapeClass":
        """The class of a product; up to 16 tokens are one class, and beyond 8192."""
        tokens = min(max(_power_of_two(num_tokens), SKINNY_TOKENS), 8192)
        return cls(bits, tokens, _power_of_two(num_rows), _power_of_two(num_columns))

    @classmethod
    def parse(cls, name: str) -> "ShapeClass":
        """Invert `str`."""
        tokens, rows, columns, bits = (int(part[1:]) for part in name.split("-"))
        return cls(bits, tokens, rows, columns)


def default_config(shape: ShapeClass, block_k: int) -> Config:
    """What is used where nothing was measured: tiles as wide as the tokens, and for few tokens K
    split until every multiprocessor has two programs.
    """
    block_t = min(shape.num_tokens, 128)
    block_o = 64 if block_t <= 64 else 128
    num_tiles = -(-shape.num_rows // block_o) * -(-shape.num_tokens // block_t)
    return {
        "BLOCK_O": block_o,
        "BLOCK_T": block_t,
        "BLOCK_K": block_k,
        "SPLIT_K": _parts(num_tiles, shape.num_columns // block_k) if block_t <= 64 else 1,
        "GROUP_T": 8,
        "num_warps": 4 if block_t <= 64 else 8,
        "num_stages": 4 if block_t <= 64 else 3,
    }


def candidates(shape: ShapeClass, block_ks: tuple[int, ...]) -> list[Mapping[str, int]]:
    """Configurations worth measuring; the default is among them.

    No tile has more rows than packed weights are filled up to, 128.
    """
    tokens = shape.num_tokens
    tiles = [(64, min(tokens, 64)), (128, min(tokens, 64)), (64, min(tokens, 128))]
    tiles += [(128, 128), (128, 256)] if tokens > 64 else []
    tiles += [(256, 128)] if tokens > 64 and shape.bits >= _DENSE_BITS else []
    found = [default_config(shape, block_k) for block_k in block_ks]
    for block_o, block_t in dict.fromkeys(tiles):
        for block_k in block_ks:
            base = {**default_config(shape, block_k), "BLOCK_O": block_o, "BLOCK_T": block_t}
            num_tiles = -(-shape.num_rows // block_o) * -(-tokens // block_t)
            most = max(1, min(MOST_PARTS, shape.num_columns // block_k)) if tokens <= 64 else 1
            parts = {1, 2, 4, 8, MOST_PARTS, _parts(num_tiles, shape.num_columns // block_k)}
            for split in sorted(part for part in parts if part <= most):
                for warps in (4, 8):
                    for stages in (2, 3, 4, 5):
                        found.append(
                            {**base, "SPLIT_K": split, "num_warps": warps, "num_stages": stages}
                        )
    return list({tuple(sorted(config.items())): config for config in found}.values())


def _parts(num_tiles: int, num_blocks: int) -> int:
    """Parts of K, a power of two: two programs for each multiprocessor, four blocks for each."""
    wanted = min(2 * NUM_SMS // num_tiles, num_blocks // 4, MOST_PARTS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
