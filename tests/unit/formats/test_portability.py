"""Verdicts on checkpoints whose fate is known from the engines' own code or issue threads."""

from typing import Any

import pytest

from llmopt.errors import CheckpointError
from llmopt.formats.portability import Verdict, check_portability
from llmopt.formats.portability_rules import ENGINES, READERS

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SMOLLM = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def shapes_of(hidden: int, inner: int, kv: int) -> dict[str, tuple[int, int]]:
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {f"model.layers.{block}.{name}": s for block in (0, 1) for name, s in sizes.items()}


LARGE = shapes_of(4096, 14336, 1024)
SMALL = shapes_of(576, 1536, 192)


def gptq(bits: int = 4, group_size: int = 128, sym: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if sym else "gptq_v2",
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": False,
        **more,
    }


def awq(group_size: int = 128, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
        **more,
    }


def compressed(
    format: str, bits: int, group_size: int | None, *, sym: bool = True, **more: Any
) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "float" if format == "float-quantized" else "int",
        "symmetric": sym,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        **more.pop("weights", {}),
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def judge(
    quant: dict[str, Any],
    model: dict[str, Any] = LLAMA_8B,
    shapes: dict[str, tuple[int, int]] = LARGE,
) -> dict[str, Verdict]:
    verdicts = check_portability(
        model | {"quantization_config": quant}, shapes, quant["quant_method"]
    )
    return {verdict.engine: verdict for verdict in verdicts}


def test_every_engine_and_storage_has_a_rule_with_a_source() -> None:
    storages = {storage for _, storage in READERS}
    assert set(READERS) == {(engine, storage) for engine in ENGINES for storage in storages}
    for (engine, storage), reader in READERS.items():
        assert (reader.engine, reader.storage) == (engine, storage)
        assert reader.source
        assert reader.kernels or reader.note
        assert reader.version


def test_the_plain_case_loads_everywhere_but_in_ggml() -> None:
    verdicts = judge(gptq())
    assert list(verdicts) == list(ENGINES)
    for engine in ("vLLM", "SGLang", "TGI"):
        assert verdicts[engine].status == "loads"
        assert verdicts[engine].gpu_counts == (1, 2, 4, 8)
    assert verdicts["vLLM"].kernels == ("Machete (Hopper)", "Marlin (NVIDIA from Turing)")
    assert verdicts["vLLM"].evidence == "source"
    assert verdicts["gptqmodel"].evidence == verdicts["transformers"].evidence == "run"
    for engine in ("llama.cpp", "Ollama"):
        assert verdicts[engine].status == "refused"
        assert "GGUF" in verdicts[engine].reason


@pytest.mark.parametrize(
    ("group_size", "kernels"),
    [
        (128, ["Machete", "Marlin"]),
        (64, ["Machete", "Marlin"]),
        (32, ["Marlin"]),
        (-1, ["Mac", "Mar"]),
    ],
)
def test_group_sizes_choose_the_kernel(group_size: int, kernels: list[str]) -> None:
    found = judge(gptq(group_size=group_size))["vLLM"].kernels
    assert len(found) == len(kernels)
    assert all(name.startswith(kernel) for name, kernel in zip(found, kernels, strict=True))


@pytest.mark.parametrize(
    ("quant", "reason"),
    [
        (gptq(group_size=256), "takes groups of one per output, 32, 64, 128, not 256"),
        (gptq(bits=3), "takes 4, 8 bits, not 3"),
        (gptq(sym=False), "takes no weights with zero points"),
        (gptq(desc_act=True), "desc_act"),
    ],
)
def test_gptq_that_vllm_refuses(quant: dict[str, Any], reason: str) -> None:
    verdicts = judge(quant)
    assert verdicts["vLLM"].status == "refused"
    assert reason in verdicts["vLLM"].reason
    assert verdicts["vLLM"].kernels == verdicts["vLLM"].gpu_counts == ()
    assert verdicts["gptqmodel"].status.startswith("loads")


def test_channelwise_act_order_is_no_order() -> None:
    assert judge(gptq(group_size=-1, desc_act=True))["vLLM"].status == "loads"


def test_zero_points_of_version_2_would_be_misread_by_tgi() -> None:
    assert "one too high" in judge(gptq(sym=False))["TGI"].reason
    version_1 = gptq(sym=False, checkpoint_format="gptq")
    assert judge(version_1)["TGI"].status == "loads with a slower kernel"


def test_tiles_matter_where_the_engine_does_not_pad() -> None:
    """576 = 4.5 x 128 inputs: SGLang's Marlin has no such tile, vLLM pads."""
    verdicts = judge(awq(64), SMOLLM, SMALL)
    assert verdicts["vLLM"].status == "loads"
    assert verdicts["SGLang"].status == "loads with a slower kernel"
    assert verdicts["SGLang"].kernels == ("AWQ (NVIDIA from Turing)",)
    refused = judge(gptq(group_size=64), SMOLLM, SMALL)["SGLang"]
    assert refused.status == "refused"
    assert "960 x 576 of model.layers.0.self_attn.q_proj+k_proj+v_proj" in refused.reason


