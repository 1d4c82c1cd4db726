"""Result files as vllm bench, GuideLLM, AIPerf and llama-bench write them."""

from typing import Any


def vllm_file(**changes: Any) -> dict[str, Any]:
    """300 requests of 5 tokens, two at a time: TTFT 100 ms, then 4 chunks of 50 ms."""
    size = 300
    starts = [100 + 0.3 * (i // 2) + 0.001 * (i % 2) for i in range(size)]
    duration = 0.3 * size / 2 + 0.01
    return {
        "date": "20260101-000000",
        "model_id": "tiny",
        "max_concurrency": 2,
        "duration": duration,
        "completed": size,
        "output_throughput": 5 * size / duration,
        "mean_ttft_ms": 100.0,
        "mean_tpot_ms": 50.0,
        "mean_e2el_ms": 300.0,
        "input_lens": [64] * size,
        "output_lens": [5] * size,
        "ttfts": [0.1] * size,
        "itls": [[0.05] * 4] * size,
        "latencies": [0.3] * size,
        "start_times": starts,
        "queue_times": [0.0] * size,
        "errors": [""] * size,
    } | changes


def guidellm_file(num_failed: int = 0) -> dict[str, Any]:
    def request(index: int, failed: bool) -> dict[str, Any]:
        start = 1000.0 + 0.5 * index
        timings = {
            "targeted_start": start - 0.2,
            "request_start": start,
            "first_token_iteration": start + 0.1,
            "last_token_iteration": start + 0.4,
            "request_end": start + 0.41,
        }
        return {
            "request_id": str(index),
            "prompt_tokens": 10,
            "output_tokens": 4,
            "info": {"timings": timings, "error": "HTTP 500" if failed else None},
        }

    requests = {
        "successful": [request(i, False) for i in range(20)],
        "errored": [request(20 + i, True) for i in range(num_failed)],
        "incomplete": [],
    }
    strategy = {"strategy": {"type_": "constant"}}
    return {"benchmarks": [{"requests": requests, "config": strategy, "duration": 11.0}]}


def aiperf_line(index: int, **changes: Any) -> dict[str, Any]:
    start = 10**18 + index * 10**8
    metadata = {"request_start_ns": start, "request_end_ns": start + 3 * 10**8}
    metrics = {
        "input_sequence_length": {"value": 64, "unit": "tokens"},
        "output_sequence_length": {"value": 5, "unit": "tokens"},
        "time_to_first_token": {"value": 100.0, "unit": "ms"},
        "request_latency": {"value": 300.0, "unit": "ms"},
        "inter_chunk_latency": {"value": [50.0] * 4, "unit": "ms"},
    }
    return {"metadata": metadata, "metrics": metrics, "error": None} | changes


LLAMA_BENCH = {
    "model_type": "llama 1B Q4_0",
    "model_size": 800_000_000,
    "model_n_params": 1_000_000_000,
    "cpu_info": "Some CPU",
    "n_prompt": 0,
    "n_gen": 128,
    "avg_ts": 119.0,
    "samples_ts": [119.0, 120.0, 119.0, 118.0, 119.0],
}
