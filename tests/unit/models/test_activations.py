"""The choice of what activations are rounded to before quantized weights."""

import pytest
import torch

from llmopt.errors import UsageError
from llmopt.layers.native_linear import library_for
from llmopt.models.dummy import make_dummy_model
from llmopt.models.loader import load_model, resolve_activations
from llmopt_kernels.paged_attention.metadata import AttentionMetadata


@torch.inference_mode()
def logits(model, length: int = 24) -> torch.Tensor:
    ids = torch.randint(0, 100, (length,), generator=torch.Generator().manual_seed(0))
    hidden = model.forward(ids, torch.arange(length), AttentionMetadata.dense([length]))
    return model.compute_logits(hidden).float()


def test_an_unknown_choice_is_refused(tiny_llama):
    with pytest.raises(UsageError, match="activations of 'int4' are not supported"):
        load_model(tiny_llama, activations="int4")


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_rounding_that_this_dtype_has_not_is_refused(tiny_llama, activations):
    with pytest.raises(UsageError, match=f"{activations} were asked for, and float32 on cpu"):
        load_model(tiny_llama, dtype="float32", activations=activations)
    with pytest.raises(UsageError, match=r"float16 on cpu has none\. Only bfloat16"):
        make_dummy_model(tiny_llama, dtype="float16", activations=activations)
    with pytest.raises(UsageError, match="bfloat16 on cuda has none"):
        resolve_activations(activations, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("activations", ["auto", "bf16"])
def test_nothing_is_rounded_where_it_cannot_be(tiny_llama, activations):
    exact = make_dummy_model(tiny_llama, dtype="float32", scheme="w4g32", activations=activations)
    assert not any(kernel.startswith("native") for kernel in exact.kernels)
    assert resolve_activations(activations, torch.bfloat16, torch.device("cuda")) == activations


def test_random_weights_meet_the_activations_that_were_asked_for(tiny_llama):
    if library_for(torch.bfloat16, torch.device("cpu")) is None:
        pytest.skip("the C++ kernels are off or cannot be compiled here")

    def kernels(activations):
        model = make_dummy_model(
            tiny_llama, dtype="bfloat16", scheme="w4g32", activations=activations
        )
        return {name for name in model.kernels if "4" in name}

    assert kernels("int8") == kernels("auto") == {"native w4a8"}
    assert kernels("int16") == {"native w4a16"}
    assert not kernels("bf16") & {"native w4a8", "native w4a16"}


def test_bfloat16_weights_compute_as_accurately_with_and_without_the_kernels(
    tiny_llama, monkeypatch
):
    if library_for(torch.bfloat16, torch.device("cpu")) is None:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    on = load_model(tiny_llama, dtype="bfloat16")
    assert on.kernels == ("native bf16",)
    compiled = logits(on)
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    off = load_model(tiny_llama, dtype="bfloat16")
    assert off.kernels == ("dense",)
    exact = logits(load_model(tiny_llama, dtype="float32"))
    assert (compiled - exact).norm() < 1.2 * (logits(off) - exact).norm()


def test_int8_activations_change_the_logits_a_little_and_the_accurate_path_does_not(
    tiny_llama, monkeypatch
):
    if library_for(torch.bfloat16, torch.device("cpu")) is None:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    int8 = make_dummy_model(tiny_llama, dtype="bfloat16", scheme="w4g32")
    assert "native w4a8" in int8.kernels
    fast = logits(int8)
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    accurate = logits(make_dummy_model(tiny_llama, dtype="bfloat16", scheme="w4g32"))
    difference = (fast - accurate).norm() / accurate.norm()
    assert 0 < difference < 5e-2
