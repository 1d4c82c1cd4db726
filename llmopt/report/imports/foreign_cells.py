"""Files of vllm bench, GuideLLM, AIPerf and llama-bench as cells for a report.

Knows nothing about tables. The law: numbers are computed from the file's own events by the
definitions of llmopt; what a file does not say stays unknown, and every cell says that it was
imported.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from llmopt.bench.audit_files import Document, read_documents, reading
from llmopt.bench.audit_llama_bench import is_llama_bench
from llmopt.bench.audit_readers import FOREIGN, ForeignRun
from llmopt.bench.metrics import summarize
from llmopt.bench.validity import check_errors
from llmopt.report.imports.llama_bench import llama_bench_cells
from llmopt.report.imports.unknown import imported_cell
from llmopt.results.schema import CellResult, LoadSpec, RequestRecord, RunRecord, Summary


def is_foreign(documents: Sequence[Document]) -> bool:
    """Whether these are of a tool whose files can be imported."""
    return is_llama_bench(documents) or any(fits(documents) for fits, _ in FOREIGN.values())


def import_cells(path: Path) -> list[CellResult]:
    """Return a cell for each run in a file. Raises ResultError: unknown tool, or not whole."""
    documents = read_documents(path)
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with reading(path, "a benchmark"):
        cells = _read(documents)
    return [
        replace(cell, cell_id=f"imported-{path.stem}-{key}-{number}")
        for number, cell in enumerate(cells, 1)
    ]


def _read(documents: Sequence[Document]) -> list[CellResult]:
    if is_llama_bench(documents):
        return llama_bench_cells(documents)
    for tool, (fits, read) in FOREIGN.items():
        if fits(documents):
            return [_cell(tool, run) for run in read(documents)]
    raise ValueError("of a tool that is not known")


def _cell(tool: str, run: ForeignRun) -> CellResult:
    requests = tuple(map(_counted, run.record.requests))
    record = replace(run.record, requests=requests)
    served = [request for request in requests if request.error is None]
    load = LoadSpec(
        concurrency=run.concurrency or 0,
        num_requests=len(requests),
        prompt_tokens=_mean(served, "num_prompt_tokens"),
        output_tokens=_mean(served, "num_output_tokens"),
        warmup_requests=0,
    )
    return imported_cell(
        tool,
        run.title,
        load=load,
        runs=(record,),
        summary=_summary(record, has_times=run.has_times),
        validity=(check_errors(requests),),
        created_at=run.record.started_at,
    )


def _counted(request: RequestRecord) -> RequestRecord:
    """One token per event where the numbers agree; else it is not known when tokens came."""
    if request.token_counts or not request.token_times_s:
        return request
    if len(request.token_times_s) == request.num_output_tokens:
        return replace(request, token_counts=(1,) * request.num_output_tokens)
    return replace(request, token_times_s=())


def _summary(record: RunRecord, *, has_times: bool) -> Summary:
    """The summary, without what follows from times that the file does not have."""
    summary = summarize((record,), None, None, "")
    if has_times:
        return summary
    return replace(summary, peak_concurrency=None, mean_concurrency=None, steady=None)


def _mean(requests: Sequence[RequestRecord], name: str) -> int:
    return round(fmean(getattr(request, name) for request in requests)) if requests else 0
