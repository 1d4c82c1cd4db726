"""Linear layers on CPUs: the compiled kernels beside torch's, at the shapes of real models.

    cd kernels && python -m bench.cpu_linear --threads 1,2 --out DIRECTORY

Knows nothing of whole models. The law: contenders take turns in the same rounds, and with them a
plain read of memory; every call finds its weight in memory and not in a cache, and outputs are
compared with the exact product before anything is timed.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.timing import Effort, Failure, Timing, time_calls
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.hardware.device import device_facts
from llmopt.layers.linear import Linear, make_linear
from llmopt.layers.native_linear import library_for

CPU = torch.device("cpu")
# K x O: the default model's output, qkv, down and head; then a model of 1B parameters
SHAPES = (
    (576, 576),
    (576, 960),
    (576, 3072),
    (1536, 576),
    (576, 49152),
    (2048, 2048),
    (2048, 8192),
    (8192, 2048),
)
READ = "read only"  # as many bytes as the bfloat16 weight has: the ceiling of a single token
TOKENS = (1, 4, 8, 16, 64, 256)
ALLOWED_ERROR = {"bf16": 1e-2, "w4a8": 2e-2, "w8a8": 2e-2}  # relative, of inputs of one scale
W4 = QuantSpec(4, 64)
W8 = QuantSpec(8, None)


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one shape. bytes_read: its weight, scales included."""

    in_features: int
    out_features: int
    tokens: int
    threads: int
    contender: str
    kernel: str
    bytes_read: int
    median_s: float
    low_s: float
    high_s: float
    best_s: float
    num_rounds: int

    @property
    def gigabytes_per_s(self) -> float:
        """Rate at which the weight is read."""
        return self.bytes_read / self.median_s / 1e9

    @property
    def gigaops_per_s(self) -> float:
        """Multiplications and additions of the product."""
        return 2 * self.tokens * self.in_features * self.out_features / self.median_s / 1e9


@dataclass(frozen=True, slots=True)
class Contender:
    """A layer and what a call of it reads."""

    name: str
    kernel: str
    bytes_read: int
    call: Callable[[torch.Tensor], torch.Tensor]


def contenders(in_features: int, out_features: int) -> list[Contender]:
    """The layers to compare at a shape, each checked against the exact product."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(out_features, in_features, generator=generator).to(torch.bfloat16)
    bf16 = matrix.nbytes
    numbers = torch.ones(bf16 // 4)
    found = [
        Contender(READ, "Tensor.sum", bf16, lambda _: numbers.sum()),
        Contender("torch bf16", "F.linear", bf16, lambda x: F.linear(x, matrix)),
        _contender("native bf16", make_linear([matrix], [None], dtype=matrix.dtype, device=CPU)),
    ]
    _check(found[-1], matrix.float(), ALLOWED_ERROR["bf16"])
    for name, spec in (("w4", W4), ("w8", W8)):
        weight = _uniform(out_features, in_features, spec, generator)
        exact = weight.dequantize()
        for activations in ("bf16", "int8"):
            linear = make_linear(
                [weight], [None], dtype=torch.bfloat16, device=CPU, activations=activations
            )
            label = f"native {name}a8" if activations == "int8" else f"torch {name}a16"
            found.append(_contender(label, linear))
            _check(found[-1], exact, ALLOWED_ERROR[f"{name}a8"])
    return found


def measure(
    shapes: Sequence[tuple[int, int]],
    token_counts: Sequence[int],
    threads: Sequence[int],
    effort: Effort,
) -> Iterator[Row]:
    """Yield the rows of each shape as they are measured."""
    for in_features, out_features in shapes:
        layers = contenders(in_features, out_features)
        for num_threads in threads:
            torch.set_num_threads(num_threads)
            for tokens in token_counts:
                x = torch.randn(tokens, in_features).to(torch.bfloat16)
                calls = {layer.name: _bound(layer, x) for layer in layers}
                timings = time_calls(calls, CPU, effort)
                for layer in layers:
                    timing = timings[layer.name]
                    assert not isinstance(timing, Failure), timing
                    yield _row(layer, timing, (in_features, out_features), tokens, num_threads)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines: one for each shape, number of threads and tokens; milliseconds, GB/s or Gop/s of the
    native kernels, and how much faster they are than torch's bf16.
    """
    names = list(dict.fromkeys(row.contender for row in rows))
    yield "  ".join([f"{'K x O':>12} thr    T", *(f"{name:>24}" for name in names)])
    keys = dict.fromkeys((r.in_features, r.out_features, r.threads, r.tokens) for r in rows)
    for key in keys:
        cells = {
            r.contender: r
            for r in rows
            if (r.in_features, r.out_features, r.threads, r.tokens) == key
        }
        baseline = cells["torch bf16"].median_s
        head = f"{key[0]:>5} x {key[1]:<5}{key[2]:>3} {key[3]:>4}"
        yield "  ".join([head, *(_cell(cells[name], baseline) for name in names)])


def _cell(row: Row, baseline_s: float) -> str:
    reads = row.tokens < 8 or row.contender == READ
    rate = f"{row.gigabytes_per_s:.0f} GB/s" if reads else f"{row.gigaops_per_s:.0f} Gop/s"
    return f"{row.median_s * 1e3:9.3f} {rate:>9} {baseline_s / row.median_s:4.1f}"


def _contender(name: str, linear: Linear) -> Contender:
    return Contender(name, linear.kernel, linear.weight_bytes, linear)


def _bound(layer: Contender, x: torch.Tensor) -> Callable[[], object]:
    return lambda: layer.call(x)


def _check(layer: Contender, exact: torch.Tensor, allowed: float) -> None:
    x = torch.randn(3, exact.shape[1], generator=torch.Generator().manual_seed(1))
    x = x.to(torch.bfloat16)
    expected = x.float() @ exact.T
    error = ((layer.call(x).float() - expected).norm() / expected.norm()).item()
    assert error < allowed, f"{layer.name} ({layer.kernel}) is off by {error:.2%}"


def _uniform(
    rows: int, columns: int, spec: QuantSpec, generator: torch.Generator
) -> QuantizedWeight:
    codes = torch.randint(0, spec.levels, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, spec.num_groups(columns), generator=generator) * 0.01 + 0.001
    return QuantizedWeight(codes, scales.to(torch.float16), None, None, spec)


def _row(
    layer: Contender, timing: Timing, shape: tuple[int, int], tokens: int, threads: int
) -> Row:
    return Row(
        *shape,
        tokens,
        threads,
        layer.name,
        layer.kernel,
        layer.bytes_read,
        timing.median_s,
        timing.low_s,
        timing.high_s,
        timing.best_s,
        timing.num_rounds,
    )


def main() -> None:
    """Measure, print the table, and write `cpu-linear.json` and `cpu-linear.txt`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, such as 1,2")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each comparison")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    arguments = parser.parse_args()
    library = library_for(torch.bfloat16, CPU)
    assert library is not None, "the compiled kernels are what is measured"
    threads, tokens = (
        [int(number) for number in text.split(",")]
        for text in (arguments.threads, arguments.tokens)
    )
    rows = list(measure(SHAPES, tokens, threads, Effort(budget_s=arguments.budget)))
    lines = list(table(rows))
    print("\n".join(lines))
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {
        "torch": torch.__version__,
        "instruction_set": library.instruction_set_name,
        "device": asdict(device_facts()),
        "rows": [asdict(row) for row in rows],
    }
    path = arguments.out / "cpu-linear"
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
