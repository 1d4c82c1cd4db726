"""The load generators of others against the same server, and our numbers under their definitions.

Each runs where its program is found: LLMOPT_PEER_GUIDELLM, LLMOPT_PEER_AIPERF and LLMOPT_PEER_VLLM
name the executables (such as /path/to/bin/guidellm), each in an environment of its own.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.profiles.openai import OPENAI
from llmopt.bench.loadgen import run_load
from llmopt.bench.peer_definitions import restate
from llmopt.bench.workload import PlannedRequest, RunPlan

CONCURRENCY, NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 4, 24, 32, 20
# A first event without a token, so that the definitions of the first token differ; delays so long
# that 2 % of them is more than a peer's own client, or a busy machine, adds to them.
SHAPES = [
    {"role_first_s": 0.6, "ttft_s": 0.8, "tpot_s": 0.04, "finish_with_last": True},
    {"ttft_s": 0.8, "tpot_s": 0.02, "tokens_per_event": 4, "finish_with_last": True},
    {"ttft_s": 0.8, "tpot_s": 0.04, "finish_with_last": False},
]
NUMBERS = count()


def program(name: str) -> str:
    variable = f"LLMOPT_PEER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"{name} is not at hand: {variable} names its executable")
    return os.environ[variable]


def execute(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"VLLM_TARGET_DEVICE": "empty", "OPENAI_API_KEY": "none"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def guidellm(url: str, model: str, tokenizer: Path, folder: Path) -> dict[str, float]:
    report = folder / "guidellm.json"
    command = [
        *(program("guidellm"), "run", "--disable-console"),
        *(
            "--backend",
            f"kind=openai_http,target={url},model={model},request_format=/v1/completions",
        ),
        *("--profile", f"kind=concurrent,streams={CONCURRENCY}"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        "--data",
        f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
        *("--output", f"kind=json,path={report}"),
    ]
    execute(command, folder)
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    found = {}
    for name, by_outcome in metrics.items():
        values = (by_outcome or {}).get("successful")
        if isinstance(values, dict) and "median" in values:
            found[name] = values["mean"]
            found[f"{name}.p50"] = values["median"]
    return found


def aiperf(url: str, model: str, tokenizer: Path, folder: Path) -> dict[str, float]:
    command = [
        *(program("aiperf"), "profile", "--model", model, "--url", url),
        *("--endpoint-type", "completions", "--streaming", "--use-server-token-count"),
        *("--tokenizer", str(tokenizer), "--extra-inputs", "ignore_eos:true"),
        *("--concurrency", str(CONCURRENCY), "--request-count", str(NUM_REQUESTS)),
        *("--warmup-request-count", str(CONCURRENCY)),
        *("--prompt-input-tokens-mean", str(PROMPT_TOKENS)),
        *("--prompt-output-tokens-mean", str(OUTPUT_TOKENS), "--prompt-output-tokens-stddev", "0"),
        *("--num-dataset-entries", str(NUM_REQUESTS), "--output-artifact-dir", str(folder)),
    ]
    execute(command, folder)
    metrics = json.loads((folder / "profile_export_aiperf.json").read_text())
    found = {}
    for name, values in metrics.items():
        if isinstance(values, dict) and "avg" in values:
            found[name] = found[f"{name}.mean"] = values["avg"]
            found[f"{name}.p50"] = values.get("p50", values["avg"])
    return found


def vllm(url: str, model: str, tokenizer: Path, folder: Path) -> dict[str, float]:
    command = [
        *(program("vllm"), "bench", "serve", "--backend", "openai", "--base-url", url),
        *("--model", model, "--tokenizer", str(tokenizer), "--dataset-name", "random"),
        *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
        *("--num-prompts", str(NUM_REQUESTS), "--max-concurrency", str(CONCURRENCY)),
        *("--num-warmups", str(CONCURRENCY), "--ignore-eos"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json"),
    ]
    execute(command, folder)
    found: dict[str, float] = json.loads((folder / "vllm.json").read_text())
    return found


def ours(url: str, model: str, tool: str) -> dict[str, float]:
    def request(index: int) -> PlannedRequest:
        return PlannedRequest((index, *range(1, PROMPT_TOKENS)), OUTPUT_TOKENS)

    plan = RunPlan(
        tuple(map(request, range(CONCURRENCY))),
        tuple(map(request, range(CONCURRENCY, CONCURRENCY + NUM_REQUESTS))),
        CONCURRENCY,
    )
    backend = HttpBackend(OPENAI, ServerOptions(url, model))
    backend.start()
    record = backend.drive(lambda: asyncio.run(run_load(backend, plan, repeat=0, seed=0)))
    backend.stop()
    return restate(record, tool)


Peer = Callable[[str, str, Path, Path], dict[str, float]]

COMPARED: list[tuple[Peer, list[str]]] = [
    (
        guidellm,
        [
            "time_to_first_token_ms.p50",
            "time_per_output_token_ms.p50",
            "inter_token_latency_ms.p50",
            "request_latency.p50",
            "requests_per_second",
            "output_tokens_per_second",
        ],
    ),
    (
        aiperf,
        [
            "time_to_first_token.p50",
            "inter_token_latency.p50",
            "inter_chunk_latency.mean",
            "request_latency.p50",
            "request_throughput",
            "output_token_throughput",
            "output_token_throughput_per_user.p50",
        ],
    ),
    (
        vllm,
        [
            "median_ttft_ms",
            "median_tpot_ms",
            "mean_itl_ms",
            "median_e2el_ms",
            "request_throughput",
            "output_throughput",
        ],
    ),
]


@pytest.mark.parametrize(
    "shape", SHAPES, ids=["role first", "four tokens per event", "finish in an event of its own"]
)
@pytest.mark.parametrize(("peer", "names"), COMPARED, ids=["guidellm", "aiperf", "vllm"])
def test_our_numbers_under_a_peers_definitions_are_its_own(
    mock: Any, default_model: Path, tmp_path: Path, peer: Peer, names: list[str], shape: Any
) -> None:
    program(peer.__name__)
    model = mock.add(f"peer-{next(NUMBERS)}", **shape)
    theirs = peer(mock.url, model, default_model, tmp_path)
    found = ours(mock.url, model, peer.__name__)
    print({name: (round(found[name], 3), round(theirs[name], 3)) for name in names})  # with -s
    assert {name: found[name] for name in names} == {
        name: pytest.approx(theirs[name], rel=0.02) for name in names
    }
