from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.results.schema import (
    BackendFacts,
    CalibrationFacts,
    Ceilings,
    CellResult,
    CostModel,
    DeltaP,
    Environment,
    LoadSpec,
    ModelFacts,
    NoiseFloor,
    Percentiles,
    QualityRecord,
    QuantizationRecord,
    RunRecord,
    Summary,
    ValidityCheck,
    Verdict,
)

NOTE = "Measured against the dequantized package weights, channels permuted."

# name: scheme, file bytes, bits per weight, KLD, top-1, PPL ratio, tok/s at concurrency 1 and 8
TARGETS = {
    "fp32": ("fp32", 538e6, 32.0, 0.0, 1.0, 1.0, 21.4, 84.0),
    "bf16": ("bf16", 269e6, 16.0, 0.00041, 0.991, 0.9999, 39.7, 150.2),
    "rtn-w4g64": ("rtn-w4g64", 114e6, 6.79, 0.42, 0.641, 1.334, 71.3, 171.0),
    "gptq-w4g64": ("gptq-w4g64", 114e6, 6.79, 0.294, 0.685, 1.312, 70.8, 170.1),
    "gptq-w8g64": ("gptq-w8g64", 168e6, 10.0, 0.0019, 0.972, 1.0012, 52.6, 160.4),
}


def percentiles(p50: float) -> Percentiles:
    return Percentiles(p50, 1.1 * p50, 1.15 * p50, 1.3 * p50, 1.02 * p50, 12)


def model_facts(target: str) -> ModelFacts:
    scheme, file_bytes, bits, *_ = TARGETS[target]
    return ModelFacts(
        name="smollm2-135m",
        path_hash="00" * 32,
        architecture="LlamaForCausalLM",
        scheme=scheme,
        compute_dtype="float32",
        num_parameters=134_515_008,
        file_bytes=int(file_bytes),
        weight_bytes=int(file_bytes),
        bits_per_weight=bits,
        linear_bits_per_weight=4.25 if "w4" in scheme else None,
        kernels=("torch",),
        note=NOTE,
    )


def quality_record(target: str) -> QualityRecord:
    _, _, _, kld, top1, ratio, *_ = TARGETS[target]
    return QualityRecord(
        base_name="smollm2-135m",
        base_scheme="fp32",
        text_name="evaluation.txt",
        text_sha256="ab" * 32,
        protocol="windows of 512, all positions scored, first 16",
        window=512,
        num_windows=16,
        num_tokens=8176,
        kld_mean=kld,
        kld_mean_ci=(0.93 * kld, 1.08 * kld),
        kld_median=0.7 * kld,
        kld_p99=5 * kld,
        kld_max=9 * kld,
        top1_agreement=top1,
        top1_agreement_ci=(top1 - 0.01, top1 + 0.01),
        ppl=36.1 * ratio,
        base_ppl=36.1,
        ppl_ratio=ratio,
        ppl_ratio_ci=(ratio - 0.02, ratio + 0.02),
    )


def judge(result: CellResult) -> CellResult:
    """The result with a noise floor of 0.0004 and the verdict that follows."""
    quality = result.quality
    if quality is None:
        return result
    noise = NoiseFloor("bf16", 0.0004, (0.00038, 0.00042), 1.0001, (0.9996, 1.0006))
    times = quality.kld_mean / noise.kld_mean
    label = "worse" if quality.ppl_ratio > 1.01 else "above noise"
    verdict = Verdict(
        "indistinguishable" if times < 1.1 else label,
        times,
        (0.9 * times, 1.1 * times),
        "The evidence.",
    )
    change = DeltaP(-0.01, (-0.02, -0.005), 0.1, -0.5, -0.3, -0.1, -0.001, 0.1, 0.2, 0.4)
    judged = replace(
        quality, noise=noise, verdict=verdict, delta_p=change, kld_p90=0.9, bits_per_byte=1.25
    )
    return replace(result, quality=judged)


def summary(throughput: float, concurrency: int) -> Summary:
    tpot_ms = 1000 * concurrency / throughput
    return Summary(
        ttft_ms=percentiles(4 * tpot_ms),
        tpot_ms=percentiles(tpot_ms),
        itl_ms=percentiles(tpot_ms),
        e2e_ms=percentiles(68 * tpot_ms),
        output_throughput=throughput,
        total_throughput=3 * throughput,
        request_throughput=throughput / 64,
        mfu=throughput / 500,
        mbu=throughput / 250,
        run_output_throughput=(0.98 * throughput, throughput, 1.03 * throughput),
        run_tpot_ms=(1.02 * tpot_ms, tpot_ms, 0.97 * tpot_ms),
    )


