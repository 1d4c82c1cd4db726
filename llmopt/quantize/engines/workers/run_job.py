"""Runs one job in the environment of an engine: `python run_job.py JOB.json`.

Knows the job file and nothing of engines. The law: it ends when its parent does, and what it leaves
in the result file says whether the job was done and with which versions, or why not.
"""

import importlib.metadata
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the job of the command line; returns the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result: dict[str, Any] = {}
    try:
        runpy.run_path(job["worker"])["quantize"](job)
        result["versions"] = {name: importlib.metadata.version(name) for name in job["packages"]}
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


def _end_with_parent() -> None:
    """Standard input is a pipe that nothing is written to; it closes when the parent is gone."""
    while os.read(0, 1 << 10):
        pass
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # engines leave threads behind that would keep the process waiting
