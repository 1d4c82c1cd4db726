"""What a recipe says, as frozen data, and the cells that follow from it.

Knows nothing about YAML, models or files; imports no torch. The law: a recipe is complete (every
default is filled in), and the same recipe always gives the same cells with the same ids.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from llmopt.recipe.engine import EngineSettings
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
    engine: how it is served, where that is not as the load wants it
    """

    name: str
    model: str
    dtype: Dtype = "auto"
    quantize: QuantizeSpec | str | None = None
    engine: EngineSettings | None = None

    @property
    def dummy_config(self) -> str | None:
        """The config that random weights are made for; None: the weights are real."""
        return self.model.removeprefix(DUMMY) if self.model.startswith(DUMMY) else None


@dataclass(frozen=True, slots=True)
class Base:
    """What every target is compared with, in quality and in speed."""

    model: str
    dtype: Dtype = "auto"
    name: str | None = None  # absent: after the dtype, "fp32"
    engine: EngineSettings | None = None

    def as_target(self) -> Target:
        """Return the base as the target that it also is."""
        name = self.name or _DTYPE_LABELS[self.dtype]
        return Target(name, self.model, self.dtype, engine=self.engine)


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

    Without loads, speed is not measured. `price_per_hour`: of the machine, for the cost of tokens.
    """

    name: str
    base: Base
    targets: tuple[Target, ...]
    loads: tuple[Load, ...] = ()
    repeats: int = 3
    warmup_requests: int = 1
    seed: int = 0
    backend: Literal["llmopt"] = "llmopt"
    calibration: Calibration = Calibration()
    quality: Quality | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of the recipe: a target under a load, or only its quality."""

    cell_id: str
    target: Target
    load: Load | None


def all_targets(recipe: Recipe) -> tuple[Target, ...]:
    """Return the base and then the targets: everything that becomes rows."""
    return (recipe.base.as_target(), *recipe.targets)


def cells(recipe: Recipe) -> list[Cell]:
    """Return the cells in order (load by load, base first), each with its stable id.

    The id is "<recipe>-<target>-<load>" (`load_suffixes`); without loads it ends in "-quality".
    """
    loads: list[tuple[Load | None, str]] = [(None, "quality")]
    if recipe.loads:
        loads = list(zip(recipe.loads, load_suffixes(recipe.loads), strict=True))
    return [
        Cell(f"{recipe.name}-{target.name}-{suffix}", target, load)
        for load, suffix in loads
        for target in all_targets(recipe)
    ]


def to_document(recipe: Recipe) -> dict[str, object]:
    """Return the recipe as JSON values, defaults filled in: what a result file keeps of it."""
    document = asdict(recipe)
    document["base"]["name"] = recipe.base.as_target().name
    document["targets"] = list(document["targets"])
    document["loads"] = list(document["loads"])
    return document


def cell_document(recipe: Recipe, cell: Cell) -> dict[str, object]:
    """Return, as JSON values, all that decides what the cell measures.

    The number of repeats is not in it, nor are the other targets and loads: results of a cell stay
    good when those change.
    """
    whole = to_document(recipe)
    shared = ("base", "warmup_requests", "seed", "backend", "calibration", "quality")
    document = {key: whole[key] for key in shared}
    load = None if cell.load is None else asdict(cell.load)
    return document | {"target": asdict(cell.target), "load": load}
