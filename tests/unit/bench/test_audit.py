import json

import pytest
from foreign_files import LLAMA_BENCH, aiperf_line, guidellm_file, vllm_file

from llmopt.bench.audit import audit_file
from llmopt.errors import ResultError


@pytest.fixture
def audit(tmp_path):
    def of(document):
        path = tmp_path / "result.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        (found,) = audit_file(path)
        return found

    return of


def failed(found):
    return {check.name for check in found.checks if not check.passed}


def test_a_good_file_of_vllm_passes(audit):
    found = audit(vllm_file())
    assert found.tool == "vllm bench"
    assert failed(found) == set()
    assert found.passed
    assert {"recomputed:mean_ttft_ms", "coordinated-omission", "samples"} <= {
        check.name for check in found.checks
    }
    assert any("cache-state" in line for line in found.missing)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"errors": ["timeout"] + [""] * 299}, "requests-served"),
        ({"queue_times": [0.1] * 300}, "coordinated-omission"),
        ({"mean_ttft_ms": 90.0}, "recomputed:mean_ttft_ms"),
        ({"output_throughput": 999.0}, "recomputed:output_throughput"),
        ({"max_concurrency": 1}, "littles-law"),
    ],
)
def test_what_is_wrong_in_a_file_of_vllm_is_found(audit, changes, check):
    assert check in failed(audit(vllm_file(**changes)))


def test_a_server_with_one_slot_is_found(audit):
    itls = [[0.05] * 9] * 300
    one_slot = vllm_file(
        itls=itls,
        output_lens=[10] * 300,
        latencies=[0.55 if i % 2 == 0 else 1.05 for i in range(300)],
        ttfts=[0.1 if i % 2 == 0 else 0.6 for i in range(300)],
        start_times=[1.05 * (i // 2) for i in range(300)],
        duration=160.0,
    )
    assert "parallelism" in failed(audit(one_slot))


def test_old_files_of_vllm_have_no_clock(audit):
    old = {
        key: value
        for key, value in vllm_file().items()
        if key not in {"start_times", "queue_times", "latencies"}
    }
    found = audit(old)
    assert found.passed
    assert any("when each request was sent" in line for line in found.missing)
    assert any("when the load wanted" in line for line in found.missing)


def test_a_file_without_single_requests_asks_for_them(audit):
    summary = {k: v for k, v in vllm_file().items() if k not in {"ttfts", "itls", "output_lens"}}
    with pytest.raises(ResultError, match="--save-detailed"):
        audit(summary)


def test_guidellm(audit):
    found = audit(guidellm_file())
    assert (found.tool, found.title) == ("GuideLLM", "constant")
    assert failed(found) == {"samples", "coordinated-omission"}  # 20 requests, 200 ms in a queue
    found = audit(guidellm_file(num_failed=3))
    (errors,) = (check for check in found.checks if check.name == "requests-served")
    assert not errors.passed
    assert errors.detail == "20 of 23 requests served; first error: HTTP 500"


def test_aiperf(audit):
    lines = [aiperf_line(i) for i in range(300)]
    lines.append(aiperf_line(0, metadata=lines[0]["metadata"] | {"benchmark_phase": "warmup"}))
    found = audit("\n".join(map(json.dumps, lines)))
    assert found.tool == "AIPerf"
    assert failed(found) == set()
    error = {"code": 499, "type": "Cancelled", "message": "too slow"}
    lines[7] = aiperf_line(7, error=error, metrics={})
    found = audit("\n".join(map(json.dumps, lines)))
    assert failed(found) == {"requests-served"}
    assert "Cancelled: too slow" in next(c.detail for c in found.checks if not c.passed)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_a_line_of_json_ends_at_a_line_feed_only(audit, character):
    lines = [json.dumps(aiperf_line(i), ensure_ascii=False) for i in range(300)]
    error = {"code": 1, "type": "Odd", "message": f"a{character}b"}
    lines[7] = json.dumps(aiperf_line(7, error=error, metrics={}), ensure_ascii=False)
    assert failed(audit("\n".join(lines))) == {"requests-served"}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, set()),
        ({"samples_ts": [119.0, 120.0]}, {"samples"}),
        ({"samples_ts": [150.0, 119.0, 90.0, 119.0, 117.0]}, {"spread"}),
        ({"samples_ts": [131.0, 125.0, 119.0, 113.0, 107.0]}, {"drift"}),
        ({"avg_ts": 140.0}, {"recomputed:avg_ts"}),
        ({"n_gen_warmup": 0}, {"warm-up"}),
    ],
)
def test_llama_bench(audit, changes, wrong):
    found = audit([LLAMA_BENCH | changes])
    assert found.title == "llama 1B Q4_0 tg128"
    assert failed(found) == wrong
    assert "a server of the same model is slower" in found.missing[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a result of vllm bench"),
        ("[]", "no JSON objects"),
        ("[1]", "no JSON objects"),
        ("{", "not a whole JSON file"),
        ("[" * 100_000, "not a whole JSON file"),
        (json.dumps(vllm_file(itls=[[0.1]])), "looks like a file of vllm bench, but is not whole"),
        (json.dumps(LLAMA_BENCH | {"avg_ts": None}), "a file of llama-bench, but is not whole"),
        (
            json.dumps(LLAMA_BENCH | {"samples_ts": [0, 0]}),
            "a file of llama-bench, but is not whole",
        ),
        (json.dumps(LLAMA_BENCH | {"samples_ts": "?"}), "a file of llama-bench, but is not whole"),
        (json.dumps({"benchmarks": [{}]}), "looks like a file of GuideLLM, but is not whole"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        audit_file(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ResultError, match="cannot be read"):
        audit_file(tmp_path / "none.json")
