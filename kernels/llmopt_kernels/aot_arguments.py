"""Cases for ahead-of-time compilation, from the arguments of a launch with tensors on torch's
"meta" device.

Knows no kernel. The law: a case is specialized as Triton would specialize the launch: on types, on
None, on integers that are 1 or multiples of 16 unless the kernel says not to.
"""

from collections.abc import Mapping
from typing import Any

import torch

from llmopt_kernels.aot import AotCase

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def case_of_launch(
    name: str,
    kernel: Any,
    arguments: Mapping[str, Any],
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    needs_wgmma: bool = False,
    max_spilled_bytes: int = 0,
) -> AotCase:
    """The case of a launch `kernel[grid](**arguments)`, a @triton.jit function."""
    unspecialized = {p.name for p in kernel.params if p.do_not_specialize}
    signature, constexprs, aligned = {}, {}, []
    for parameter in kernel.params:
        argument = arguments[parameter.name]
        if parameter.is_constexpr or argument is None:
            constexprs[parameter.name] = argument
        elif isinstance(argument, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[argument.dtype]
        elif isinstance(argument, float):
            signature[parameter.name] = "fp32"
        elif argument == 1 and parameter.name not in unspecialized:
            constexprs[parameter.name] = 1
        else:
            signature[parameter.name] = "i32" if abs(argument) < 2**31 else "i64"
            if argument % 16 == 0 and parameter.name not in unspecialized:
                aligned.append(parameter.name)
    return AotCase(
        name,
        kernel,
        signature,
        constexprs,
        tuple(aligned),
        num_warps,
        num_stages,
        needs_wgmma,
        max_spilled_bytes,
    )
