"""Every architecture computes what transformers computes, however the tokens are scheduled."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import ModelError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.models.config import SUPPORTED_ARCHITECTURES, LayerAttention, ModelConfig
from llmopt.models.decoder import Decoder
from llmopt.models.loader import ModelLoader, load_model
from llmopt_kernels.paged_attention import AttentionMetadata

MODEL_TYPES = (
    "llama",
    "mistral",
    "smollm3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "opt",
    "gpt2",
)
BLOCK = 4  # tokens of a cache block
LENGTHS = (40, 7, 23)  # of the sequences of a batch: beyond the tiny window of 9, and below it
MakeModel = Callable[..., Path]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def path(request: pytest.FixtureRequest, make_tiny_model: MakeModel) -> Path:
    return make_tiny_model(request.param)


@pytest.fixture(scope="module")
def model(path: Path) -> Decoder:
    return load_model(path, dtype="float32")


def load_reference(path: Path) -> PreTrainedModel:
    """transformers' model, with the attention that knows soft caps in all its versions."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def reference(path: Path) -> PreTrainedModel:
    return load_reference(path)


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (length,), generator=generator) for length in LENGTHS]


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0]


@torch.inference_mode()
def dense_logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    metadata = AttentionMetadata.dense([len(ids)])
    return model.compute_logits(model.forward(ids, torch.arange(len(ids)), metadata))


