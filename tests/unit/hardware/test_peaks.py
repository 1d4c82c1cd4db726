"""Data-sheet peaks are found by the names that drivers give."""

import pytest

from llmopt.hardware.peaks import find_peak


@pytest.mark.parametrize(
    ("name", "tera_flops", "tera_bytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 3.35),
        ("NVIDIA H100 PCIe", 756, 2.0),
        ("NVIDIA H100 NVL", 835, 3.9),
        ("NVIDIA H200", 989, 4.8),
        ("NVIDIA H200 NVL", 836, 4.8),
        ("NVIDIA A100-SXM4-80GB", 312, 2.0),
        ("NVIDIA A100-SXM4-40GB", 312, 1.6),
        ("NVIDIA GB200", 2500, 8.0),
        ("NVIDIA B200", 2250, 8.0),
        ("NVIDIA L40S", 362, 0.864),
        ("NVIDIA L4", 121, 0.300),
        ("NVIDIA A40", 149.7, 0.696),
        ("NVIDIA GeForce RTX 4090", 165.2, 1.01),
        ("AMD Instinct MI300X", 1307, 5.3),
    ],
)
def test_a_known_device(name: str, tera_flops: float, tera_bytes: float) -> None:
    peak = find_peak(name)
    assert peak is not None
    assert peak.bf16_flops == pytest.approx(tera_flops * 1e12)
    assert peak.memory_bytes_per_s == pytest.approx(tera_bytes * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "AMD EPYC 9575F 64-Core Processor",
        "NVIDIA L40",  # not an L4, not an L40S
        "NVIDIA A4000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
    ],
)
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert find_peak(name) is None