def test_heads_and_groups_limit_tensor_parallelism() -> None:
    verdict = judge(gptq(group_size=64), SMOLLM, SMALL)["vLLM"]
    assert verdict.gpu_counts == (1,)
    assert "not on 2 GPUs: 9 attention heads do not divide" in verdict.reason
    # llm-compressor #1489: 8256 inputs are 64.5 groups of 128; over 2 GPUs 4128 are no groups of 64
    shapes = shapes_of(4096, 8256, 1024)
    verdict = judge(gptq(group_size=64), LLAMA_8B, shapes)["vLLM"]
    assert verdict.gpu_counts == (1,)
    assert "4128 inputs of model.layers.0.mlp.down_proj" in verdict.reason


def test_key_value_heads_are_repeated_over_more_gpus() -> None:
    model = LLAMA_8B | {"num_key_value_heads": 2}
    assert judge(gptq(), model, shapes_of(4096, 14336, 256))["vLLM"].gpu_counts == (1, 2, 4, 8)
    model = LLAMA_8B | {"num_key_value_heads": 3, "num_attention_heads": 24}
    verdict = judge(gptq(), model, shapes_of(3072, 8192, 384))["vLLM"]
    assert "3 key/value heads do not divide" in verdict.reason


def test_fused_layers_must_be_quantized_alike() -> None:
    mixed = gptq(dynamic={r"+:.*\.1\.self_attn\.v_proj": {"bits": 8}})
    verdict = judge(mixed)["vLLM"]
    assert verdict.status == "refused"
    assert "joins model.layers.1.self_attn" in verdict.reason
    assert judge(mixed)["gptqmodel"].status == "loads"
    skipped = awq(modules_to_not_convert=["layers.0.mlp.up_proj"])
    assert judge(skipped)["SGLang"].status == "refused"
    together = gptq(dynamic={r"-:.*\.0\.mlp\.": {}, r".*\.self_attn\.": {"bits": 8}})
    assert judge(together)["vLLM"].status == "loads"


def test_pack_quantized() -> None:
    assert judge(compressed("pack-quantized", 4, 128, sym=False))["vLLM"].status == "loads"
    three = judge(compressed("pack-quantized", 3, 128))
    assert three["vLLM"].status == "loads with a slower kernel"
    assert three["vLLM"].evidence == "unverified"  # the limits of its only kernel were not read
    assert three["SGLang"].status == "refused"
    assert three["gptqmodel"].status == "refused"
    assert three["transformers"].status == "loads with a slower kernel"
    order = compressed("pack-quantized", 4, 128, weights={"actorder": "group"})
    assert judge(order)["vLLM"].status == "refused"
    static = compressed("pack-quantized", 4, 128, weights={"actorder": "static"})
    assert judge(static)["vLLM"].status == "loads"


def test_int_quantized_needs_quantized_inputs_in_vllm() -> None:
    weights_only = judge(compressed("int-quantized", 8, None))
    assert weights_only["vLLM"].status == weights_only["SGLang"].status == "refused"
    assert "unquantized inputs" in weights_only["vLLM"].reason
    inputs = {"num_bits": 8, "type": "int", "dynamic": True}
    w8a8 = judge(compressed("int-quantized", 8, None, input_activations=inputs))
    assert w8a8["vLLM"].status == w8a8["SGLang"].status == "loads"


def test_fp8() -> None:
    inputs = {"num_bits": 8, "type": "float", "dynamic": True}
    verdicts = judge(compressed("float-quantized", 8, None, input_activations=inputs))
    assert verdicts["vLLM"].status == "loads"
    assert verdicts["transformers"].status == "loads with a slower kernel"


def test_bitsandbytes_is_not_split_over_gpus() -> None:
    quant = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    verdicts = judge(quant)
    assert verdicts["vLLM"].gpu_counts == (1,)
    assert "vllm-bnb-plugin" in verdicts["vLLM"].reason
    assert verdicts["gptqmodel"].status == "not checked"
    assert verdicts["TGI"].status == "refused"


def test_gguf() -> None:
    verdicts = {v.engine: v for v in check_portability(LLAMA_8B, LARGE, "gguf")}
    assert verdicts["llama.cpp"].status == verdicts["Ollama"].status == "loads"
    assert verdicts["TGI"].status == "refused"
    opt = LLAMA_8B | {"architectures": ["OPTForCausalLM"]}
    verdicts = {v.engine: v for v in check_portability(opt, LARGE, "gguf")}
    assert verdicts["llama.cpp"].status == "refused"
    assert "OPTForCausalLM" in verdicts["llama.cpp"].reason


def test_unknown_architecture_is_said_to_be_unchecked() -> None:
    verdict = judge(gptq(), LLAMA_8B | {"architectures": ["NewForCausalLM"]})["vLLM"]
    assert verdict.status == "loads"
    assert verdict.evidence == "unverified"
    assert "whether it knows NewForCausalLM was not checked" in verdict.reason


@pytest.mark.parametrize(
    ("quant", "format"),
    [
        (None, "gptq"),
        (gptq(), "awq"),
        (gptq(), "exl2"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        (gptq(bits="four"), "gptq"),  # type: ignore[arg-type]
        (gptq(dynamic={"(": {}}), "gptq"),
        (gptq(dynamic={"-:.*": {}}), "gptq"),
        (compressed("marlin-24", 4, 128), "compressed-tensors"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 3}}, "compressed-tensors"),
    ],
)
def test_unusable_configs_are_refused(quant: Any, format: str) -> None:
    config = LLAMA_8B if quant is None else LLAMA_8B | {"quantization_config": quant}
    with pytest.raises(CheckpointError, match="quantization_config"):
        check_portability(config, LARGE, format)