@torch.inference_mode()
def paged_logits(
    model: Decoder, batch: list[torch.Tensor], steps: Iterator[list[int]]
) -> list[torch.Tensor]:
    """Logits [L, V] of each sequence, computed with a paged cache. `steps` yields how many tokens
    of each sequence are new in each step.
    """
    width = -(-max(map(len, batch)) // BLOCK)
    order = torch.randperm(width * len(batch), generator=torch.Generator().manual_seed(0))
    tables = order.view(len(batch), width).int()
    shape = (width * len(batch), BLOCK, model.config.num_kv_heads, model.config.head_dim)
    cache = [
        (torch.full(shape, 1e4), torch.full(shape, 1e4)) for _ in range(model.config.num_layers)
    ]
    done = [0] * len(batch)
    parts: list[list[torch.Tensor]] = [[] for _ in batch]
    for wanted in steps:
        counts = [min(n, len(ids) - d) for n, ids, d in zip(wanted, batch, done, strict=True)]
        rows = [r for r, count in enumerate(counts) if count]
        if not rows:
            break
        positions = [torch.arange(done[r], done[r] + counts[r]) for r in rows]
        ids = torch.cat([batch[r][p] for r, p in zip(rows, positions, strict=True)])
        slots = [
            tables[r, p // BLOCK] * BLOCK + p % BLOCK for r, p in zip(rows, positions, strict=True)
        ]
        metadata = AttentionMetadata(
            query_lens=tuple(counts[r] for r in rows),
            seq_lens=tuple(done[r] + counts[r] for r in rows),
            slot_mapping=torch.cat(slots).long(),
            block_tables=tables[rows],
            block_size=BLOCK,
        )
        logits = model.compute_logits(model.forward(ids, torch.cat(positions), metadata, cache))
        for r, part in zip(rows, logits.split([counts[r] for r in rows]), strict=True):
            parts[r].append(part)
            done[r] += counts[r]
    return [torch.cat(part) for part in parts]


def prefill() -> Iterator[list[int]]:
    yield list(LENGTHS)


def chunks() -> Iterator[list[int]]:
    """Chunks of different sizes, some sequences waiting."""
    yield [5, 0, 3]
    yield [1, 7, 8]
    yield from [[11, 0, 5]] * 5


def decode() -> Iterator[list[int]]:
    """A short prefill, then one token each at a time."""
    yield [3, 2, 12]
    yield from [[1, 1, 1]] * max(LENGTHS)


def test_logits_without_a_cache(model: Decoder, reference: PreTrainedModel) -> None:
    for ids in sequences():
        expected = reference_logits(reference, ids)
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(dense_logits(model, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [prefill, chunks, decode])
def test_logits_with_a_paged_cache(
    model: Decoder, reference: PreTrainedModel, steps: Callable[[], Iterator[list[int]]]
) -> None:
    batch = sequences()
    for ids, found in zip(batch, paged_logits(model, batch, steps()), strict=True):
        torch.testing.assert_close(found, reference_logits(reference, ids), rtol=0, atol=1e-4)


def test_greedy_tokens_of_the_engine(model: Decoder, reference: PreTrainedModel) -> None:
    batch = sequences()
    engine = Engine(model, EngineConfig(block_size=BLOCK, num_blocks=64, max_num_batched_tokens=16))
    for index, ids in enumerate(batch):
        params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
        engine.add_request(str(index), ids.tolist(), params)
    found: dict[str, list[int]] = {str(index): [] for index in range(len(batch))}
    while engine.has_unfinished():
        for step in engine.step():
            found[step.request_id].extend(step.token_ids)
    for index, ids in enumerate(batch):
        expected = reference.generate(
            ids[None],
            attention_mask=torch.ones_like(ids[None]),
            max_new_tokens=30,
            min_new_tokens=30,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(ids) :]
        assert found[str(index)] == expected.tolist()
        assert len(set(found[str(index)])) > 3


def test_bfloat16_is_near_float32(path: Path, model: Decoder) -> None:
    (ids, *_) = sequences()
    exact = dense_logits(model, ids)
    rounded = dense_logits(load_model(path, dtype="bfloat16"), ids).float()
    assert (rounded - exact).norm() / exact.norm() < 0.03


@torch.inference_mode()
def test_a_loader_gives_the_parts_of_the_model(path: Path, model: Decoder) -> None:
    loader = ModelLoader(CheckpointReader(path), dtype="float32")
    (ids, *_) = sequences()
    positions = torch.arange(len(ids))
    metadata = AttentionMetadata.dense([len(ids)])
    hidden, rotary = loader.embed(ids, positions), loader.rotary(positions)
    for index in range(loader.config.num_layers):
        block = loader.block(index)
        attended = block.attend(hidden, rotary, metadata, None)
        hidden = block.feed_forward(attended)
    assert torch.equal(hidden, model.forward(ids, positions, metadata))


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}),
    ("gemma3_text", {"num_key_value_heads": 1, "attention_bias": True}),
    ("gemma3_text", {"sliding_window": 1}),
    ("gemma3_text", {"tie_word_embeddings": True}),
    ("gemma3_text", {"hidden_activation": "silu"}),
    (
        "gemma3_text",
        {"layer_types": None, "sliding_window_pattern": 2, "rope_parameters": None},
    ),
    ("gemma3_text", {"final_logit_softcapping": 3.0}),
    ("gemma2", {"tie_word_embeddings": True, "attention_bias": True}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"layer_types": ["full_attention"] * 3}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"head_dim": 32, "tie_word_embeddings": True}),
    ("phi3", {"sliding_window": 7, "tie_word_embeddings": True}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    (
        "phi3",
        {
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.2 * i for i in range(8)],
                "long_factor": [3.0 + i for i in range(8)],
                "rope_theta": 1e4,
            },
        },
    ),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    ("llama", {"rope_parameters": {**YARN, "original_max_position_embeddings": 16}}),
    ("qwen3", {"rope_parameters": {**YARN, "original_max_position_embeddings": 64}}),
    ("smollm3", {"no_rope_layers": [0, 1], "attention_bias": True, "mlp_bias": True}),
    (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": True},
    ),
    ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True, "num_experts_per_tok": 1}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 6}),
    ("mixtral", {"sliding_window": 6, "tie_word_embeddings": True}),
    ("mixtral", {"num_experts_per_tok": 4}),
    ("opt", {"enable_bias": False, "tie_word_embeddings": True}),
    ("opt", {"activation_function": "gelu"}),
    ("gpt2", {"n_inner": None, "intermediate_size": None}),
    ("gpt2", {"tie_word_embeddings": False, "activation_function": "relu"}),
]


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_variants(
    make_tiny_model: MakeModel, model_type: str, overrides: dict[str, object]
) -> None:
    path = make_tiny_model(model_type, **overrides)
    (ids, *_) = sequences()
    reference = load_reference(path)
    found = dense_logits(load_model(path, dtype="float32"), ids)
    torch.testing.assert_close(found, reference_logits(reference, ids), rtol=0, atol=1e-4)


