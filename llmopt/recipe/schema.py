"""What a recipe says, as frozen data, and the cells that follow from it.

Knows nothing about YAML, models or files; imports no torch. The law: a recipe is complete (every
default is filled in), and the same recipe always gives the same cells with the same ids.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from llmopt.recipe.backends import OWN, OWN_BACKEND, BackendSpec, backend_spec, distinct_backends
from llmopt.recipe.engine import Activations, EngineSettings
from llmopt.recipe.loads import Load, load_suffixes

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Protocol = Literal["windows", "paper", "llama.cpp", "rolling"]  # how a text is cut and scored

OWN_ENGINE = "llmopt"
DUMMY = "dummy:"  # before the config of a model whose weights are random
BUNDLED_TEXT = "bundled"  # the text that the package ships, in place of a path

_DTYPE_LABELS: dict[Dtype, str] = {
    "auto": "base",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """How a target's weights are made from its model, and how their checkpoint stores them.

    bits, group_size, symmetric: of rtn, gptq and awq only; `group_size` None: one group per row
    format: absent: the one that most engines read
    double_quant: of nf4 and fp4; mix: of gguf, such as q4_k_m
    propagate: calibrate on what the quantized blocks before put out, not on the source's
    overrides: other settings of single modules, such as "*.down_proj=bits:8,group:32"
    engine: who quantizes: llmopt, or a quantizer of others in an environment of its own
    """

    method: Literal[
        "rtn",
        "gptq",
        "qronos",
        "awq",
        "awq+gptq",
        "nf4",
        "fp4",
        "int8",
        "w8a16",
        "w8a8",
        "fp8",
        "gguf",
    ]
    bits: Literal[2, 3, 4, 8] | None = None
    group_size: int | None = None
    symmetric: bool = True
    format: Literal["gptq", "awq", "compressed-tensors", "bitsandbytes", "gguf"] | None = None
    double_quant: bool = False
    mix: str | None = None
    propagate: bool = True
    overrides: tuple[str, ...] = ()
    engine: str = OWN_ENGINE


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to compare: a model as it is (in `dtype`), or quantized on the fly.

    model: an alias, a directory or a hub id; "dummy:" and a config.json, or one of those: random
        weights of that shape, which `quantize` names the form of. Their quality means nothing.
    quantize: a scheme's name, such as "gptq-w4g64-asym", or all settings
    engine: how llmopt serves it, where that is not as the load wants it
    backends: who serves it, if not all backends of the recipe; by their titles, or others
    """

    name: str
    model: str
    dtype: Dtype = "auto"
    quantize: QuantizeSpec | str | None = None
    engine: EngineSettings | None = None
    backends: tuple[BackendSpec | str, ...] | None = None

    @property
    def dummy_config(self) -> str | None:
        """The config that random weights are made for; None: the weights are real."""
        return self.model.removeprefix(DUMMY) if self.model.startswith(DUMMY) else None

    @property
    def activations(self) -> Activations:
        """What activations are rounded to before quantized weights, in speed and in quality."""
        return (self.engine and self.engine.activations) or "auto"


@dataclass(frozen=True, slots=True)
class Base:
    """What every target is compared with, in quality and in speed."""

    model: str
    dtype: Dtype = "auto"
    name: str | None = None  # absent: after the dtype, "fp32"
    engine: EngineSettings | None = None
    backends: tuple[BackendSpec | str, ...] | None = None

    def as_target(self) -> Target:
        """Return the base as the target that it also is."""
        name = self.name or _DTYPE_LABELS[self.dtype]
        return Target(name, self.model, self.dtype, engine=self.engine, backends=self.backends)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the quantizers see: `num_samples` windows of `sample_tokens` tokens of a text."""

    text: str = BUNDLED_TEXT
    num_samples: int = 32
    sample_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Quality:
    """What quality is measured on: the first `num_windows` windows of `window` tokens of a text.

    text: a file's path, `bundled` or `wikitext-2`
    window: absent: the protocol's own length; num_windows: null: all that the text gives
    noise: measure the noise floor too, which each target is judged by
    """

    text: str = BUNDLED_TEXT
    protocol: Protocol = "windows"
    window: int | None = None
    num_windows: int | None = 16
    noise: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A comparison: base and targets, each under every load. `quality` None: not measured.

    backends: the runtimes that serve each target that does not name its own
    price_per_hour: of the machine, for the cost of tokens
    until_ci: measure on after `repeats` runs, until the 95 % interval of every main number is
        within this share of it (0.03: 3 %), but `max_repeats` runs at most
    Without loads, speed is not measured.
    """

    name: str
    base: Base
    targets: tuple[Target, ...]
    loads: tuple[Load, ...] = ()
    repeats: int = 3
    warmup_requests: int = 1
    seed: int = 0
    backends: tuple[BackendSpec | str, ...] = (OWN_BACKEND,)
    calibration: Calibration = Calibration()
    quality: Quality | None = None
    price_per_hour: float | None = None
    until_ci: float | None = None
    max_repeats: int = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of the recipe: a target under a load on a backend, or only its quality."""

    cell_id: str
    target: Target
    load: Load | None
    backend: BackendSpec = OWN


def all_targets(recipe: Recipe) -> tuple[Target, ...]:
    """Return the base and then the targets: everything that becomes rows."""
    return (recipe.base.as_target(), *recipe.targets)


def all_backends(recipe: Recipe) -> tuple[BackendSpec, ...]:
    """Return the backends that serve anything: the recipe's, then those of single targets."""
    own = [spec for target in all_targets(recipe) for spec in _backends_of(recipe, target)]
    return distinct_backends([*recipe.backends, *own])


