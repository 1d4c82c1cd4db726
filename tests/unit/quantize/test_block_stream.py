"""A block in pieces computes what it computes whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.layers.linear import DenseLinear
from llmopt.models.loader import ModelLoader, load_model
from llmopt.quantize import block_stream
from llmopt.quantize.block_stream import BlockStream
from llmopt.quantize.block_task import BlockTask, column_scales, view_of
from llmopt.quantize.layout import Place, block_modules


def make_stream(source: Path, tokens: torch.Tensor) -> tuple[ModelLoader, BlockStream]:
    loader = ModelLoader(CheckpointReader(source), dtype="float32")
    return loader, BlockStream(loader, *tokens.shape)


@pytest.mark.parametrize(("chunk_tokens", "keep_bytes"), [(4096, 1 << 30), (130, 0), (1, 1 << 30)])
def test_walking_through_all_blocks_is_the_models_forward_pass(
    spread_source, tokens, hidden_states, monkeypatch, chunk_tokens, keep_bytes
):
    monkeypatch.setattr(block_stream, "CHUNK_TOKENS", chunk_tokens)
    monkeypatch.setattr(block_stream, "KEEP_BYTES", keep_bytes)
    loader, stream = make_stream(spread_source, tokens.tokens)
    hidden = stream.embed(tokens.tokens)
    for index in range(loader.config.num_layers):
        for _ in stream.walk(loader.block(index), hidden):
            pass
    expected = hidden_states(load_model(spread_source, dtype="float32"), tokens.tokens)
    assert torch.allclose(hidden, expected, rtol=1e-4, atol=1e-4)


def test_inputs_are_those_that_each_layer_reads(spread_source, tokens):
    loader, stream = make_stream(spread_source, tokens.tokens)
    block, seen = loader.block(0), []

    class Spy(DenseLinear):
        def __call__(self, x):
            seen.append(x)
            return super().__call__(x)

    spied = view_of(block)
    task = BlockTask(0, spied, block_modules(loader.config, 0))
    for place in Place:
        task.replace(place, Spy(task.linear(place).weight, task.linear(place).bias))
    hidden = stream.embed(tokens.tokens)
    sequences = stream.sequences(len(tokens.tokens))
    spied.forward(hidden, sequences.rotary, sequences.metadata, None)
    walked = {
        place: torch.cat(list(inputs())) for place, inputs in stream.walk(block, hidden.clone())
    }
    for place in Place:
        assert torch.allclose(walked[place], seen[place], rtol=1e-4, atol=1e-5), place


def test_a_replaced_layer_is_what_later_ones_see(spread_source, tokens):
    loader, stream = make_stream(spread_source, tokens.tokens)
    hidden = stream.embed(tokens.tokens)
    found: dict[bool, torch.Tensor] = {}
    for replaces in (False, True):
        view = view_of(loader.block(0))
        task = BlockTask(0, view, block_modules(loader.config, 0))
        for place, inputs in stream.walk(view, hidden.clone()):
            if place is Place.QKV and replaces:
                layer = task.linear(place)
                task.replace(place, DenseLinear(layer.weight * 0, layer.bias))
            if place is Place.DOWN:
                found[replaces] = torch.cat(list(inputs()))
    assert not torch.allclose(found[False], found[True])


def test_a_view_does_not_change_the_block(spread_source):
    loader = ModelLoader(CheckpointReader(spread_source), dtype="float32")
    block = loader.block(0)
    view = view_of(block)
    task = BlockTask(0, view, block_modules(loader.config, 0))
    before = block.linears
    for place in Place:
        task.replace(place, DenseLinear(torch.zeros(2, 2), None))
    view.input_norm = view.post_norm
    assert block.linears == before
    assert all(new is not old for new, old in zip(view.linears, before, strict=True))
    assert block.input_norm is not view.input_norm


def test_parts_are_the_modules_of_the_checkpoint(spread_source):
    reader = CheckpointReader(spread_source)
    loader = ModelLoader(reader, dtype="float32")
    task = BlockTask(1, loader.block(1), block_modules(loader.config, 1))
    for place in Place:
        for name, weight in task.parts(place):
            assert torch.equal(weight, reader.tensor(f"{name}.weight").float())


def test_column_scales_are_found_again():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    weight[:, 3] = 0
    scales = torch.linspace(0.5, 3, 8)
    found = column_scales(weight, weight * scales)
    expected = torch.where(torch.arange(8) == 3, torch.ones(8), scales)
    assert torch.allclose(found, expected)


def test_embedding_reads_only_what_it_needs(
    spread_source: Path, tokens, hidden_states: Callable[..., torch.Tensor]
):
    _, stream = make_stream(spread_source, tokens.tokens)
    model = load_model(spread_source, dtype="float32")
    windows, length = tokens.tokens.shape
    positions = torch.arange(length).repeat(windows)
    embedded = model.embed(tokens.tokens.flatten(), positions)
    assert torch.equal(stream.embed(tokens.tokens), embedded)
