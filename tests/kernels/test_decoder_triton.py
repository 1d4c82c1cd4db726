"""A decoder whose attention, norms and activations run on Triton computes what it computes on
torch.
"""

import pytest
import torch

from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.rms_norm import triton as norms

BLOCK = 8
PACKAGES = ("paged_attention", "rotary", "store_kv", "rms_norm", "gated_activation")


@pytest.fixture
def choose(monkeypatch):
    """Have the kernels run on Triton, or on torch."""

    def choose(triton: bool) -> None:
        for package in PACKAGES:
            monkeypatch.setattr(f"llmopt_kernels.{package}.uses_triton", lambda tensor: triton)

    return choose


def steps(model) -> torch.Tensor:
    """Logits of a prompt in two chunks beside another prompt, then of a decode of both."""
    config = model.config
    shape = (8, BLOCK, config.num_kv_heads, config.head_dim)
    cache = [
        (torch.zeros(shape, device=model.device), torch.zeros(shape, device=model.device))
        for _ in range(config.num_layers)
    ]
    tables = torch.tensor([[3, 1, 5], [2, 7, 4]], dtype=torch.int32)
    ids = torch.randint(0, config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    device = model.device
    done, logits = [0, 0], []
    for counts in [(9, 5), (8, 1), (1, 1)]:
        positions = [torch.arange(d, d + n) for d, n in zip(done, counts, strict=True)]
        slots = [
            tables[row, p // BLOCK].long() * BLOCK + p % BLOCK for row, p in enumerate(positions)
        ]
        done = [d + n for d, n in zip(done, counts, strict=True)]
        metadata = AttentionMetadata(
            counts, tuple(done), torch.cat(slots).to(device), tables.to(device), BLOCK
        )
        tokens = torch.cat([ids[row, p] for row, p in enumerate(positions)])
        hidden = model.forward(tokens.to(device), torch.cat(positions).to(device), metadata, cache)
        logits.append(model.compute_logits(hidden).cpu())
    return torch.cat(logits)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_logits_of_chunks_and_decodes(make_tiny_model, choose, device, architecture):
    model = load_model(make_tiny_model(architecture), dtype="float32", device=str(device))
    choose(False)
    expected = steps(model)
    choose(True)
    found = steps(model)
    assert not torch.equal(found, expected), "torch ran"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_logits_without_a_cache(make_tiny_model, choose, device):
    """Some layers of this architecture do not rotate."""
    model = load_model(make_tiny_model("smollm3"), dtype="float32", device=str(device))
    ids, metadata = torch.arange(30).to(device), AttentionMetadata.dense([18, 12])
    positions = torch.cat([torch.arange(18), torch.arange(12)]).to(device)
    choose(False)
    expected = model.compute_logits(model.forward(ids, positions, metadata))
    choose(True)
    found = model.compute_logits(model.forward(ids, positions, metadata))
    assert not torch.equal(found, expected), "torch ran"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_sum_and_the_norm_behind_it_are_one_launch(
    make_tiny_model, choose, device, monkeypatch, architecture
):
    model = load_model(make_tiny_model(architecture), dtype="float32", device=str(device))
    launches = {"rms_norm_triton": 0, "add_rms_norm_triton": 0}

    def counted(name):
        function = getattr(norms, name)

        def call(*args):
            launches[name] += 1
            return function(*args)

        return call

    for name in launches:
        monkeypatch.setattr(norms, name, counted(name))
    choose(True)
    ids, metadata = torch.arange(6).to(device), AttentionMetadata.dense([6])
    model.forward(ids, torch.arange(6).to(device), metadata)
    num_layers = model.config.num_layers
    others = 4 * num_layers if architecture == "gemma3_text" else 0  # of heads and of branches
    assert launches == {
        "rms_norm_triton": 1 + others,  # the first, with nothing to add
        "add_rms_norm_triton": 2 * num_layers - 1,
    }
