from pathlib import Path

import pytest

from llmopt.errors import QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.quantize.checks import SourceFacts, check_jobs
from llmopt.quantize.journal import journal_path
from llmopt.quantize.options import Job, RunOptions
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.plan import plan_config, plan_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

NAMES = ("gptq-w4g32", "awq-w4g32-asym", "nf4-dq", "int8", "w8a8", "w8a16", "fp8")


def outputs_in(out: Path) -> dict[Path, Job]:
    schemes = [parse_scheme(name) for name in NAMES]
    return {out / s.label: Job(s, default_format(s)) for s in schemes}


@pytest.fixture(scope="module")
def run(tokens) -> RunOptions:
    return RunOptions(calibration=tokens)


def test_a_plan_foresees_sizes_and_leaves_nothing(spread_source, run, tmp_path):
    outputs = outputs_in(tmp_path / "out")
    plan = plan_jobs(spread_source, outputs, run)
    assert list(tmp_path.iterdir()) == []
    assert (plan.num_blocks, plan.measured_blocks, plan.num_tokens) == (3, 2, 512)
    summaries = quantize_jobs(spread_source, outputs, journal_path(tmp_path / "out"), run)
    for planned, summary in zip(plan.outputs, summaries, strict=True):
        assert planned.scheme == summary.scheme
        headers = 1 << 20  # tiny weights drown in them
        assert abs(planned.file_bytes - headers - summary.file_bytes) < 64 << 10
    assert plan.peak is not None
    assert 0.8 < plan.peak.host_bytes / summaries[-1].peak_memory.host_bytes < 1.2


def test_phases_add_up(spread_source, run, tmp_path):
    plan = plan_jobs(spread_source, outputs_in(tmp_path / "out"), run)
    assert plan.seconds == pytest.approx(sum(plan.phases.values()))
    assert all(seconds >= 0 for seconds in plan.phases.values())
    assert {f"quantize to {name}" for name in NAMES} < set(plan.phases)
    assert all(output.seconds is not None and output.seconds > 0 for output in plan.outputs)


def test_one_block_is_a_whole_model(make_spread_source, run, tmp_path):
    plan = plan_jobs(make_spread_source(num_hidden_layers=1), outputs_in(tmp_path / "out"), run)
    assert (plan.num_blocks, plan.measured_blocks) == (1, 1)


def test_a_config_alone_gives_the_same_sizes(spread_source, run, tmp_path):
    outputs = outputs_in(tmp_path / "out")
    config = CheckpointReader(spread_source).config
    alone = plan_config(config, list(outputs.values()), run.calibration.tokens.numel())
    tried = plan_jobs(spread_source, outputs, run)
    assert alone.seconds is None
    assert alone.peak is None
    assert alone.footprint == tried.footprint
    for one, other in zip(alone.outputs, tried.outputs, strict=True):
        assert one.bits_per_weight == other.bits_per_weight
        assert one.file_bytes == pytest.approx(other.file_bytes, rel=0.02)  # biases are not known


def test_windows_that_the_model_cannot_read_are_refused(make_tiny_llama, run, tmp_path):
    source = make_tiny_llama(max_position_embeddings=63)
    with pytest.raises(UsageError, match="at most 63 tokens, and the calibration samples have 64"):
        plan_jobs(source, outputs_in(tmp_path / "out"), run)
    assert list(tmp_path.iterdir()) == []


def test_what_is_impossible_is_refused(spread_source, run, tmp_path):
    jobs = {tmp_path / "out": Job(parse_scheme("gptq-w4g48"), "gptq")}
    with pytest.raises(QuantizationError, match="group size 48"):
        plan_jobs(spread_source, jobs, run)
    with pytest.raises(QuantizationError, match="group size 48"):
        plan_config(CheckpointReader(spread_source).config, list(jobs.values()), 512)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_a_gguf_file_is_planned_from_a_config_alone(make_tiny_model, model_type):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 32}
    gemma = {"query_pre_attn_scalar": 32, "tie_word_embeddings": True}
    settings = gemma if model_type.startswith("gemma") else {}
    reader = CheckpointReader(make_tiny_model(model_type, **sizes, **settings))
    job = Job(parse_scheme("gguf-q4_k_m"), "gguf", gguf_pre="smollm")
    plan = plan_config(reader.config, [job], 512)
    assert plan.outputs[0].file_bytes > 0
    (checked,) = check_jobs(SourceFacts.of_checkpoint(reader), [job])
    assert plan.outputs[0].file_bytes == checked.size.total_bytes
