"""A cache of its own for every test, and a python that only pretends to be one."""

import sys
from pathlib import Path

import pytest

from llmopt.environment.catalogue import ENVIRONMENTS
from llmopt.environment.environment import Environment

# Notes its arguments; `-m venv DIR` copies it to DIR/bin/python; a step whose arguments contain
# FAIL_AT prints FAIL_TEXT and fails; the listing is made as it really is.
STUB = f"""#!{sys.executable}
import json, os, shutil, sys
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ["STUB_CALLS"], "a") as calls:
    print(json.dumps(arguments), file=calls)
print("running", *arguments[:3], flush=True)
if os.environ.get("FAIL_AT") and any(os.environ["FAIL_AT"] in a for a in arguments):
    print(os.environ["FAIL_TEXT"])
    sys.exit(1)
if arguments[:2] == ["-m", "venv"]:
    target = Path(arguments[2]) / "bin" / "python"
    target.parent.mkdir(parents=True)
    shutil.copy(sys.argv[0], target)
elif len(arguments) == 3 and arguments[0] == "-c":
    Path(arguments[2]).write_text(json.dumps({{"stubbed": "1.2", "torch": "2.13.0"}}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    for environment in ENVIRONMENTS:
        monkeypatch.delenv(environment.override_variable, raising=False)
    for name in ("FAIL_AT", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def stub_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "stub-python"
    path.write_text(STUB)
    path.chmod(0o755)
    monkeypatch.setenv("STUB_CALLS", str(tmp_path / "calls"))
    return path


@pytest.fixture
def stubbed() -> Environment:
    return Environment(
        name="stubbed.one",
        purpose="tests",
        package="stubbed",
        module="stubbed",
        torch="torch==2.13.0",
        requirements=("stubbed==1.2", "other==3.0"),
        bare_requirements=("bare==0.1",),
        variables=(("STUB_VARIABLE", "2"),),
        disk_gb=0.001,
        minutes=1,
    )
