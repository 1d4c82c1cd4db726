import gc
import time
from pathlib import Path

import torch

from llmopt.hardware.memory import MemoryMeter, host_bytes

MEGABYTE = 1 << 20
CPU = torch.device("cpu")


def use(megabytes: int) -> None:
    tensor = torch.ones(megabytes * MEGABYTE, dtype=torch.uint8)
    time.sleep(0.1)  # some samples long
    assert tensor[-1] == 1


def test_a_peak_is_remembered_after_it_is_over():
    before = host_bytes()
    with MemoryMeter(CPU) as meter:
        use(200)
    assert 150 * MEGABYTE < meter.peak().host_bytes - before < 260 * MEGABYTE
    assert host_bytes() - before < 100 * MEGABYTE
    assert meter.peak().device_bytes is None


def test_sections_have_peaks_of_their_own():
    gc.collect()  # what earlier tests left must not be freed while this one counts
    before = host_bytes()
    with MemoryMeter(CPU) as meter:
        with meter.section("small"):
            use(40)
        with meter.section("large"):
            use(240)
        use(100)
    extra = {name: meter.peak(name).host_bytes - before for name in ("small", "large", None)}
    assert 80 * MEGABYTE < extra["small"] < 180 * MEGABYTE  # that of everyone counts for it
    assert 200 * MEGABYTE < extra["large"] == extra[None]


def test_mapped_files_do_not_count(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save_file({"x": torch.ones(200 * MEGABYTE, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    before = host_bytes()
    tensor = load_file(tmp_path / "x.safetensors")["x"]
    assert int(tensor.sum()) == 200 * MEGABYTE
    assert host_bytes() - before < 50 * MEGABYTE