def edit_config(path: Path, target: Path, **changes: object) -> Path:
    """A copy of the model with other values in config.json; None removes a key."""
    config = json.loads((path / "config.json").read_text()) | changes
    target.mkdir()
    (target / "model.safetensors").symlink_to(path / "model.safetensors")
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def test_the_config_of_a_published_gemma(make_tiny_model: MakeModel, tmp_path: Path) -> None:
    """Published before transformers 5: thetas and scaling apart, a pattern in place of a list, and
    what equals the class's defaults left out.
    """
    path = make_tiny_model("gemma3_text", head_dim=256, tie_word_embeddings=True)
    old = edit_config(
        path,
        tmp_path / "old",
        rope_parameters=None,
        layer_types=None,
        sliding_window_pattern=3,
        rope_theta=5e5,
        rope_local_base_freq=2e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        head_dim=None,
        tie_word_embeddings=None,
        query_pre_attn_scalar=None,
        hidden_activation=None,
        rms_norm_eps=None,
    )
    (ids, *_) = sequences()
    model = load_model(old, dtype="float32")
    kinds = [layer.window for layer in model.config.layers]
    assert kinds == [9, 9, None]
    assert [layer.rope for layer in model.config.layers] == [1, 1, 0]
    reference = load_reference(old)
    expected = reference_logits(reference, ids)
    torch.testing.assert_close(dense_logits(model, ids), expected, rtol=0, atol=1e-4)


def test_a_window_is_only_where_the_config_switches_it_on(make_tiny_model: MakeModel) -> None:
    path = make_tiny_model("qwen2", sliding_window=5)
    config = CheckpointReader(path).config
    stored = config | {"sliding_window": 5, "use_sliding_window": False}
    assert ModelConfig.from_hf(stored).layers == (LayerAttention(),) * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention"]}, "1 of 3 layers"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": "full_attention"}, "layers"),
        ({"sliding_window": 0}, "the window 0"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "relu"}, "relu"),
        ({"rope_parameters": {"full_attention": {"rope_type": "proportional"}}}, "proportional"),
        ({"rope_parameters": ["full_attention"]}, "config.json"),
    ],
)
def test_configs_that_cannot_be_computed_are_refused(
    make_tiny_model: MakeModel, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = edit_config(make_tiny_model("gemma3_text"), tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=words):
        load_model(path)


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        ("opt", {"activation_function": "silu"}, "the activation silu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 of 4 experts"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("smollm3", {"no_rope_layers": [1]}, "config.json"),
    ],
)
def test_features_that_are_not_computed_are_refused(
    make_tiny_model: MakeModel,
    tmp_path: Path,
    model_type: str,
    changes: dict[str, object],
    words: str,
) -> None:
    path = edit_config(make_tiny_model(model_type), tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=words):
        load_model(path)


def test_an_unknown_architecture_names_the_supported_ones(
    make_tiny_model: MakeModel, tmp_path: Path
) -> None:
    path = edit_config(make_tiny_model("llama"), tmp_path / "model", architectures=["FalconLM"])
    with pytest.raises(ModelError) as caught:
        load_model(path)
    for name in SUPPORTED_ARCHITECTURES:
        assert name in str(caught.value)


def test_factors_for_long_texts_are_not_mixed_with_those_for_short_ones(
    make_tiny_model: MakeModel, tmp_path: Path
) -> None:
    """Keys in the cache cannot change over, so the model ends where the short factors do."""
    scaling = {"type": "su", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8}
    path = edit_config(
        make_tiny_model("phi3"),
        tmp_path / "old",  # as published, with the length apart and the first name of the rule
        rope_parameters=None,
        rope_theta=1e4,
        rope_scaling=scaling,
        original_max_position_embeddings=128,
    )
    config = load_model(path).config
    assert CheckpointReader(path).config["max_position_embeddings"] == 512
    assert config.max_model_len == 128
    (rope,) = config.ropes
    assert rope.scaling is not None
    assert rope.scaling["rope_type"] == "longrope"
    assert rope.scaling["factor"] == 4.0


def test_a_checkpoint_without_the_name_of_the_model_in_front(
    make_tiny_model: MakeModel, tmp_path: Path
) -> None:
    path = make_tiny_model("gpt2")
    tensors = load_file(path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert "wte.weight" in bare
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    (ids, *_) = sequences()
    found = dense_logits(load_model(tmp_path), ids)
    assert torch.equal(found, dense_logits(load_model(path), ids))


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_a_token_reads_the_experts_that_it_goes_to(
    make_tiny_model: MakeModel, model_type: str
) -> None:
    model = load_model(make_tiny_model(model_type))
    config = model.config
    assert config.experts is not None
    expert = 3 * config.hidden_size * config.intermediate_size
    idle = (config.experts.count - config.experts.per_token) * expert * config.num_layers
    assert model.weight_bytes - model.weight_bytes_per_token == 4 * idle
    router = config.hidden_size * config.experts.count
    assert config.mlp_weights_per_token == config.experts.per_token * expert + router
