"""Names of models become directories, or one sentence."""

import errno
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from llmopt.errors import CheckpointError, LLMOptError, ModelError, OutputError
from llmopt.models import resolve
from llmopt.models.package_model import PACKAGE_MODELS
from llmopt.models.resolve import resolve_model


def hub_error(kind: type[hub.HfHubHTTPError]) -> hub.HfHubHTTPError:
    return kind("the hub says no\nand more", response=Mock(headers={}))


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def answer_of_hub(monkeypatch: pytest.MonkeyPatch) -> Mock:
    download = Mock()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return download


@pytest.mark.parametrize("alias", ["smollm2-135m", "gemma3-270m"])
def test_an_alias_is_a_model_in_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alias: str
) -> None:
    ensure = Mock(return_value=tmp_path)
    monkeypatch.setattr(resolve, "ensure_package_model", ensure)
    progress = Mock()
    assert resolve_model(alias, progress) == tmp_path
    ensure.assert_called_once_with(PACKAGE_MODELS[alias], progress)


def test_a_directory_is_itself(model_directory: Path, answer_of_hub: Mock) -> None:
    assert resolve_model(str(model_directory)) == model_directory
    answer_of_hub.assert_not_called()


def test_a_directory_that_looks_like_a_hub_id_is_a_directory(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch, answer_of_hub: Mock
) -> None:
    monkeypatch.chdir(model_directory.parent.parent)
    name = f"{model_directory.parent.name}/{model_directory.name}"
    assert resolve_model(name) == Path(name)
    answer_of_hub.assert_not_called()


@pytest.mark.parametrize("name", ["/no/such/dir", "./absent", "~/absent/dir", "a/b/c"])
def test_a_missing_directory(name: str, answer_of_hub: Mock) -> None:
    with pytest.raises(ModelError, match=f"there is no directory {name}") as caught:
        resolve_model(name)
    assert "smollm2-135m" in caught.value.remedy
    answer_of_hub.assert_not_called()


def test_a_bare_unknown_name() -> None:
    with pytest.raises(ModelError, match="there is no model 'smolm'"):
        resolve_model("smolm")


def test_a_file(model_directory: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is a file, not a model directory"):
        resolve_model(str(model_directory / "config.json"))


def test_a_directory_without_config(model_directory: Path) -> None:
    (model_directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve_model(str(model_directory))


def test_a_directory_without_weights(model_directory: Path) -> None:
    (model_directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors weights"):
        resolve_model(str(model_directory))


def test_a_directory_with_only_a_pickle(model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle \(pytorch_model\.bin\)") as caught:
        resolve_model(str(model_directory))
    assert "save_pretrained" in caught.value.remedy


def test_a_hub_id_fetches_no_pickle(model_directory: Path, answer_of_hub: Mock) -> None:
    answer_of_hub.return_value = str(model_directory)
    assert resolve_model("some-org/Some.Model-1") == model_directory
    (name,), options = answer_of_hub.call_args
    assert name == "some-org/Some.Model-1"
    wanted = options["allow_patterns"]
    assert "*.safetensors" in wanted
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in wanted)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (hub_error(hub.GatedRepoError), ModelError, "gated.*log in"),
        (hub_error(hub.RepositoryNotFoundError), ModelError, "neither a directory.*nor a public"),
        (hub.HFValidationError("bad"), ModelError, "neither a directory"),
        (hub.LocalEntryNotFoundError("x"), ModelError, "cannot be reached.*network"),
        (hub.OfflineModeIsEnabled("x"), ModelError, "cannot be reached.*HF_HUB_OFFLINE"),
        (hub_error(hub.HfHubHTTPError), ModelError, r"refused \(the hub says no"),
        (OSError(errno.ENOSPC, "No space left"), OutputError, "cannot be stored.*HF_HOME"),
        (ValueError(""), ModelError, r"fetching failed \(ValueError\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_refusal_of_the_hub_is_one_sentence(
    error: Exception, kind: type[LLMOptError], words: str, answer_of_hub: Mock
) -> None:
    answer_of_hub.side_effect = error
    with pytest.raises(kind, match=words) as caught:
        resolve_model("org/model")
    assert "org/model" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"")
    assert resolve_model(str(file)) == file


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"")
    (tmp_path / "README.md").write_text("")
    assert resolve_model(str(tmp_path)) == tmp_path / "tiny.gguf"


def test_of_several_gguf_files_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"4 GGUF files \(a.gguf, b.gguf, c.gguf, \.\.\.\)"):
        resolve_model(str(tmp_path))


def test_safetensors_come_before_gguf(model_directory: Path) -> None:
    (model_directory / "tiny.gguf").write_bytes(b"")
    assert resolve_model(str(model_directory)) == model_directory


@pytest.mark.parametrize("name", ["a prompt in the place of a model " * 10, "~nosuchuser/model"])
def test_what_cannot_be_looked_for_is_one_sentence(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be looked for") as caught:
        resolve_model(name)
    assert len(str(caught.value)) < 400
