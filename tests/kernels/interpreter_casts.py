"""One more thing that Triton's interpreter does unlike the hardware: integers become the bit
patterns of bfloat16, in place of its values. Importing this puts it right.
"""

from typing import Any

import interpreter as ours
import numpy as np
from triton.runtime import interpreter

_plain_cast = interpreter.InterpreterBuilder.cast_impl


def cast_impl(self: Any, source: Any, target: Any) -> Any:
    tl = interpreter.tl
    if target.scalar != tl.bfloat16 or not source.dtype.scalar.is_int():
        return _plain_cast(self, source, target)
    values = source.data.astype(np.float32)
    return interpreter.TensorHandle(
        ours.convert_float(values, tl.float32, tl.bfloat16, None), tl.bfloat16
    )


interpreter.InterpreterBuilder.cast_impl = cast_impl
