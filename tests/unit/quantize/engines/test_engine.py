"""What engines can do, and how a request that they cannot serve is refused."""

from pathlib import Path

import pytest
import torch

from llmopt.environment.catalogue import find_environment
from llmopt.errors import QuantizationError, UsageError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.engines.catalogue import ENGINES, find_engine
from llmopt.quantize.engines.request import EngineRequest
from llmopt.quantize.engines.worker import WORKERS

DATA = CalibrationData(torch.zeros(2, 8, dtype=torch.int64), "zeros", "", 0)


def request(method: str, spec: QuantSpec | None = None, **changes) -> EngineRequest:
    return EngineRequest(Path("m"), Path("o"), method, spec, **{"calibration": DATA, **changes})


def refusal(engine: str, asked: EngineRequest) -> str | None:
    try:
        find_engine(engine).check(asked)
    except (QuantizationError, UsageError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_every_engine_has_an_environment_and_a_worker(engine):
    environment = find_environment(engine.environment)
    assert environment.package in engine.packages
    assert environment.needs_cuda == engine.needs_cuda
    assert (WORKERS / engine.worker).is_file()


def test_an_unknown_engine_lists_the_known_ones():
    with pytest.raises(UsageError, match="Choose one of gptqmodel, bitsandbytes"):
        find_engine("quanto")


@pytest.mark.parametrize(
    ("engine", "asked"),
    [
        ("gptqmodel", request("gptq", QuantSpec(3, None, symmetric=False))),
        ("gptqmodel", request("awq", QuantSpec(4, 64, symmetric=False))),
        ("bitsandbytes", request("nf4", double_quant=True, calibration=None)),
        ("bitsandbytes", request("int8", calibration=None)),
        ("llm-compressor", request("w8a8")),
        ("llm-compressor", request("fp8", calibration=None)),
        ("auto-gptq", request("gptq", QuantSpec(4, 128))),
        ("llama.cpp", request("gguf", gguf_type="q4_k_m", calibration=None)),
    ],
)
def test_what_is_offered_is_accepted_there_and_refused_elsewhere(engine, asked):
    assert refusal(engine, asked) is None
    others = {"llama.cpp", "bitsandbytes"} - {engine}
    assert all("offers" in (refusal(other, asked) or "") for other in others)


@pytest.mark.parametrize(
    ("engine", "asked", "said"),
    [
        ("bitsandbytes", request("gptq", QuantSpec(4, 64)), "It offers nf4, fp4, int8"),
        ("gptqmodel", request("awq", QuantSpec(8, 64)), "no 8-bit weights. Choose 4"),
        ("gptqmodel", request("gptq", QuantSpec(4, 48)), "group size of 48.*or one group per ch"),
        ("gptqmodel", request("gptq"), "needs a number of bits"),
        ("autoawq", request("awq", QuantSpec(4, 64)), "makes no symmetric weights"),
        ("autoawq", request("awq", QuantSpec(4, None, False)), "one group per channel"),
        ("llm-compressor", request("w8a8", double_quant=True), "Leave double quantization out"),
        ("llama.cpp", request("gguf", gguf_type="q9"), "type q9.*q4_k_m"),
        ("llama.cpp", request("gguf"), "type None"),
    ],
)
def test_what_is_not_offered_is_refused_in_words_that_help(engine, asked, said):
    with pytest.raises((QuantizationError, UsageError), match=said):
        find_engine(engine).check(asked)


def test_methods_that_look_at_data_ask_for_it():
    with pytest.raises(UsageError, match="needs calibration tokens"):
        find_engine("llm-compressor").check(request("w8a8", calibration=None))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (request("gptq", QuantSpec(4, 64)), "gptq-w4g64"),
        (request("nf4"), "nf4"),
        (request("fp4", double_quant=True), "fp4-dq"),
        (request("gguf", gguf_type="q4_k_m"), "gguf-q4_k_m"),
    ],
)
def test_names_of_schemes(asked, name):
    assert asked.scheme == name
