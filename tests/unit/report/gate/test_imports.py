import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["llmopt.report.gate.verdict", "llmopt.report.gate.terminal", "llmopt.cli.gate"]
)
def test_the_gate_reads_results_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
