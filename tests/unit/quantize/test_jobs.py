"""Several jobs from one pass: each is what it would be alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from llmopt.errors import OutputError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.models.loader import load_model
from llmopt.quantize import block_stream
from llmopt.quantize.block_stream import BlockStream
from llmopt.quantize.options import Job, RunOptions, SilentObserver
from llmopt.quantize.override import parse_override
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

SCHEMES = (
    "rtn-w4g32",
    "gptq-w4g32",
    "gptq-w3g32",
    "qronos-w4g32-asym",
    "awq-w4g32-asym",
    "awq+gptq-w4g32-asym",
    "nf4-dq",
    "fp4",
    "int8",
    "w8a16",
    "w8a8",
    "fp8",
)
SHARED = ("gptq-w4g32", "awq+gptq-w4g32-asym", "w8a8")


def job(name, **settings):
    scheme = parse_scheme(name)
    return Job(scheme, default_format(scheme), **settings)


def quantize(source, out, names, tokens, *, cache=None, **settings):
    outputs = {out / name: job(name, **settings) for name in names}
    run = RunOptions(calibration=tokens, cache=cache)
    return quantize_jobs(source, outputs, out.parent / f".{out.name}.resume", run)


@pytest.fixture(scope="module")
def together(spread_source, tokens, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("together") / "all"
    quantize(spread_source, out, SCHEMES, tokens)
    return out


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_read_by_our_runtime(together, spread_source, tokens, name, hidden_states):
    found, base = (load_model(p, dtype="float32") for p in (together / name, spread_source))
    expected = hidden_states(base, tokens.tokens[:1])
    error = (hidden_states(found, tokens.tokens[:1]) - expected).square().mean()
    is_fine = name in ("int8", "w8a16", "w8a8", "fp8")
    assert 0 < error / expected.square().mean() < (0.02 if is_fine else 0.3)


@pytest.mark.parametrize(
    "name", ["rtn-w4g32", "gptq-w4g32", "qronos-w4g32-asym", "awq-w4g32-asym", "w8a8"]
)
def test_a_job_makes_the_same_bytes_alone(
    together, spread_source, tokens, tmp_path, name, directory_bytes
):
    quantize(spread_source, tmp_path / "out", [name], tokens)
    assert directory_bytes(tmp_path / "out" / name) == directory_bytes(together / name)


def test_cached_statistics_need_no_forward_pass_and_change_nothing(
    spread_source, tokens, tmp_path, monkeypatch, directory_bytes
):
    for cache, out in ((None, "none"), (tmp_path / "cache", "cold")):
        quantize(spread_source, tmp_path / out, SHARED, tokens, cache=cache, propagate=False)
    with monkeypatch.context() as patch:
        patch.setattr(BlockStream, "walk", None)
        patch.setattr(BlockStream, "embed", None)
        cache = tmp_path / "cache"
        quantize(spread_source, tmp_path / "warm", SHARED, tokens, cache=cache, propagate=False)
    assert directory_bytes(tmp_path / "none") == directory_bytes(tmp_path / "cold")
    assert directory_bytes(tmp_path / "none") == directory_bytes(tmp_path / "warm")


def test_damaged_cached_statistics_are_computed_again(
    spread_source, tokens, tmp_path, directory_bytes
):
    cache = tmp_path / "cache"
    quantize(spread_source, tmp_path / "first", SHARED, tokens, cache=cache, propagate=False)
    (file,) = cache.glob("*/block-00001-output-hessian.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    quantize(spread_source, tmp_path / "again", SHARED, tokens, cache=cache, propagate=False)
    assert directory_bytes(tmp_path / "first") == directory_bytes(tmp_path / "again")


def test_inputs_that_do_not_fit_are_computed_again_to_the_same_bytes(
    together, spread_source, tokens, tmp_path, monkeypatch, directory_bytes
):
    monkeypatch.setattr(block_stream, "KEEP_BYTES", 0)
    quantize(spread_source, tmp_path / "out", ["gptq-w4g32"], tokens)
    name = "gptq-w4g32"
    assert directory_bytes(tmp_path / "out" / name) == directory_bytes(together / name)


def test_calibrating_on_the_source_gives_other_codes_but_a_good_model(
    together, spread_source, tokens, tmp_path, hidden_states
):
    name = "gptq-w4g32"
    quantize(spread_source, tmp_path / "out", [name], tokens, propagate=False)
    base = hidden_states(load_model(spread_source, dtype="float32"), tokens.tokens)
    errors = {
        path: (hidden_states(load_model(path, dtype="float32"), tokens.tokens) - base)
        .square()
        .mean()
        for path in (tmp_path / "out" / name, together / name, together / "rtn-w4g32")
    }
    on_source, on_prefix, rtn = errors.values()
    assert on_source != on_prefix
    assert on_source < 0.8 * rtn


def test_smoothing_helps_where_channels_are_uneven(together, spread_source):
    """Only W8A8 changes norms here, and by what it divided the weights have grown."""
    written, original = (CheckpointReader(p) for p in (together / "w8a8", spread_source))
    norms = [name for name in original.names() if name.endswith("_layernorm.weight")]
    assert all(not torch.equal(written.tensor(n), original.tensor(n)) for n in norms)
    plain = CheckpointReader(together / "fp8")
    assert all(torch.equal(plain.tensor(name), original.tensor(name)) for name in norms)


def test_overrides_reach_the_modules(spread_source, tokens, tmp_path, hidden_states):
    overrides = (
        "*.down_proj=bits:8,group:96",
        "*.layers.1.*=skip",
        "*.layers.1.mlp.down_proj=skip",
    )
    settings = {"overrides": tuple(parse_override(text) for text in overrides)}
    (summary,) = quantize(spread_source, tmp_path / "out", ["gptq-w4g32"], tokens, **settings)
    bits = {record.name: (record.bits, record.group_size) for record in summary.modules}
    assert len(bits) == 14
    assert bits["model.layers.0.mlp.down_proj"] == (8, 96)
    assert bits["model.layers.2.mlp.up_proj"] == (4, 32)
    reader = CheckpointReader(summary.out)
    assert "model.layers.1.self_attn.q_proj.weight" in reader
    found, base = (load_model(p, dtype="float32") for p in (summary.out, spread_source))
    expected = hidden_states(base, tokens.tokens[:1])
    error = (hidden_states(found, tokens.tokens[:1]) - expected).square().mean()
    assert error < 0.05 * expected.square().mean()


@pytest.mark.parametrize("method", ["awq-w4g32-asym", "w8a8"])
def test_what_is_skipped_is_not_scaled(spread_source, tokens, tmp_path, method):
    settings = {
        "overrides": (
            parse_override("*.o_proj=skip"),
            parse_override("*.gate_proj=skip"),
            parse_override("*.up_proj=skip"),
        )
    }
    (summary,) = quantize(spread_source, tmp_path / "out", [method], tokens, **settings)
    written, original = CheckpointReader(summary.out), CheckpointReader(spread_source)
    quantized = {f"{record.name}.weight" for record in summary.modules}
    shared = (set(written.names()) & set(original.names())) - quantized
    assert "model.layers.0.self_attn.o_proj.weight" in shared
    assert all(torch.equal(written.tensor(n), original.tensor(n)) for n in shared)


def test_global_random_states_are_not_touched(spread_source, tokens, tmp_path):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    quantize(spread_source, tmp_path / "out", ["gptq-w4g32", "awq-w4g32", "nf4"], tokens)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_summaries_say_what_was_spent(spread_source, tokens, tmp_path):
    summaries = quantize(spread_source, tmp_path / "out", ["gptq-w4g32", "nf4"], tokens)
    assert [summary.scheme for summary in summaries] == ["gptq-w4g32", "nf4"]
    assert all(summary.seconds > 0 and summary.shared_seconds > 0 for summary in summaries)
    assert all(summary.peak_memory.host_bytes > 1 << 20 for summary in summaries)
    assert summaries[1].modules[0].loss is None
    assert summaries[1].modules[0].stored_as == "nf4"


def test_two_outputs_of_which_one_exists_are_refused(spread_source, tokens, tmp_path):
    (tmp_path / "out" / "nf4").mkdir(parents=True)
    with pytest.raises(OutputError, match="nf4 exists already"):
        quantize(spread_source, tmp_path / "out", ["rtn-w4g32", "nf4"], tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_scheme_in_a_format_that_is_not_its_own_is_refused(spread_source, tmp_path):
    wrong = Job(parse_scheme("nf4"), "gptq")
    with pytest.raises(QuantizationError, match="nf4 cannot be stored as gptq"):
        quantize_jobs(spread_source, {tmp_path / "out": wrong}, tmp_path / ".j", RunOptions())


def test_a_watcher_hears_of_every_block(spread_source, tokens, tmp_path):
    class Watcher(SilentObserver):
        def __init__(self):
            self.blocks = []
            self.sizes = None

        def blocks_started(self, done, total):
            self.sizes = (done, total)

        def block_finished(self, block, num_blocks):
            self.blocks.append((block, num_blocks))

    watcher = Watcher()
    outputs = {tmp_path / name: job(name) for name in ("rtn-w4g32", "nf4")}
    quantize_jobs(spread_source, outputs, tmp_path / ".j", RunOptions(), watcher)
    assert watcher.blocks == [(0, 3), (1, 3), (2, 3)]
    assert watcher.sizes == (0, 2 * 21)


HEADS = ("rtn-w8", "gptq-w4g32", "qronos-w4g32", "awq-w4g32-asym", "w8a16", "fp8")


@pytest.fixture(scope="module")
def untied_source(make_spread_source) -> Path:
    return make_spread_source(num_hidden_layers=2, initializer_range=0.08)


def head_jobs(out, names=HEADS, **settings):
    return {
        out / name: Job(
            scheme, "compressed-tensors" if scheme.uses_awq else default_format(scheme), **settings
        )
        for name, scheme in ((name, parse_scheme(name)) for name in names)
    }


@pytest.mark.parametrize("propagate", [True, False])
def test_the_output_head_is_quantized_too(untied_source, tokens, tmp_path, propagate):
    names = [name for name in HEADS if propagate or not name.startswith("qronos")]
    outputs = head_jobs(tmp_path, names, lm_head=True, propagate=propagate)
    run = RunOptions(calibration=tokens)
    summaries = quantize_jobs(untied_source, outputs, tmp_path / ".j", run)
    base = load_model(untied_source, dtype="float32")
    hidden = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for summary in summaries:
        assert summary.modules[-1].name == "lm_head"
        assert "lm_head.weight_scale" in CheckpointReader(summary.out) or (
            "lm_head.qweight" in CheckpointReader(summary.out)
        )
        model = load_model(summary.out, dtype="float32")
        found, expected = model.compute_logits(hidden), base.compute_logits(hidden)
        error = (found - expected).square().mean() / expected.square().mean()
        assert 0 < error < (0.03 if "w4" in summary.scheme else 0.002), summary.scheme


def test_the_head_has_settings_of_its_own(untied_source, tokens, tmp_path):
    settings = {"lm_head": True, "overrides": (parse_override("lm_head=bits:8,group:64"),)}
    outputs = head_jobs(tmp_path, ["gptq-w4g32"], **settings)
    (summary,) = quantize_jobs(untied_source, outputs, tmp_path / ".j", RunOptions(tokens))
    assert [record.bits for record in summary.modules] == [4] * 14 + [8]
    load_model(summary.out)


def test_a_job_without_the_head_runs_beside_one_with_it(
    untied_source, tokens, tmp_path, directory_bytes
):
    both = head_jobs(tmp_path, ["gptq-w4g32"], lm_head=True) | head_jobs(tmp_path, ["nf4"])
    quantize_jobs(untied_source, both, tmp_path / ".j", RunOptions(tokens))
    quantize(untied_source, tmp_path / "alone", ["nf4"], tokens)
    assert directory_bytes(tmp_path / "nf4") == directory_bytes(tmp_path / "alone" / "nf4")


@pytest.mark.parametrize(
    ("name", "format_name", "tied", "message"),
    [
        ("gptq-w4g32", "gptq", True, "is its embedding, which only GGUF"),
        ("awq-w4g32", "awq", False, "no way to quantize the output head"),
        ("nf4", "bitsandbytes", False, "no way to quantize the output head"),
        ("w8a8", "compressed-tensors", False, "no way to quantize the output head"),
    ],
)
def test_heads_that_cannot_be_quantized_are_said(
    spread_source, untied_source, tokens, tmp_path, name, format_name, tied, message
):
    wish = Job(parse_scheme(name), format_name, lm_head=True)
    source = spread_source if tied else untied_source
    with pytest.raises(QuantizationError, match=message):
        quantize_jobs(source, {tmp_path / "out": wish}, tmp_path / ".j", RunOptions(tokens))


def test_skipped_modules_are_named_in_a_bitsandbytes_config(spread_source, tmp_path):
    settings = {"overrides": (parse_override("*.down_proj=skip"),)}
    (summary,) = quantize(spread_source, tmp_path / "out", ["nf4"], None, **settings)
    skipped = CheckpointReader(summary.out).config["quantization_config"]["llm_int8_skip_modules"]
    assert skipped == [*(f"model.layers.{i}.mlp.down_proj" for i in range(3)), "lm_head"]
    load_model(summary.out)


def test_qronos_cannot_do_without_the_quantized_blocks():
    with pytest.raises(QuantizationError, match="cannot do without them"):
        job("qronos-w4g32", propagate=False)
