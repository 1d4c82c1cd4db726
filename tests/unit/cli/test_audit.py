import json

import pytest
import typer
from typer.testing import CliRunner

from llmopt.cli.audit import audit

BENCH = {"model_type": "tiny", "n_prompt": 64, "n_gen": 0, "avg_ts": 10.0}


@pytest.fixture
def run(tmp_path):
    app = typer.Typer()
    app.command()(audit)

    def invoke(**changes):
        path = tmp_path / "bench.json"
        path.write_text(json.dumps([BENCH | changes]))
        return CliRunner().invoke(app, [str(path)])

    return invoke


def test_a_file_that_passes(run):
    result = run(samples_ts=[10.0, 10.1, 9.9])
    assert result.exit_code == 0
    assert "llama-bench, tiny pp64: every check that applies passed" in result.output
    assert "ok   samples: 3 repetitions" in result.output
    assert "?    serving:" in result.output


def test_a_file_that_fails_is_exit_code_1(run):
    result = run(samples_ts=[10.0])
    assert result.exit_code == 1
    assert "INVALID" in result.output
    assert "FAIL samples: 1 repetitions, 3 are needed" in result.output
