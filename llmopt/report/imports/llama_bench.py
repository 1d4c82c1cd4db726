"""The text-generation tests of a llama-bench file as cells.

Knows nothing about other tools. The law: llama-bench has no requests, so that nothing but the rate
of generated tokens and the size of the weights is known. Fields as in llama.cpp's
`tools/llama-bench/llama-bench.cpp` (-o json).
"""

from collections.abc import Sequence

from llmopt.bench.audit_files import Document
from llmopt.bench.statistics import runs_interval
from llmopt.report.imports.unknown import UNKNOWN, imported_cell
from llmopt.results.schema import CellResult, LoadSpec, ModelFacts, Summary


def llama_bench_cells(documents: Sequence[Document]) -> list[CellResult]:
    """A cell for each test that generates only; tests with prompts have no rate of output tokens.

    Where there is none, no cell is returned.
    """
    return [_cell(one) for one in documents if one.get("n_gen") and not one.get("n_prompt")]


def _cell(one: Document) -> CellResult:
    samples = tuple(float(value) for value in one.get("samples_ts") or [one["avg_ts"]])
    load = LoadSpec(
        concurrency=1,
        num_requests=0,
        prompt_tokens=int(one.get("n_depth") or 0),
        output_tokens=int(one["n_gen"]),
        warmup_requests=0,
    )
    summary = Summary(
        ttft_ms=None,
        tpot_ms=None,
        itl_ms=None,
        e2e_ms=None,
        output_throughput=float(one["avg_ts"]),
        total_throughput=float(one["avg_ts"]),
        request_throughput=float("nan"),
        mfu=None,
        mbu=None,
        run_output_throughput=samples,
        run_tpot_ms=tuple(1000 / value for value in samples if value > 0),
        output_throughput_ci=runs_interval(samples),
    )
    return imported_cell(
        "llama-bench",
        str(one.get("model_type") or one.get("model_filename") or "model"),
        load=load,
        summary=summary,
        model=_model(one),
        device=one.get("gpu_info") or one.get("cpu_info") or None,
        created_at=str(one.get("test_time") or ""),
    )


def _model(one: Document) -> ModelFacts | None:
    size, count = one.get("model_size"), one.get("model_n_params")
    if not size or not count:
        return None
    name = str(one.get("model_type") or "model")
    return ModelFacts(
        name=name,
        path_hash="",
        architecture=UNKNOWN,
        scheme=name,
        compute_dtype=UNKNOWN,
        num_parameters=int(count),
        file_bytes=int(size),
        weight_bytes=int(size),
        bits_per_weight=8 * int(size) / int(count),
        linear_bits_per_weight=None,
        kernels=(),
    )
