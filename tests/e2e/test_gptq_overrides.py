"""Our GPTQ checkpoints with settings of single layers, in GPTQModel's own loader.

transformers' integration through optimum knows no `dynamic`; GPTQModel, vLLM and SGLang do. Runs
where gptqmodel is installed, like test_gptqmodel.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.overrides import Layers
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.weights import choose_format, quantized_weights
from llmopt.models.loader import load_model
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.paged_attention import AttentionMetadata

pytestmark = [
    pytest.mark.gptqmodel,
    # its loader leaves temporary directories to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TOLERANCE = 3e-2  # relative, for products in 16 bits
W4, W8 = QuantSpec(4, 32), QuantSpec(8, 32)


def write_mixture(source: Path, out: Path) -> dict[str, QuantSpec | None]:
    """4 bits, but 8 for attention and head of the last block; its down projection is left alone."""
    reader = CheckpointReader(source)
    modules = [name.removesuffix(".weight") for name in reader.names()]
    layers: dict[str, QuantSpec | None] = {
        module: W8 if "1.self_attn" in module and "o_proj" not in module else W4
        for module in modules
        if module.endswith("_proj")
    }
    layers |= {"model.layers.1.mlp.down_proj": None, "lm_head": W8}
    settings: Layers = dict(layers)
    weight_format = choose_format("gptq", W4, settings)
    with CheckpointWriter(out) as writer:
        for name in reader.names():
            module, tensor = name.removesuffix(".weight"), reader.tensor(name)
            spec = layers.get(module)
            if spec is None:
                writer.add(name, tensor)
                continue
            packed = weight_format.pack(module, quantize_rtn(tensor, spec))
            for packed_name, part in packed.items():
                writer.add(packed_name, part)
        config = weight_format.config("rtn")
        writer.set_config({**reader.config, "quantization_config": config})
        writer.add_json("quantize_config.json", config)
    return layers


def add_tokenizer(path: Path) -> None:
    """GPTQModel loads no model without one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(128)}, unk_token="t0"))
    special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2", "pad_token": "t3"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)


@torch.inference_mode()
def test_gptqmodel_gives_every_layer_its_own_settings(
    make_tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    from gptqmodel import GPTQModel

    path = tmp_path / "out"
    layers = write_mixture(make_tiny_llama(tie_word_embeddings=False), path)
    add_tokenizer(path)
    model = GPTQModel.load(str(path), device="cpu", backend="torch").model
    found = {
        name: QuantSpec(module.bits, module.group_size, module.sym)
        for name, module in model.named_modules()
        if hasattr(module, "qzeros")
    }
    assert found == {name: spec for name, spec in layers.items() if spec is not None}
    weights = quantized_weights(CheckpointReader(path))
    assert weights is not None
    assert weights.scheme == "rtn-w4g32-mixed"
    ids = torch.arange(60)
    ours = load_model(path, dtype="float32")
    hidden = ours.forward(ids, torch.arange(60), AttentionMetadata.dense([60]))
    expected = ours.compute_logits(hidden)
    theirs = model(ids[None]).logits[0].float()
    assert (theirs - expected).norm() / expected.norm() < TOLERANCE
