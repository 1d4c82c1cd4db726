"""The mock server as a child process, and what a test says to it."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from .behaviour import Behaviour


class MockProcess:
    """A mock server that lives as long as the context; its models are behaviours by name."""

    def __init__(self, *, ready_after_s: float = 0.0) -> None:
        command = [sys.executable, "-m", "mock_server", f"--ready-after={ready_after_s}"]
        folder = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": folder}
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the mock server did not start"

    def add(self, name: str, **fields: Any) -> str:
        """Have a model of this behaviour; returns its name."""
        behaviour = Behaviour(**fields)
        self._call("POST", "/mock/models", json={name: behaviour.to_json()})
        return name

    def log(self, model: str) -> list[dict[str, Any]]:
        """What happened to the model's requests, in the order in which they came."""
        entries: list[dict[str, Any]] = self._call("GET", f"/mock/log/{model}")
        return entries

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "MockProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = httpx.request(method, self.url + path, trust_env=False, **options)
        return answer.raise_for_status().json()