def named_backends(recipe: Recipe) -> list[tuple[tuple[str | int, ...], BackendSpec]]:
    """Return every backend that a recipe writes down, with the path to it; a title that stands for
    a backend of the recipe is left out.
    """
    titles = {backend.title for backend in distinct_backends(recipe.backends)}
    owners: list[tuple[tuple[str | int, ...], tuple[BackendSpec | str, ...] | None]] = [
        (("base", "backends"), recipe.base.backends),
        *((("targets", i, "backends"), each.backends) for i, each in enumerate(recipe.targets)),
    ]
    found: list[tuple[tuple[str | int, ...], BackendSpec]] = [
        (("backends", i), backend_spec(each)) for i, each in enumerate(recipe.backends)
    ]
    found += [
        ((*path, index), backend_spec(backend))
        for path, backends in owners
        for index, backend in enumerate(backends or ())
        if backend not in titles
    ]
    return found


def cells(recipe: Recipe) -> list[Cell]:
    """Return the cells in order (load by load, backend by backend, base first), with stable ids.

    The id is "<recipe>-<target>-<load>" (`load_suffixes`), with "<backend>-" before the load where
    the recipe has several; without loads it ends in "-quality", which no backend has a part in.
    """
    if not recipe.loads:
        return [
            Cell(f"{recipe.name}-{target.name}-quality", target, None)
            for target in all_targets(recipe)
        ]
    backends = all_backends(recipe)
    return [
        Cell(_cell_id(recipe, target, backend, suffix, len(backends) > 1), target, load, backend)
        for load, suffix in zip(recipe.loads, load_suffixes(recipe.loads), strict=True)
        for backend in backends
        for target in all_targets(recipe)
        if backend in _backends_of(recipe, target)
    ]


def _backends_of(recipe: Recipe, target: Target) -> tuple[BackendSpec, ...]:
    specs = distinct_backends(recipe.backends)
    if target.backends is None:
        return specs
    by_title = {spec.title: spec for spec in specs}
    return distinct_backends(
        [by_title.get(each, each) if isinstance(each, str) else each for each in target.backends]
    )


def _cell_id(
    recipe: Recipe, target: Target, backend: BackendSpec, suffix: str, has_several: bool
) -> str:
    parts = [recipe.name, target.name, *([backend.title] if has_several else []), suffix]
    return "-".join(parts)


def to_document(recipe: Recipe) -> dict[str, object]:
    """Return the recipe as JSON values, defaults filled in: what a result file keeps of it."""
    document = {key: _plain(value) for key, value in asdict(recipe).items()}
    return document | {"base": document["base"] | {"name": recipe.base.as_target().name}}


def cell_document(recipe: Recipe, cell: Cell) -> dict[str, object]:
    """Return, as JSON values, all that decides what the cell measures.

    The number of repeats is not in it, nor are the other targets and loads: results of a cell stay
    good when those change.
    """
    whole = to_document(recipe)
    shared = ("base", "warmup_requests", "seed", "calibration", "quality")
    document = {key: whole[key] for key in shared}
    own = {"target": cell.target, "load": cell.load, "backend": cell.backend}
    return document | {key: part and _plain(asdict(part)) for key, part in own.items()}


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
