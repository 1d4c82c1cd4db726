import pytest
import torch
from transformers import AutoModelForCausalLM

from llmopt.errors import UsageError
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.importance import importance_matrix

GGML_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.mark.parametrize(
    ("model_type", "settings"), [("llama", {}), ("gemma3_text", {"query_pre_attn_scalar": 32})]
)
def test_it_is_what_the_layers_of_transformers_see(make_tiny_model, model_type, settings):
    path = make_tiny_model(model_type, **settings)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 128, (3, 16), generator=generator)
    found = importance_matrix(path, CalibrationData(tokens, "numbers", "0" * 64, 0))

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    expected = {}
    for index, layer in enumerate(model.model.layers):
        for name, ggml_name in GGML_NAMES.items():

            def note(_, inputs, key=f"blk.{index}.{ggml_name}.weight"):
                expected[key] = inputs[0].flatten(0, 1).square().mean(dim=0)

            layer.get_submodule(name).register_forward_pre_hook(note)
    with torch.inference_mode():
        model(tokens)
    assert found.keys() == expected.keys()
    for name, squares in expected.items():
        torch.testing.assert_close(found[name], squares, rtol=1e-4, atol=1e-6)


def test_windows_that_the_model_cannot_read_are_refused(make_tiny_llama):
    path = make_tiny_llama(max_position_embeddings=16)
    with pytest.raises(UsageError, match=r"at most 16 tokens, .* have 17. Ask for .* at most 16"):
        importance_matrix(path, CalibrationData(torch.zeros(2, 17).long(), "n", "0" * 64, 0))
