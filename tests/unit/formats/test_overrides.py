import json

import pytest
import torch

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.dynamic import DynamicSpec, DynamicWeight, WeightSpec
from llmopt.formats.fp8 import Fp8Spec, Fp8Weight
from llmopt.formats.overrides import LayerRule, check_fused, required_setting, setting_of
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight
from llmopt.formats.weights import FormatName, choose_format, quantized_weights

W4, W8, ROWS = QuantSpec(4, 32), QuantSpec(8, 32), QuantSpec(8, None)
W3 = QuantSpec(3, 32, symmetric=False)
W8A8, FP8 = DynamicSpec(ROWS, "int8"), DynamicSpec(Fp8Spec(), "fp8")
BLOCK = "model.layers.{}."


def layers(default: WeightSpec, **others: WeightSpec | None) -> dict[str, WeightSpec | None]:
    """A model of two blocks; others: settings of modules of block 1 by their last name."""
    settings: dict[str, WeightSpec | None] = {"lm_head": others.pop("lm_head", None)}
    for block in range(2):
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"):
            parent = "self_attn" if name[0] in "qkv" else "mlp"
            setting = others.get(name, default) if block else default
            settings[f"model.layers.{block}.{parent}.{name}"] = setting
    return settings


def weight_of(spec: WeightSpec, seed: int) -> StoredWeight:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(spec, DynamicSpec):
        inner = weight_of(spec.weight, seed)
        assert isinstance(inner, QuantizedWeight | Fp8Weight)
        return DynamicWeight(inner, spec.activations)
    if isinstance(spec, Fp8Spec):
        values = torch.randn(32, 64, generator=generator).to(torch.float8_e4m3fn)
        scales = torch.rand(32 if spec.per_row else 1, 1, generator=generator)
        return Fp8Weight(values, scales, spec)
    groups = spec.num_groups(64)
    zeros = torch.randint(0, spec.levels, (32, groups), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(
        torch.randint(0, spec.levels, (32, 64), generator=generator, dtype=torch.uint8),
        torch.rand(32, groups, generator=generator).half(),
        None if spec.symmetric else zeros,
        None,
        spec,
    )


MIXES: list[tuple[FormatName, WeightSpec, dict[str, WeightSpec | None]]] = [
    ("gptq", W4, {"down_proj": W8}),
    ("gptq", W4, {"down_proj": W3, "gate_proj": None, "up_proj": None}),
    ("gptq", W4, {"lm_head": W4}),
    ("gptq", W4, {"lm_head": W8, "q_proj": ROWS, "k_proj": ROWS, "v_proj": ROWS}),
    ("awq", W4, {"down_proj": None}),
    ("compressed-tensors", W4, {"down_proj": W8}),
    ("compressed-tensors", W4, {"down_proj": None, "lm_head": W4}),
    ("compressed-tensors", W8A8, {"down_proj": ROWS, "lm_head": ROWS}),
    ("compressed-tensors", FP8, {"down_proj": Fp8Spec(), "gate_proj": W3, "up_proj": W3}),
    ("compressed-tensors", Fp8Spec(per_row=False), {"down_proj": FP8}),
]


@pytest.mark.parametrize(("name", "default", "others"), MIXES)
def test_settings_of_single_layers_are_written_and_read(tmp_path, name, default, others):
    settings = layers(default, **others)
    weight_format = choose_format(name, default, settings)
    stored = {
        module: weight_of(spec, seed)
        for seed, (module, spec) in enumerate(settings.items())
        if spec is not None
    }
    with CheckpointWriter(tmp_path / "out") as writer:
        for module, spec in settings.items():
            tensors = {f"{module}.weight": torch.zeros(32, 64)}
            if spec is not None:
                tensors = weight_format.pack(module, stored[module])
            for tensor_name, tensor in tensors.items():
                writer.add(tensor_name, tensor)
        config = json.loads(json.dumps(weight_format.config("rtn")))
        writer.set_config({"quantization_config": config})
    weights = quantized_weights(CheckpointReader(tmp_path / "out"))
    assert weights is not None
    for module, spec in settings.items():
        assert (module in weights) == (spec is not None)
        if spec is not None:
            read = weights.weight(module)
            assert torch.equal(read.dequantize(), stored[module].dequantize())
            assert read.spec == spec
            assert weights.num_weights(module) == 32 * 64
    mixed = set(settings.values()) - {None, default}
    assert weights.scheme == default.label("rtn") + ("-mixed" if mixed else "")


@pytest.mark.parametrize(
    ("name", "default", "others", "words"),
    [
        ("awq", W4, {"down_proj": W8}, "w4g32 and weights-w8g32.*compressed-tensors"),
        ("awq", W4, {"lm_head": W4}, "no output head.*hold it: gptq, compressed-tensors"),
        ("gptq", W8A8, {}, "weights-w8a8.*hold it: compressed-tensors"),
        ("gptq", W4, {"down_proj": FP8}, "weights-fp8.*compressed-tensors"),
        ("compressed-tensors", DynamicSpec(W4, "int8"), {}, "none of those written here"),
        ("compressed-tensors", W4, {"down_proj": DynamicSpec(W4, "fp8")}, "none of those"),
    ],
)
def test_settings_that_a_format_cannot_hold_are_refused(name, default, others, words):
    with pytest.raises(QuantizationError, match=words):
        choose_format(name, default, layers(default, **others))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"k_proj": W8}, r"1\.self_attn\.q_proj .*w4g32 and .*k_proj as w8g32.*q_proj, k_proj"),
        ({"v_proj": None}, r"v_proj as full precision"),
        ({"up_proj": W8}, r"gate_proj .* and .*up_proj as w8g32"),
    ],
)
def test_layers_that_are_computed_as_one_share_their_settings(others, words):
    with pytest.raises(QuantizationError, match=words):
        choose_format("gptq", W4, layers(W4, **others))
    check_fused(layers(W4, down_proj=W8))


def test_the_first_rule_holds():
    rules = (LayerRule("a", None), LayerRule("re:a|b", 1), LayerRule("re:", 2))
    assert [setting_of(rules, module, 0) for module in "abc"] == [None, 1, 2]
    assert setting_of(rules[:2], "c", 0) == 0
    with pytest.raises(CheckpointError, match="a is quantized, and quantization_config says"):
        required_setting(rules, "a", 0)
