"""What a model is called in records, files and cards."""

from pathlib import Path

import pytest

from llmopt.quantize.identity import source_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/tiny", "tiny"),
        ("/hub/models--org--my-model/snapshots/0123abcd", "my-model"),
        ("/hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ("/models/snapshots/v2", "v2"),
    ],
)
def test_a_model_is_called_by_its_directory_or_repository(path, name):
    assert source_name(Path(path)) == name


def test_the_directory_here_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_name(Path()) == tmp_path.name
