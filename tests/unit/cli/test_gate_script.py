"""`ci/gate.sh` and the workflow that runs it, as far as they go without the service."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "llmopt-gate.yml"


def run_script(tmp_path: Path, code: int, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the script with a stand-in for llmopt that prints its arguments and exits with `code`."""
    fake = tmp_path / "fake"
    fake.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    fake.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "ci" / "gate.sh"), "HEAD~1", "r.yaml", str(tmp_path / "out dir")],
        env={"PATH": "/usr/bin:/bin", "LLMOPT": str(fake), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_exit_code_is_that_of_the_gate(tmp_path, code):
    found = run_script(tmp_path, code)
    assert found.returncode == code
    assert found.stdout.startswith("gate --run r.yaml --against HEAD~1 --out ")
    assert (tmp_path / "out dir" / "gate.txt").read_text() == found.stdout


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (3, 0)])
def test_an_open_question_can_be_let_through(tmp_path, code, expected):
    found = run_script(tmp_path, code, LLMOPT_GATE_ALLOW_INCONCLUSIVE="1")
    assert found.returncode == expected


def test_without_a_revision_the_script_says_how_it_is_used():
    found = subprocess.run(
        [str(ROOT / "ci" / "gate.sh")], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    assert "usage: ci/gate.sh REVISION" in found.stderr


def test_the_workflow_pins_its_actions_and_names_files_that_are_there():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    (gate,) = [step["run"] for step in steps if step.get("name") == "Gate"]
    script, revision, recipe, _ = gate.split()
    assert revision == '"$REVISION"'  # never pasted into the shell's text
    assert (ROOT / script).is_file()
    assert (ROOT / recipe).is_file()
    (checkout,) = [step for step in steps if step.get("uses", "").startswith("actions/checkout")]
    assert checkout["with"]["fetch-depth"] == 0
