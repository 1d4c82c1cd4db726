"""What only a GPU would suffer from, checked in the source: waiting inside a step, and CUDA calls
when modules are imported.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmopt
import llmopt_kernels

LLMOPT, KERNELS = (Path(package.__path__[0]) for package in (llmopt, llmopt_kernels))
WAITING = {"tolist", "item", "cpu", "numpy", "synchronize", "nonzero", "wait", "is_nonzero"}
# What a launched step runs. `token_chooser` also has what synchronous steps do: see `lookahead`.
HOT = [
    *(
        LLMOPT / "engine" / f"{name}.py"
        for name in ("batch", "decode_graphs", "decode_inputs", "lookahead", "model_runner")
    ),
    *(LLMOPT / "engine" / f"{name}.py" for name in ("kv_cache", "pending_step", "staging")),
    *(LLMOPT / "models" / f"{name}.py" for name in ("decoder", "mlp")),
    *(LLMOPT / "layers" / f"{name}.py" for name in ("activation", "norm", "triton_linear")),
    LLMOPT / "layers" / "stacked_experts.py",
    *(
        p
        for name in ("triton", "launch", "arguments", "blocks")
        for p in KERNELS.glob(f"*/{name}.py")
    ),
]
ALLOWED = {("staging.py", "read"): {"synchronize"}}  # where the host reads a step's tokens


def waiting_calls(source: str, file: str) -> list[str]:
    """What a GPU would be waited for in, or what copies from memory that is not pinned."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        allowed = ALLOWED.get((file, function.name), set())
        for node in ast.walk(function):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name = node.func.attr
            given = {keyword.arg for keyword in node.keywords}
            made_there = name in ("tensor", "as_tensor") and "device" in given
            if (name in WAITING and name not in allowed) or made_there:
                found.append(f"{function.name}: {name}")
    return found


@pytest.mark.parametrize("path", HOT, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_step_waits_for_nothing(path: Path) -> None:
    assert waiting_calls(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    "line",
    ["x.tolist()", "x.sum().item()", "torch.tensor(1, device=d)", "torch.cuda.synchronize()"],
)
def test_the_check_can_fail(line: str) -> None:
    assert waiting_calls(f"def f(x, d):\n    return {line}", "model_runner.py") != []
    assert waiting_calls("def read(self):\n    self.event.synchronize()", "staging.py") == []


POISON = """
import importlib, pkgutil, sys
import torch

def touched(*args, **kwargs):
    raise SystemExit("CUDA was touched")

for name in (
    "_lazy_init", "init", "is_available", "device_count", "current_device", "set_device",
    "get_device_name", "get_device_capability", "get_device_properties", "mem_get_info",
    "current_stream", "graph_pool_handle", "synchronize",
):
    setattr(torch.cuda, name, touched)

import llmopt, llmopt_kernels
count = 0
for package in (llmopt, llmopt_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        name = module.name
        if name.endswith(".__main__") or name.startswith("llmopt_kernels."):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # what is optional
            assert not error.name.startswith("llmopt"), error
            continue
        count += 1
for package in pkgutil.iter_modules(llmopt_kernels.__path__):
    if package.ispkg:
        importlib.import_module("llmopt_kernels." + package.name)
assert count > 150, count
assert "triton" not in sys.modules, "Triton was imported"
"""


def test_importing_touches_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", POISON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
