import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmopt.errors import CheckpointError, OutputError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter


def write(path: Path, shard_bytes: int = 1 << 30, count: int = 3) -> dict[str, torch.Tensor]:
    tensors = {f"t{i}": torch.full((4, 4), float(i)) for i in range(count)}
    with CheckpointWriter(path, shard_bytes=shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.set_config({"architectures": ["X"]})
    return tensors


@pytest.mark.parametrize("shard_bytes", [1 << 30, 64, 150])
def test_what_was_written_is_read_back(tmp_path, shard_bytes):
    tensors = write(tmp_path / "model", shard_bytes)
    reader = CheckpointReader(tmp_path / "model")
    assert sorted(reader.names()) == sorted(tensors)
    assert reader.config == {"architectures": ["X"]}
    for name, tensor in tensors.items():
        assert torch.equal(reader.tensor(name), tensor)
        assert reader.shape(name) == (4, 4)
        assert reader.dtype(name) == torch.float32
    assert len(reader.files) == {1 << 30: 1, 64: 3, 150: 2}[shard_bytes]
    assert reader.num_bytes == sum(f.stat().st_size for f in reader.files)
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "no staging directory is left"


def test_shards_are_named_and_indexed_as_transformers_does(tmp_path):
    write(tmp_path / "model", shard_bytes=64)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["t2"] == "model-00003-of-00003.safetensors"
    assert index["metadata"]["total_size"] == 3 * 64


def test_an_error_inside_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "model") as writer:
            writer.add("t", torch.zeros(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_never_overwritten(tmp_path):
    write(tmp_path / "model")
    with (
        pytest.raises(OutputError, match="exists already"),
        CheckpointWriter(tmp_path / "model"),
    ):
        raise AssertionError("the body must not run")
    assert CheckpointReader(tmp_path / "model").names() == ["t0", "t1", "t2"]


def test_too_little_space_is_refused_before_any_work(tmp_path):
    with (
        pytest.raises(OutputError, match="are free"),
        CheckpointWriter(tmp_path / "model", expected_bytes=10**18),
    ):
        raise AssertionError("the body must not run")


def test_a_disk_that_fills_up_is_one_clear_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llmopt.formats.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="disk filled up"):
        write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write(tmp_path / "file" / "model")


@pytest.mark.parametrize("keep", [0, 4, 40, 200])
def test_truncated_files_are_refused(tmp_path, keep):
    write(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        CheckpointReader(tmp_path / "model")


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model directory"):
        CheckpointReader(tmp_path / "nothing")
    write(tmp_path / "model", shard_bytes=64)
    reader = CheckpointReader(tmp_path / "model")
    with pytest.raises(CheckpointError, match="tensor other is not in"):
        reader.tensor("other")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        _ = CheckpointReader(tmp_path / "model").config
    (tmp_path / "model" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="though the index names it"):
        CheckpointReader(tmp_path / "model")


def test_an_index_cannot_point_outside_the_model(tmp_path):
    write(tmp_path / "model", shard_bytes=64)
    save_file({"t0": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index_path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["weight_map"]["t0"] = "../outside.safetensors"
    index_path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the model"):
        CheckpointReader(tmp_path / "model")


def test_pickled_weights_are_not_opened(tmp_path):
    write(tmp_path / "model")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        CheckpointReader(tmp_path / "model")


def test_sealed_files_can_be_verified_before_they_are_published(tmp_path):
    def verify_and_refuse() -> None:
        with CheckpointWriter(tmp_path / "model") as writer:
            writer.add("t", torch.ones(2))
            writer.set_config({})
            assert torch.equal(writer.seal().tensor("t"), torch.ones(2))
            assert not (tmp_path / "model").exists()
            raise CheckpointError("not what was meant", "Report this.")

    with pytest.raises(CheckpointError, match="not what was meant"):
        verify_and_refuse()
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_not_read_is_named(tmp_path):
    write(tmp_path / "model")
    words = {"packed": torch.zeros(2, dtype=torch.uint32)}
    save_file(words, tmp_path / "model" / "more.safetensors")
    reader = CheckpointReader(tmp_path / "model")
    assert reader.shape("packed") == (2,)
    for read in (reader.dtype, reader.tensor_bytes):
        with pytest.raises(CheckpointError, match=r"tensor packed of .* has the type U32.*F32"):
            read("packed")


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000, "{", "[]", b"\xff".decode("latin-1")])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    write(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _ = CheckpointReader(tmp_path / "model").config


@pytest.mark.parametrize("weight_map", [["x"], {"t0": ["x"]}, {"t0": None}, {"t0": {}}, None])
def test_an_index_without_files_is_refused(tmp_path, weight_map):
    write(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="no usable weight_map"):
        CheckpointReader(tmp_path / "model")
