"""The sampling kernels as they are specialized for a model with 128k tokens.

Imports Triton: only `triton.py` imports it.
"""

from collections.abc import Mapping
from typing import Any

from llmopt_kernels.aot import AotCase

VOCAB_SIZE = 128_256
DTYPES = {"bf16": 16, "fp16": 13, "fp32": 0}  # and the bits of a key that are 0
READ = {"row_stride": "i32", "table_ptr": "*i64", "max_ptr": "*fp32", "arg_ptr": "*i32"}
PICK = {"threshold_ptr": "*i32", "weight_ptr": "*i64"}
SEARCH = {"candidate_ptr": "*i32", "count_ptr": "*i32"}
SIZES = {"num_rows": "i32", "vocab_size": "i32", "num_blocks": "i32"}


def sampling_cases(
    kernels: Mapping[str, tuple[Any, int]], config: Mapping[str, int]
) -> list[AotCase]:
    """A case of each kernel for each dtype of logits.

    kernels: by short name, with how many warps it is launched.
    """
    blocks = 1 << (-(-VOCAB_SIZE // config["BLOCK"]) - 1).bit_length()
    picking = {"LIMITED": True, "BLOCK": config["BLOCK"], "BLOCKS": blocks}
    looking = {"BLOCKS": blocks, "CHUNK": config["CHUNK"], "CAPACITY": config["CAPACITY"]}
    cases = []
    for dtype, low_bit in DTYPES.items():
        logits = {"logits_ptr": f"*{dtype}"}
        signatures: dict[str, dict[str, str]] = {
            "max": logits
            | {"row_stride": "i32", "max_ptr": "*fp32", "arg_ptr": "*i32"}
            | {"vocab_size": "i32", "num_blocks": "i32"},
            "gather": logits | READ | SEARCH | SIZES,
            "search": logits
            | READ
            | SEARCH
            | {"weight_ptr": "*i64", "threshold_ptr": "*i32"}
            | SIZES,
            "weight": logits | READ | PICK | SIZES,
            "pick": logits | READ | PICK | {"out_ptr": "*i64"} | SIZES,
            "probs": logits | READ | PICK | {"out_ptr": "*fp32"} | SIZES,
        }
        constants: dict[str, dict[str, int | bool]] = {
            "max": {"BLOCK": config["BLOCK"]},
            "gather": looking,
            "search": looking | {"LOW_BIT": low_bit},
            "weight": picking | {"WHOLE": False},
            "pick": picking | {"DRAWN": True},
            "probs": picking,
        }
        cases += [
            AotCase(
                name=f"sampling {name} {dtype}",
                kernel=kernels[name][0],
                signature=signature,
                constexprs=constants[name],
                aligned=("row_stride", "vocab_size"),
                num_warps=kernels[name][1],
            )
            for name, signature in signatures.items()
        ]
    return cases
