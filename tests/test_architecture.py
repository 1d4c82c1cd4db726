"""Laws of the source tree: imports go down, files stay small, heavy imports stay lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top to the bottom; parts of one row are siblings and do not import each other.
LAYERS = [
    ["llmopt.cli"],
    ["llmopt.report"],
    ["llmopt.bench"],
    ["llmopt.quality"],
    ["llmopt.backends"],
    ["llmopt.quantize", "llmopt.engine"],
    ["llmopt.models"],
    ["llmopt.layers"],
    ["llmopt.formats", "llmopt.recipe", "llmopt.results", "llmopt.data", "llmopt.environment"],
    ["llmopt.hardware"],
    ["llmopt_kernels", "llmopt.errors"],
]
LEVEL = {package: level for level, row in enumerate(LAYERS) for package in row}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
FOLDERS = ("llmopt", "kernels/llmopt_kernels", "kernels/bench")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.py"))


def package_of(module: str) -> str | None:
    return next((p for p in LEVEL if module == p or module.startswith(p + ".")), None)


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "kernels" if "kernels" in path.parts else ROOT)
    return ".".join(relative.with_suffix("").parts)


def imported_modules(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def layer_violations(module: str, imports: set[str]) -> list[str]:
    here = package_of(module)
    if here is None:
        return []
    violations = []
    for imported in sorted(imports):
        there = package_of(imported)
        if there is None or there == here:
            continue
        if LEVEL[there] <= LEVEL[here]:
            violations.append(f"{module} imports {imported}")
    return violations


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_only_go_down(path):
    tree = ast.parse(path.read_text())
    assert layer_violations(module_name(path), imported_modules(tree)) == []


def test_the_layer_check_can_fail():
    assert layer_violations("llmopt.engine.x", {"llmopt.quantize.y"}) != []
    assert layer_violations("llmopt.layers.x", {"llmopt.models.y"}) != []
    assert layer_violations("llmopt.models.x", {"llmopt.layers.y", "torch"}) == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_are_small(path):
    source = path.read_text()
    assert source.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.body[0].lineno + 1  # without the signature
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_every_module_says_what_it_is():
    silent = [module_name(p) for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_the_kernels_folder_does_not_shadow_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize(
    "module",
    [
        "llmopt.cli",
        "llmopt.report.render",
        "llmopt.results.store",
        "llmopt.recipe.load",
        "llmopt.bench.metrics",
        "llmopt.engine.scheduler",
        "llmopt.environment.install",
    ],
)
def test_light_modules_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
