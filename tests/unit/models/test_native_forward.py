"""The compiled forward pass computes what the decoder computes, for every architecture it takes."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.layers.native_linear import library_for
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.models.native_forward import MAX_MATRIX_ROWS, NativeForward, plain_caches
from llmopt_kernels.native_step.native import StepProfile
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.store_kv import Int8Cache

MODEL_TYPES = (
    "llama",
    "mistral",
    "smollm3",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "opt",
)
LENGTHS = (40, 7, 23)  # of sequences: beyond the tiny window of 9, and below it
MakeModel = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    library_for(torch.bfloat16, torch.device("cpu")) is None,
    reason="there are no compiled kernels here",
)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def path(request: pytest.FixtureRequest, make_tiny_model: MakeModel) -> Path:
    return make_tiny_model(request.param)


def native_of(model: Decoder) -> NativeForward:
    assert model.native is not None
    return model.native


def batch() -> tuple[torch.Tensor, torch.Tensor, AttentionMetadata]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 128, (sum(LENGTHS),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return ids, positions, AttentionMetadata.dense(LENGTHS)


@torch.inference_mode()
def logits(model: Decoder) -> torch.Tensor:
    return model.compute_logits(model.forward(*batch())).float()


@torch.inference_mode()
def native_logits(model: Decoder) -> torch.Tensor:
    native = native_of(model)
    return native.logits(native.forward(*batch(), None))


def error(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


def test_it_is_closer_to_float32_than_bfloat16_operations(path):
    exact = logits(load_model(path, dtype="float32"))
    model = load_model(path, dtype="bfloat16")
    compiled = native_logits(model)
    model.native = None
    assert compiled.dtype is torch.float32
    assert error(compiled, exact) < max(error(logits(model), exact), 2**-9)


@pytest.mark.parametrize("scheme", ["rtn-w4g32", "rtn-w8"])
def test_coded_weights(make_tiny_model, quantize_tiny, tmp_path, scheme):
    path = quantize_tiny(make_tiny_model("llama"), tmp_path / "model", scheme)
    model = load_model(path, dtype="bfloat16", activations="int8")
    compiled = native_logits(model)
    model.native = None
    assert error(compiled, logits(model)) < 2**-4  # the roundings to 8 bits differ by a hair


def test_steps_of_the_engine_go_through_it(path):
    model = load_model(path, dtype="bfloat16")
    native_of(model).profile = profile = StepProfile()
    tokens = generate(model)
    assert profile.seconds["attention"] > 0
    assert profile.seconds["output head"] > 0
    assert [len(t) for t in tokens] == [8, 8]


def generate(model: Decoder) -> list[list[int]]:
    config = EngineConfig(max_num_seqs=2, max_model_len=64, num_blocks=32, block_size=4)
    engine = Engine(model, config)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    for name, length in (("a", 5), ("b", 13)):
        engine.add_request(name, list(range(3, 3 + length)), params)
    found: dict[str, list[int]] = {"a": [], "b": []}
    while engine.has_unfinished():
        for output in engine.step():
            found[output.request_id].extend(output.token_ids)
    return list(found.values())


def test_it_keeps_no_cache_of_an_engine_that_is_gone(make_tiny_model):
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    config = EngineConfig(max_num_seqs=1, max_model_len=32, num_blocks=8, block_size=4)
    engine = Engine(model, config)
    engine.add_request("a", [3, 4, 5], SamplingParams(max_tokens=2, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
    first, _ = engine.runner.kv_cache[0]
    assert native_of(model).takes(engine.runner.kv_cache)
    seen = weakref.ref(first)
    del engine, first
    gc.collect()
    assert seen() is None


def test_many_logits_go_to_torch_where_the_head_is_a_plain_matrix(make_tiny_model):
    native = native_of(load_model(make_tiny_model("llama"), dtype="bfloat16"))
    assert native.takes_rows(MAX_MATRIX_ROWS)
    assert not native.takes_rows(MAX_MATRIX_ROWS + 1)


def test_hidden_states_of_either_path_have_logits(make_tiny_model):
    """The rows that sample are computed here; many rows, as of prompts, on torch."""
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    with torch.inference_mode():
        hidden = model.forward(*batch())
        few, many = model.compute_logits(hidden[:3]), model.compute_logits(hidden)
        model.native = None
        from_torch = model.forward(*batch())
    assert (hidden.dtype, from_torch.dtype) == (torch.float32, torch.bfloat16)
    assert (few.dtype, many.dtype) == (torch.float32, torch.bfloat16)
    assert error(many[:3].float(), few) < 2**-6
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    with torch.inference_mode():
        assert error(model.compute_logits(from_torch[:3]), few) < 2**-5


def test_what_is_chosen_does_not_depend_on_how_many_tokens_are(make_tiny_model):
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    with torch.inference_mode():
        hidden = model.forward(*batch())
        together = model.compute_sampling_logits(hidden)
        alone = [model.compute_sampling_logits(row) for row in hidden.split(1)]
    assert len(hidden) > MAX_MATRIX_ROWS
    assert together.dtype is torch.float32
    assert torch.equal(together, torch.cat(alone))


def test_a_step_of_many_requests_samples_from_float32(make_tiny_model, monkeypatch):
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    native, seen = native_of(model), []
    logits = native.logits
    monkeypatch.setattr(native, "logits", lambda hidden: seen.append(hidden) or logits(hidden))
    num_requests = MAX_MATRIX_ROWS + 1
    config = EngineConfig(max_num_seqs=num_requests, max_model_len=8, num_blocks=64, block_size=4)
    engine = Engine(model, config)
    for index in range(num_requests):
        engine.add_request(str(index), [3 + index], SamplingParams(max_tokens=1))
    engine.step()
    assert num_requests in [len(hidden) for hidden in seen]


def test_other_caches_go_to_torch(make_tiny_model):
    native = native_of(load_model(make_tiny_model("llama"), dtype="bfloat16"))
    values = torch.zeros(2, 4, 2, 16)
    plain = values.bfloat16()
    int8 = Int8Cache(values.to(torch.int8), torch.zeros(2, 4, 2, dtype=torch.bfloat16))
    assert native.takes([(plain, plain)])
    for cache in (values, values.to(torch.float8_e4m3fn), int8, plain.mT):
        assert plain_caches([(plain, plain), (plain, cache)]) is None
        assert not native.takes([(cache, cache)])


def test_what_it_lacks_is_said_once(make_tiny_model, capsys):
    model = load_model(make_tiny_model("mixtral"), dtype="bfloat16")
    capsys.readouterr()
    assert model.native is None
    assert model.native is None
    assert capsys.readouterr().err.count("no compiled forward pass has experts") == 1


def test_no_more_channels_are_rotated_than_a_head_has(make_tiny_model, capsys):
    model = load_model(make_tiny_model("llama"), dtype="bfloat16")
    model.frequencies = [(torch.ones(model.config.head_dim // 2 + 1), 1.0)]
    capsys.readouterr()
    assert model.native is None
    assert "rotates 18 of 16 channels" in capsys.readouterr().err


def test_other_dtypes_run_as_before(make_tiny_model, capsys):
    path = make_tiny_model("llama")
    capsys.readouterr()
    for dtype in ("float32", "float16"):
        assert load_model(path, dtype=dtype).native is None
    assert not capsys.readouterr().err


def test_it_can_be_turned_off(make_tiny_model, monkeypatch):
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    assert load_model(make_tiny_model("llama"), dtype="bfloat16").native is None
