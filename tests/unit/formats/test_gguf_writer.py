"""Files that GgufWriter writes: read back by the gguf package, whole or not there at all."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import OutputError
from llmopt.formats.gguf_blocks import GgufWeight, ggml_type
from llmopt.formats.gguf_header import GgufField, TensorPlan, encode_header, parse_header
from llmopt.formats.gguf_writer import GgufWriter

METADATA = {
    "general.architecture": GgufField.string("llama"),
    "test.count": GgufField.uint32(7),
    "test.real": GgufField.float32(0.5),
    "test.flag": GgufField.boolean(True),
    "test.words": GgufField.strings(["ä", "", "日本"]),
    "test.types": GgufField.int32s([-1, 2]),
    "test.scores": GgufField.float32s([-0.25, 1e6]),
    "test.flags": GgufField.booleans([True, False]),
}
PLANS = [
    TensorPlan("vector", (5,), ggml_type("f32")),
    TensorPlan("half", (3, 7), ggml_type("f16")),
    TensorPlan("blocks", (2, 64), ggml_type("q8_0")),
]


def contents(seed: int = 0) -> list[torch.Tensor | GgufWeight]:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (2, 68), generator=random, dtype=torch.uint8)
    return [
        torch.randn(5, generator=random),
        torch.randn(3, 7, generator=random).half(),
        GgufWeight(codes, ggml_type("q8_0"), (2, 64)),
    ]


def write(path: Path, metadata: dict[str, GgufField] = METADATA) -> Path:
    with GgufWriter(path, metadata, PLANS) as writer:
        for plan, content in zip(PLANS, contents(), strict=True):
            writer.add(plan.name, content)
    return path


@pytest.mark.parametrize("alignment", [None, 64, 8])
def test_the_gguf_package_reads_it(tmp_path: Path, alignment: int | None) -> None:
    metadata = dict(METADATA)
    if alignment:
        metadata["general.alignment"] = GgufField.uint32(alignment)
    reader = gguf.GGUFReader(write(tmp_path / "model.gguf", metadata))
    for key, field in metadata.items():
        assert reader.fields[key].contents() == field.value
    vector, half, blocks = reader.tensors
    expected = contents()
    assert np.array_equal(vector.data, expected[0].numpy())
    assert np.array_equal(half.data, expected[1].numpy())
    assert np.array_equal(blocks.data, expected[2].blocks.numpy())
    assert blocks.tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert [int(size) for size in half.shape] == [7, 3]  # innermost first
    assert all(tensor.data_offset % (alignment or 32) == 0 for tensor in reader.tensors)


def test_it_is_byte_for_byte_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("test.count", 7)
    writer.add_array("test.words", ["a", "bc"])
    writer.add_tensor("vector", contents()[0].numpy())
    writer.add_tensor("half", contents()[1].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {
        "general.architecture": GgufField.string("llama"),
        "test.count": GgufField.uint32(7),
        "test.words": GgufField.strings(["a", "bc"]),
    }
    with GgufWriter(tmp_path / "ours.gguf", metadata, PLANS[:2]) as ours:
        for plan, content in zip(PLANS[:2], contents()[:2], strict=True):
            ours.add(plan.name, content)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size == GgufWriter(first, METADATA, PLANS).num_bytes


names = st.text(min_size=1, max_size=8)
scalars = st.one_of(
    st.integers(0, 2**32 - 1).map(GgufField.uint32),
    st.floats(width=32, allow_nan=False).map(GgufField.float32),
    st.booleans().map(GgufField.boolean),
    st.text().map(GgufField.string),
    st.lists(st.text()).map(GgufField.strings),
    st.lists(st.integers(-(2**31), 2**31 - 1)).map(GgufField.int32s),
    st.lists(st.floats(width=32, allow_nan=False)).map(GgufField.float32s),
)


@given(
    metadata=st.dictionaries(names, scalars, max_size=6),
    shapes=st.dictionaries(names, st.lists(st.integers(1, 5), min_size=1, max_size=2), max_size=5),
)
def test_a_header_is_parsed_as_it_was_written(
    metadata: dict[str, GgufField], shapes: dict[str, list[int]]
) -> None:
    plans = [TensorPlan(name, tuple(shape), ggml_type("f32")) for name, shape in shapes.items()]
    header = encode_header(metadata, plans)
    space = sum(-(-plan.num_bytes // 32) * 32 for plan in plans)
    parsed = parse_header(memoryview(header + bytes(space)))
    assert parsed.metadata == {key: field.value for key, field in metadata.items()}
    assert {name: info.shape for name, info in parsed.tensors.items()} == {
        plan.name: plan.shape for plan in plans
    }
    assert all(info.offset % 32 == 0 for info in parsed.tensors.values())


def write_until(error: type[BaseException], path: Path) -> None:
    with GgufWriter(path, METADATA, PLANS) as writer:
        writer.add("vector", contents()[0])
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_until(error, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_it_appears_under_its_name_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.gguf"
    with GgufWriter(path, METADATA, PLANS) as writer:
        for plan, content in zip(PLANS, contents(), strict=True):
            writer.add(plan.name, content)
        assert writer.seal() == writer.staging
        assert writer.staging.name.startswith(".model.gguf.")
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    with pytest.raises(OutputError, match="exists already"):
        write(path)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk filled up"):
        write(tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 100, 20_000])
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path, limit: int) -> None:
    large = [TensorPlan("large", (1 << 12, 16), ggml_type("f32"))]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with (
            pytest.raises(OutputError, match=r"model\.gguf cannot be written \(File too large\)"),
            GgufWriter(tmp_path / "model.gguf", METADATA, large) as writer,
        ):
            writer.add("large", torch.zeros(1 << 12, 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_known_before_anything_is_written(tmp_path: Path) -> None:
    huge = [TensorPlan("huge", (1 << 30, 1 << 20), ggml_type("f32"))]
    with (
        pytest.raises(OutputError, match="are free"),
        GgufWriter(tmp_path / "model.gguf", METADATA, huge),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "reason"), [(0, "does not begin with the GGUF magic"), (-40, "tensor blocks differs")]
)
def test_a_disk_that_forgets_is_noticed(
    place: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(descriptor: int) -> None:
        file = next(tmp_path.glob(".model.gguf.*"))
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(OutputError, match=f"is not what was written.*{reason}"):
        write(tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def misuse(writer: GgufWriter) -> list[Any]:
    return [
        ("half", contents()[1]),  # not its turn
        ("vector", torch.zeros(6)),  # another shape
        ("vector", torch.zeros(5).half()),  # another dtype
    ]


@pytest.mark.parametrize("case", range(3))
def test_what_was_not_declared_is_our_own_mistake(tmp_path: Path, case: int) -> None:
    with (
        pytest.raises(AssertionError, match="declared"),
        GgufWriter(tmp_path / "model.gguf", METADATA, PLANS) as writer,
    ):
        writer.add(*misuse(writer)[case])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor_is_our_own_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="every declared tensor"),
        GgufWriter(tmp_path / "model.gguf", METADATA, PLANS),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
