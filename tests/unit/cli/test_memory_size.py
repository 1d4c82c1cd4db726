import pytest

from llmopt.cli.memory_size import parse_memory_size
from llmopt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5GB", 1_500_000_000),
        (" 3 kib ", 3072),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, num_bytes: int) -> None:
    assert parse_memory_size("--kv-memory", text) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "0.1B", "-1GiB", "many", "1XB", "1 GiB 2", "1e9"])
def test_other_texts_are_refused_with_the_name_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"--kv-memory is .* like 512MiB"):
        parse_memory_size("--kv-memory", text)
