from copy import copy

import pytest
import torch

from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder, DecoderBlock
from llmopt.models.loader import load_model
from llmopt.quality.atlas_parts import Part, Transplant, check_same_shape, list_parts
from llmopt.quality.source import ModelLogits
from llmopt.quality.windows import Window

ARCHITECTURES = {
    "llama": {},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "gpt2": {"num_key_value_heads": 4},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request, make_tiny_model):
    """A base and a target with other weights everywhere, of one architecture."""
    overrides = {"num_hidden_layers": 3, "tie_word_embeddings": False}
    overrides |= ARCHITECTURES[request.param]
    base, target = (
        load_model(make_tiny_model(request.param, seed=seed, **overrides), dtype="float32")
        for seed in (0, 1)
    )
    return base, target


@pytest.fixture
def window():
    token_ids = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(3))
    return Window(token_ids, num_scored=25, num_bytes=0)


def logits(model, window):
    return torch.cat(list(ModelLogits(model, name="", scheme="").chunks(window)))


def hybrid(base: Decoder, target: Decoder, part: Part) -> Decoder:
    """The base with the part of the target, built from the model's own classes."""
    model = copy(base)
    own = {
        "embedding": ("embedding", "position_embedding"),
        "final norm": ("final_norm",),
        "head": ("lm_head",),
    }
    for name in own.get(part.kind, ()):
        setattr(model, name, getattr(target, name))
    model.blocks = list(base.blocks)
    if part.layer is not None:
        old, new = base.blocks[part.layer], target.blocks[part.layer]
        attention, mlp = (
            new if part.kind in ("block", "attention") else old,
            new if part.kind in ("block", "mlp") else old,
        )
        model.blocks[part.layer] = DecoderBlock(
            attention.input_norm,
            attention.attention,
            attention.attention_branch_norm,
            mlp.post_norm,
            mlp.mlp,
            mlp.mlp_branch_norm,
        )
    return model


def test_parts_go_from_the_input_to_the_output():
    labels = [part.label for part in list_parts(2, detail=False)]
    assert labels == ["embedding", "block 0", "block 1", "final norm", "head"]
    halves = [part.label for part in list_parts(1, detail=True)]
    assert halves == [
        "embedding",
        "block 0",
        "block 0 attention",
        "block 0 MLP",
        "final norm",
        "head",
    ]


def test_the_base_itself_gives_the_logits_that_it_always_gives(models, window):
    base, target = models
    chunks = list(Transplant(target, base, window).base_chunks())
    assert torch.equal(torch.cat(chunks), logits(base, window))


@pytest.mark.parametrize("part", list_parts(3, detail=True), ids=lambda part: part.label)
def test_a_part_gives_the_logits_of_a_model_built_with_it(models, window, part):
    base, target = models
    changed = torch.cat(list(Transplant(target, base, window).chunks(part)))
    assert torch.equal(changed, logits(hybrid(base, target, part), window))
    assert not torch.allclose(changed, logits(base, window), atol=1e-3)


def test_an_equal_part_is_told_without_running_the_rest(models, window):
    base, _ = models
    transplant = Transplant(base, base, window)
    parts = [part for part in list_parts(3, detail=True) if part.kind not in ("final norm", "head")]
    assert [transplant.chunks(part) for part in parts] == [None] * len(parts)


def test_a_part_in_another_dtype_computes_in_it_and_the_rest_in_the_bases(make_tiny_model, window):
    path = make_tiny_model("llama")
    base, target = load_model(path, dtype="float32"), load_model(path, dtype="bfloat16")
    transplant = Transplant(target, base, window)
    changed = torch.cat(list(transplant.chunks(Part("block", 0))))
    difference = (changed - logits(base, window)).abs().max()
    assert changed.dtype == torch.float32
    assert 0 < difference < (logits(target, window).float() - logits(base, window)).abs().max() * 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"num_hidden_layers": 3}, "num_layers 3"),
        ({"vocab_size": 130}, "vocab_size 130"),
        ({"hidden_size": 32}, "hidden_size 32"),
    ],
)
def test_a_model_of_another_shape_is_refused(make_tiny_llama, tiny_llama, overrides, said):
    target = load_model(make_tiny_llama(**overrides)).config
    with pytest.raises(UsageError, match=said):
        check_same_shape(target, load_model(tiny_llama).config)


def test_a_last_token_beyond_the_limit_is_not_read(make_tiny_model, window):
    limit = len(window.token_ids) - 1
    base, target = (
        load_model(make_tiny_model("gpt2", seed=seed, max_position_embeddings=limit))
        for seed in (0, 1)
    )
    transplant = Transplant(target, base, window)
    assert torch.equal(torch.cat(list(transplant.base_chunks())), logits(base, window))
    chunks = transplant.chunks(Part("head"))
    assert chunks is not None
    assert torch.cat(list(chunks)).shape == (window.num_scored, 128)