def build(like: str = "gptq-w4g64", concurrency: int = 1, **changes: object) -> CellResult:
    throughput = TARGETS[like][6 if concurrency == 1 else 7]
    runs = tuple(RunRecord(repeat, "2026-11-22T10:00:00Z", 0, 1.0, (), {}) for repeat in range(3))
    result = CellResult(
        cell_id=f"demo-{like}-c{concurrency}",
        recipe_name="demo",
        recipe={"name": "demo", "targets": [{"name": name} for name in list(TARGETS)[1:]]},
        target=like,
        base_target="fp32",
        model=model_facts(like),
        backend=BackendFacts("llmopt", "0.1.0", {}),
        load=LoadSpec(concurrency, 4 * concurrency, 128, 64, 1),
        environment=Environment(
            device="Test CPU",
            cores=2,
            memory_bytes=8_000_000_000,
            os="Linux",
            python="3.11.7",
            torch="2.13.0",
            transformers="5.23.0",
            llmopt="0.1.0",
            git_sha="0123456789",
            git_dirty=False,
            num_threads=2,
        ),
        ceilings=Ceilings(
            {"float32": 98.3e9, "bfloat16": 205e9}, 9.1e9, 11.4e9, "2026-11-22T09:00:00Z", 2, "cpu"
        ),
        cost=CostModel(2, 2, 2, 2, 2),
        runs=runs,
        quality=None if like == "fp32" else quality_record(like),
        validity=(ValidityCheck("requests", True, "4 of 4 succeeded"),),
        summary=summary(throughput, concurrency),
        error=None,
        created_at="2026-11-22T10:05:00Z",
    )
    return replace(result, **changes)


@pytest.fixture
def make_result() -> Callable[..., CellResult]:
    """Build a result of one of the five demo targets, with any field changed."""
    return build


@pytest.fixture
def demo_results() -> list[CellResult]:
    """The ten cells of the demo, in no useful order."""
    return [build(target, concurrency) for target in sorted(TARGETS) for concurrency in (8, 1)]


@pytest.fixture
def judged() -> Callable[[CellResult], CellResult]:
    """Give a result a noise floor and a verdict, as newer sweeps do."""
    return judge


# name: bits per weight of the linear layers, KLD
METHODS = {
    "rtn-w4g64": (4.36, 0.394),
    "rtn-w4g64-asym": (4.43, 0.25),
    "gptq-w4g64": (4.36, 0.27),
    "gptq-w4g64-asym": (4.43, 0.19),
    "awq-w4g64": (4.31, 0.21),
    "awq-w4g64-asym": (4.31, 0.15),
    "awq+gptq-w4g64": (4.31, 0.16),
    "awq+gptq-w4g64-asym": (4.31, 0.115),
    "gptqmodel-gptq-w4g64": (4.36, 0.314),
    "gptq-w3g64-asym": (3.42, 0.9),
    "awq+gptq-w3g64-asym": (3.42, 0.6),
    "rtn-w8": (8.05, 0.004),
    "gptq-w8g64": (8.36, 0.0018),
    "nf4": (4.5, 0.2),
    "nf4-dq": (4.13, 0.205),
    "fp4": (4.5, 0.36),
    "int8": (8.03, 0.006),
    "w8a16": (8.05, 0.0035),
    "w8a8": (8.05, 0.01),
    "fp8": (8.02, 0.02),
    "gguf-q2_k": (3.3, 0.9),
    "gguf-q3_k_m": (4.0, 0.35),
    "gguf-q4_0": (4.5, 0.3),
    "gguf-q4_k_m": (4.95, 0.13),
    "gguf-q5_k_m": (5.7, 0.03),
    "gguf-q6_k": (6.56, 0.012),
    "gguf-q8_0": (8.5, 0.002),
}


def build_method(name: str, **changes: object) -> CellResult:
    bits, kld = METHODS[name]
    result = build("gptq-w4g64")
    assert result.model is not None
    assert result.quality is not None
    own = not name.startswith("gptqmodel")
    scheme = name.removeprefix("gptqmodel-")
    seen = CalibrationFacts("bundled", "cd" * 32, 32, 512)
    made = QuantizationRecord(
        scheme=scheme,
        format="gguf" if scheme.startswith("gguf") else "gptq",
        engine="llmopt" if own else "gptqmodel",
        engine_version="0.1.0" if own else "7.6.0",
        seconds=12.34,
        shared_seconds=61.2 if own else None,
        host_peak_bytes=1_403_000_000,
        host_before_bytes=500_000_000,
        device_peak_bytes=None,
        num_threads=2,
        calibration=None if scheme.startswith("rtn") else seen,
        made_at="2026-11-22T10:00:00+00:00",
    )
    result = replace(
        result,
        cell_id=f"methods-{name}-quality",
        recipe_name="methods",
        recipe={"targets": [{"name": each} for each in METHODS]},
        target=name,
        model=replace(result.model, scheme=scheme, linear_bits_per_weight=bits),
        load=None,
        runs=(),
        summary=None,
        ceilings=None,
        validity=(),
        quality=replace(result.quality, kld_mean=kld, kld_mean_ci=(0.95 * kld, 1.06 * kld)),
        quantization=made,
    )
    return replace(result, **changes)


@pytest.fixture
def make_method() -> Callable[..., CellResult]:
    """Build a quality-only result of one of the methods, with any field changed."""
    return build_method


@pytest.fixture
def methods_results() -> list[CellResult]:
    """A base and all methods, in no useful order."""
    base = build("fp32", cell_id="methods-fp32-quality", recipe_name="methods", load=None)
    base = replace(base, runs=(), summary=None, ceilings=None, validity=())
    return [*(build_method(name) for name in sorted(METHODS)), base]
