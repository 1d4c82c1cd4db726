from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.results.schema import (
    BackendFacts,
    CellResult,
    Environment,
    LoadSpec,
    RequestRecord,
    RunRecord,
    ValidityCheck,
)

ENVIRONMENT = Environment(
    device="Test CPU",
    cores=2,
    memory_bytes=8 << 30,
    os="Linux",
    python="3.11.7",
    torch="2.13.0",
    transformers="5.23.0",
    llmopt="0.1.0",
    git_sha="0123456789abcdef",
    git_dirty=False,
    num_threads=2,
)

RUN = RunRecord(
    repeat=0,
    started_at="2026-11-22T10:00:00Z",
    seed=0,
    duration_s=1.5,
    requests=(
        RequestRecord(
            request_id="0",
            num_prompt_tokens=8,
            num_output_tokens=3,
            scheduled_s=0.0,
            sent_s=0.001,
            first_token_s=0.5,
            last_token_s=1.0,
            done_s=1.01,
            token_times_s=(0.5, 1.0),
            token_counts=(1, 2),
            finish_reason="length",
        ),
    ),
    step_stats={"num_steps": 3.0},
)

RESULT = CellResult(
    cell_id="demo-fp32-c1",
    recipe_name="demo",
    recipe={"name": "demo", "loads": [{"concurrency": 1}], "quality": None},
    target="fp32",
    base_target="fp32",
    model=None,
    backend=BackendFacts(name="llmopt", version="0.1.0", settings={"block_size": 16}),
    load=LoadSpec(
        concurrency=1, num_requests=1, prompt_tokens=8, output_tokens=3, warmup_requests=0
    ),
    environment=ENVIRONMENT,
    ceilings=None,
    cost=None,
    runs=(RUN,),
    quality=None,
    validity=(ValidityCheck("requests", True, "1 of 1 succeeded"),),
    summary=None,
    error="the model is gone",
    created_at="2026-11-22T10:00:05Z",
)


@pytest.fixture
def make_result() -> Callable[..., CellResult]:
    return lambda **changes: replace(RESULT, **changes)
