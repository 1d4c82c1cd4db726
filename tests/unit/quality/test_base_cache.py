import errno
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.quality import base_cache, source
from llmopt.quality.base_cache import DiskLogits, base_cache_directory, base_cache_key
from llmopt.quality.divergence import compare_logits
from llmopt.quality.scores import score_windows

VOCABULARY = 600  # more than the codec keeps exactly


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(source, "CHUNK_ELEMENTS", 7 * VOCABULARY)


@pytest.fixture
def make_disk(make_source, tmp_path):
    def make(**settings):
        model = make_source(vocab_size=VOCABULARY)
        return DiskLogits(model, tmp_path / "root" / "key", **settings), model.model

    return make


@pytest.fixture
def windows(make_windows):
    return make_windows(3, vocab_size=VOCABULARY, num_scored=(19, 10, 1))


def read_all(disk, windows):
    return [torch.cat(list(disk.chunks(window))) for window in windows.windows]


def test_the_second_time_no_model_is_needed_and_the_numbers_are_the_same(make_disk, windows):
    disk, model = make_disk()
    first = read_all(disk, windows)
    assert [len(rows) for rows in first] == [19, 10, 1]
    assert model.calls == 3
    again, idle = make_disk()
    second = read_all(again, windows)
    assert idle.calls == 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert disk.remark is None
    assert again.error == disk.error


def test_its_own_error_is_measured(make_disk, make_source, windows):
    disk, _ = make_disk()
    given = torch.cat(read_all(disk, windows))
    exact = torch.cat(
        [c for w in windows.windows for c in make_source(vocab_size=VOCABULARY).chunks(w)]
    )
    tokens = torch.cat([window.next_tokens for window in windows.windows])
    assert 0 < disk.error < 1e-5
    assert disk.error == pytest.approx(float(compare_logits(exact, given, tokens).kld.mean()))
    for path in disk.directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        assert 0 < float(header["error_mean"]) <= float(header["error_max"]) < 1e-4


def test_chunks_are_as_large_as_those_of_any_source(make_disk, windows):
    disk, _ = make_disk()
    for _ in range(2):
        assert [len(chunk) for chunk in disk.chunks(windows.windows[0])] == [7, 7, 5]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "header"])
def test_a_damaged_file_is_made_again(make_disk, windows, damage):
    disk, _ = make_disk()
    expected = read_all(disk, windows)
    path = max(disk.directory.iterdir(), key=lambda p: p.stat().st_size)
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    damages = {
        "truncated": content[:-100],
        "flipped": flipped,
        "emptied": b"",
        "header": content.replace(b"error_mean", b"error_nine"),
    }
    path.write_bytes(damages[damage])
    again, model = make_disk()
    assert all(torch.equal(a, b) for a, b in zip(read_all(again, windows), expected, strict=True))
    assert model.calls == 1
    mended, idle = make_disk()
    read_all(mended, windows)
    assert idle.calls == 0


def test_a_form_that_costs_too_much_is_not_used(make_disk, make_source, windows, monkeypatch):
    monkeypatch.setattr(base_cache, "MAX_ERROR_NATS", 1e-12)
    disk, model = make_disk()
    given = read_all(disk, windows)
    exact = make_source(vocab_size=VOCABULARY)
    for rows, window in zip(given, windows.windows, strict=True):
        assert torch.equal(rows, torch.cat(list(exact.chunks(window))))
    assert "in compact form they would cost" in disk.remark
    assert disk.error is None
    assert model.calls == 4  # the first window twice, then no more attempts
    assert not disk.directory.exists()


def test_a_full_cache_is_said_and_changes_no_number(make_disk, windows):
    free, _ = make_disk()
    expected = read_all(free, windows)
    one_window = max(path.stat().st_size for path in free.directory.iterdir())
    shutil.rmtree(free.directory)
    disk, _ = make_disk(max_bytes=one_window)
    assert all(torch.equal(a, b) for a, b in zip(read_all(disk, windows), expected, strict=True))
    assert "is full" in disk.remark
    assert str(disk.directory.parent) in disk.remark
    assert len(list(disk.directory.iterdir())) == 1


def test_other_bases_count_towards_the_limit(make_disk, windows, tmp_path):
    other = tmp_path / "root" / "other" / "file"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(50_000))
    disk, _ = make_disk(max_bytes=50_001)
    read_all(disk, windows)
    assert "is full (0.0 of 0.0 GB)" in disk.remark


def test_the_last_of_the_disk_is_left_to_others(make_disk, windows, monkeypatch):
    usage = SimpleNamespace(free=base_cache.RESERVE_BYTES + 1000)
    monkeypatch.setattr(base_cache.shutil, "disk_usage", lambda _: usage)
    disk, _ = make_disk()
    read_all(disk, windows)
    assert "only 1.1 GB are free" in disk.remark
    assert list(disk.directory.iterdir()) == []


def test_a_disk_that_refuses_stops_the_cache_alone(make_disk, windows, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_cache, "save_file", refuse)
    disk, _ = make_disk()
    assert [len(rows) for rows in read_all(disk, windows)] == [19, 10, 1]
    assert disk.remark.startswith("The base's log-probabilities are not kept on disk: ")
    assert list(disk.directory.iterdir()) == []


def test_broken_logits_are_passed_on_and_not_kept(make_disk, windows):
    disk, model = make_disk()
    model.table[windows.windows[1].token_ids[15], 3] = torch.nan
    assert torch.cat(list(disk.chunks(windows.windows[1]))).isnan().any()
    assert not disk.directory.exists()


def test_a_target_sees_the_same_loss_but_for_the_error(make_disk, make_source, windows):
    target = make_source(vocab_size=VOCABULARY, noise=0.3)
    exact = score_windows(target, make_source(vocab_size=VOCABULARY), windows)
    disk, _ = make_disk()
    cached = score_windows(target, disk, windows)
    assert cached.kld_sums == pytest.approx(exact.kld_sums, rel=1e-3)
    assert cached.log_ratio_sums == pytest.approx(exact.log_ratio_sums, rel=1e-5)


def test_the_key_is_of_all_that_decides_the_logits(make_tiny_llama, tmp_path, monkeypatch):
    path = make_tiny_llama()
    reader = CheckpointReader(path)

    def key(reader=reader, dtype=torch.float32, device="cpu", activations="bf16"):
        where = torch.device(device)
        return base_cache_key(reader, dtype=dtype, device=where, activations=activations)

    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert key(CheckpointReader(copy)) == key()
    config = copy / "config.json"
    original = config.read_text()
    config.write_text(json.dumps(json.loads(original) | {"rms_norm_eps": 0.5}))
    assert key(CheckpointReader(copy)) != key()
    config.write_text(original)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key(CheckpointReader(copy)) != key()
    others = (key(dtype=torch.bfloat16), key(device="cuda"), key(activations="int8"))
    assert len({key(), *others}) == 4
    before = key()
    monkeypatch.setattr(base_cache, "CACHE_VERSION", 2)
    assert key() != before


def test_lies_in_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path))
    assert base_cache_directory() == tmp_path / "base-logits"
