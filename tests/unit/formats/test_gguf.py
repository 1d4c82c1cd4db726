"""GGUF files are read as the Hugging Face checkpoints that they were made from."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.gguf_names import unpermute_rows

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 64, 4, 2, 16, 96, 40
SHAPES = {
    "token_embd.weight": (VOCAB, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (MLP, HIDDEN),
    "blk.0.ffn_up.weight": (MLP, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, MLP),
}


def permute_rows(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: row 2 i + j of a head was row j D / 2 + i."""
    head_dim = weights.shape[0] // num_heads
    rows = [
        head * head_dim + j * (head_dim // 2) + i
        for head in range(num_heads)
        for i in range(head_dim // 2)
        for j in range(2)
    ]
    return weights[rows]


def draw_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: random.standard_normal(s, dtype=np.float32) for n, s in SHAPES.items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    **integers: int,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(integers.get("num_heads", HEADS))
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(12345.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_array("test.nested", ["a", "b"])
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and quantization != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(tensor, quantization)
            writer.add_tensor(name, packed, raw_dtype=quantization)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", draw_tensors())


def test_config_is_what_transformers_needs(gguf_file: Path) -> None:
    config = GgufCheckpoint(gguf_file).config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == VOCAB
    assert config["head_dim"] == HEAD_DIM
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["rope_theta"] == 12345.0
    assert config["rms_norm_eps"] == 1e-5  # not 9.99999974e-06
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert "pad_token_id" not in config


def test_an_output_matrix_means_untied_embeddings(tmp_path: Path) -> None:
    tensors = draw_tensors() | {"output.weight": np.ones((VOCAB, HIDDEN), np.float32)}
    reader = GgufCheckpoint(write_gguf(tmp_path / "untied.gguf", tensors))
    assert reader.config["tie_word_embeddings"] is False
    assert torch.equal(reader.tensor("lm_head.weight"), torch.ones(VOCAB, HIDDEN))


def test_tensors_come_back_under_hugging_face_names_in_its_row_order(tmp_path: Path) -> None:
    original = draw_tensors()
    stored = dict(original)
    stored["blk.0.attn_q.weight"] = permute_rows(original["blk.0.attn_q.weight"], HEADS)
    stored["blk.0.attn_k.weight"] = permute_rows(original["blk.0.attn_k.weight"], KV_HEADS)
    reader = GgufCheckpoint(write_gguf(tmp_path / "model.gguf", stored))
    expected = {
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for name, source in expected.items():
        assert reader.shape(name) == SHAPES[source]
        assert np.array_equal(reader.tensor(name).numpy(), original[source]), name
    assert len(reader.names()) == len(SHAPES)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_tensors_are_dequantized(tmp_path: Path, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    tensors = draw_tensors()
    reader = GgufCheckpoint(write_gguf(tmp_path / "q.gguf", tensors, quantization))
    name, source = "model.layers.0.mlp.down_proj.weight", tensors["blk.0.ffn_down.weight"]
    packed = gguf.quants.quantize(source, quantization)
    expected = gguf.quants.dequantize(packed, quantization)
    assert reader.quantization(name) == kind
    assert reader.tensor(name).dtype == torch.float32
    assert np.array_equal(reader.tensor(name).numpy(), expected)
    assert np.abs(expected - source).max() < 0.5  # the right tensor, a little rounded


@given(st.sampled_from([1, 2, 3]), st.sampled_from([2, 4, 8]), st.integers(1, 3))
def test_unpermute_rows_undoes_the_converter(heads: int, head_dim: int, columns: int) -> None:
    rows = np.arange(heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    restored = unpermute_rows(torch.from_numpy(permute_rows(rows, heads)), heads)
    assert np.array_equal(restored.numpy(), rows)


def test_a_truncated_file_is_refused_with_its_size(gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"cut short.*ends at byte") as caught:
        GgufCheckpoint(short)
    assert f"({len(whole) - 100:,} bytes)" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"GGML" + bytes(40), "does not begin with the GGUF magic"),
        (b"GGUF" + (99).to_bytes(4, "little") + bytes(16), "version 99"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "ends inside its header"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        GgufCheckpoint(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        GgufCheckpoint(tmp_path / "absent.gguf")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "mamba.gguf", draw_tensors(), architecture="mamba")
    with pytest.raises(CheckpointError, match="architecture is 'mamba'"):
        GgufCheckpoint(path)


def test_a_tensor_of_no_plain_llama_is_refused(tmp_path: Path) -> None:
    tensors = draw_tensors() | {"blk.0.ffn_gate_inp.weight": np.ones(8, np.float32)}
    with pytest.raises(CheckpointError, match=r"ffn_gate_inp\.weight is not part of a plain llama"):
        GgufCheckpoint(write_gguf(tmp_path / "experts.gguf", tensors))


def test_rows_that_do_not_split_into_heads_are_refused(tmp_path: Path) -> None:
    reader = GgufCheckpoint(write_gguf(tmp_path / "heads.gguf", draw_tensors(), num_heads=7))
    with pytest.raises(CheckpointError, match="64 rows for 7 heads"):
        reader.tensor("model.layers.0.self_attn.q_proj.weight")


def test_an_unknown_tensor_name_is_refused(gguf_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.9"):
        GgufCheckpoint(gguf_file).tensor("model.layers.9.mlp.up_proj.weight")


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_file_never_raises_anything_else(
    gguf_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(gguf_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        reader = GgufCheckpoint(path)
        for name in reader.names():
            assert reader.tensor(name).shape == reader.shape(name)
            reader.weight(name.removesuffix(".weight"))
    except CheckpointError:
        return


def test_the_reader_is_a_checkpoint(gguf_file: Path) -> None:
    reader = GgufCheckpoint(gguf_file)
    assert reader.files == [gguf_file]
    assert reader.num_bytes == gguf_file.stat().st_size
    assert "model.norm.weight" in reader
    assert "lm_head.weight" not in reader
    assert reader.dtype("model.norm.weight") == torch.float32
    assert reader.tensor_bytes("model.norm.weight") == HIDDEN * 4
    assert reader.config["dtype"] == "float32"
    assert reader.quantized() is None
    tensor = reader.tensor("model.norm.weight")
    tensor += 1  # a copy, not the file
    assert not torch.equal(tensor, reader.tensor("model.norm.weight"))


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_tensors_keep_their_dtype(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    tensors = draw_tensors()
    reader = GgufCheckpoint(
        write_gguf(tmp_path / "f.gguf", tensors, gguf.GGMLQuantizationType[kind])
    )
    name, source = "model.layers.0.mlp.down_proj.weight", tensors["blk.0.ffn_down.weight"]
    assert reader.quantization(name) == kind
    assert reader.dtype(name) == reader.tensor(name).dtype == dtype
    assert torch.equal(reader.tensor(name), torch.from_numpy(source).to(dtype))
    assert reader.config["dtype"] == str(dtype).removeprefix("torch.")
    assert reader.weight("model.layers.0.mlp.down_proj") is None
    assert reader.quantized() is None


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_matrices_stay_in_blocks(tmp_path: Path, kind: str) -> None:
    tensors = draw_tensors()
    reader = GgufCheckpoint(
        write_gguf(tmp_path / "q.gguf", tensors, gguf.GGMLQuantizationType[kind])
    )
    weights = reader.quantized()
    assert weights is not None
    assert reader.config["dtype"] == "bfloat16"
    for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj"):
        module = f"model.layers.0.{module}"
        name = f"{module}.weight"
        weight = reader.weight(module)
        assert weight is not None
        assert weight.label == kind.lower()
        assert torch.equal(weight.dequantize(), reader.tensor(name))  # rows of q and k included
        assert module in weights
        assert weights.module_of(name) == module
        assert weights.num_weights(module) == weight.shape[0] * weight.shape[1]
        assert weights.weight(module).blocks.numel() == reader.tensor_bytes(name)
    assert "model.norm" not in weights
    assert weights.module_of("model.norm.weight") is None
    assert reader.weight("model.norm") is None
    assert reader.weight("model.layers.7.mlp.up_proj") is None


def test_the_scheme_is_the_files_mix(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "q.gguf", draw_tensors(), kind)
    reader = GgufCheckpoint(path)
    weights = reader.quantized()
    assert weights is not None
    for file_type, scheme in ((15, "gguf-q4_k_m"), (7, "gguf-q8_0"), (999, "gguf-mixed")):
        reader.metadata["general.file_type"] = file_type
        assert weights.scheme == scheme


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"one of 3 parts.*--merge"):
        GgufCheckpoint(tmp_path / "part.gguf")


def test_blocks_that_have_no_type_here_are_still_dequantized(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.TQ2_0
    matrix = np.sign(np.random.default_rng(0).standard_normal((VOCAB, 256), dtype=np.float32))
    writer = gguf.GGUFWriter(tmp_path / "ternary.gguf", "llama")
    for key in ("context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 256)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    packed = gguf.quants.quantize(matrix, kind)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = GgufCheckpoint(tmp_path / "ternary.gguf")
    assert reader.weight("model.embed_tokens") is None
    assert np.array_equal(reader.tensor("model.embed_tokens.weight").numpy(), matrix)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"rope_freqs.weight": np.ones(7, np.float32)}, "not a number for each pair"),
        ({"token_embd.weight": np.zeros((0, 4), np.float32)}, "token_embd.weight is empty"),
    ],
)
def test_tensors_of_impossible_shapes_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], reason: str
) -> None:
    path = write_gguf(tmp_path / "odd.gguf", draw_tensors() | tensors)
    with pytest.raises(CheckpointError, match=reason):
        GgufCheckpoint(path)


def test_more_layers_than_tensors_are_refused(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "deep.gguf", draw_tensors()).read_bytes()
    key = b"llama.block_count" + (4).to_bytes(4, "little")
    deep = content.replace(key + b"\x01\0\0\0", key + b"\xff\xff\xff\xff")
    assert deep != content
    (tmp_path / "deep.gguf").write_bytes(deep)
    with pytest.raises(CheckpointError, match="more layers than tensors"):
        GgufCheckpoint(tmp_path / "deep.gguf")
