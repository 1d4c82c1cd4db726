"""What Triton's interpreter (3.6, 3.7) does unlike the hardware, put right for the tests.

* It truncates float32 to bfloat16, and loses the carry where it rounds to FP8. Hardware rounds to
  nearest, ties to even, and FP8 saturates (PTX ISA, `cvt.rn.satfinite`).
* It multiplies the bit patterns of bfloat16 operands in `tl.dot`, and computes with them in sums
  and products of elements, which hardware rounds once (PTX ISA, `add`, `sub`, `mul` of .bf16).
* It has no bfloat16 constants.
* With numpy 2.4 it cannot use a computed scalar as a bound of `range`.
* Its atomics and loads are as they are: kernels run one program after another.
"""

from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter

TORCH_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}
ARITHMETIC = (np.add, np.subtract, np.multiply)
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def convert_float(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """The values of `data` (any dtype of the right width) in `target`, as unsigned integers."""
    source_dtype, target_dtype = TORCH_DTYPES[source.name], TORCH_DTYPES[target.name]
    assert rounding != interpreter._ir.ROUNDING_MODE.RTZ, "nobody asks for truncation"
    values = torch.from_numpy(data.view(UNSIGNED[source_dtype.itemsize]).copy())
    wide = values.view(source_dtype).float()
    if target_dtype.itemsize == 1:
        limit = torch.finfo(target_dtype).max
        wide = wide.clamp(-limit, limit)
    unsigned = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[target_dtype.itemsize]
    return wide.to(target_dtype).view(unsigned).numpy()


def install() -> None:
    """Put the interpreter of this process right."""
    interpreter._convert_float = convert_float
    plain_dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, _widened(a), _widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    plain_binary_op = interpreter.InterpreterBuilder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar != interpreter.tl.bfloat16 or op not in ARITHMETIC:
            return plain_binary_op(self, lhs, rhs, op)
        exact = plain_binary_op(self, _widened(lhs), _widened(rhs), op)
        data = convert_float(exact.data, interpreter.tl.float32, interpreter.tl.bfloat16, None)
        return interpreter.TensorHandle(data, interpreter.tl.bfloat16)

    interpreter.InterpreterBuilder.binary_op = binary_op

    def get_bf16(self: Any, value: float) -> Any:
        data = np.array([value], dtype=np.float32)
        rounded = convert_float(data, interpreter.tl.float32, interpreter.tl.bfloat16, None)
        return interpreter.TensorHandle(rounded, interpreter.tl.bfloat16)

    interpreter.InterpreterBuilder.get_bf16 = get_bf16
    plain_patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


def _widened(operand: Any) -> Any:
    """bfloat16 as float32, which holds its products exactly."""
    float32 = interpreter.tl.float32
    if operand.dtype.scalar != interpreter.tl.bfloat16:
        return operand
    data = convert_float(operand.data, operand.dtype.scalar, float32, None)
    return interpreter.TensorHandle(data.view(np.float32), float32)
