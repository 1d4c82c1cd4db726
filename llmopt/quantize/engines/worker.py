"""One worker, run to its end in the environment of its engine.

Knows processes and logs; knows nothing of checkpoints. The law: a failure is one sentence that
names the log, and a log is kept only of a failure.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from llmopt.environment.environment import Environment
from llmopt.environment.installation import process_variables
from llmopt.environment.process import LineCallback, follow_process
from llmopt.errors import BackendError
from llmopt.formats.staging import output_errors
from llmopt.hardware.cache import cache_directory
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.job import JOB_FILE, RESULT_FILE, TEMPORARY_NAME

WORKERS = Path(__file__).parent / "workers"
_REASON_CHARACTERS = 300
_KILLED = -9


def run_worker(
    engine: Engine, environment: Environment, python: Path, work: Path, on_line: LineCallback
) -> dict[str, str]:
    """Run the job in `work` and return the versions that the worker reports.

    Raises `BackendError` with the engine's own reason when it fails.
    """
    log = _log_file(engine)
    last = ""

    def take(line: str) -> None:
        nonlocal last
        last = line
        on_line(line)

    variables = {
        "HF_HUB_OFFLINE": "1",  # whatever it needs is in the job
        "TOKENIZERS_PARALLELISM": "false",
        **process_variables(environment),
        "TMPDIR": str(work / TEMPORARY_NAME),
    }
    command = (python, WORKERS / "run_job.py", work / JOB_FILE)
    try:
        status = follow_process(command, variables=variables, log=log, on_line=take, directory=work)
    except OSError as error:
        raise BackendError(
            f"{python} cannot be started ({error.strerror})",
            f"Run `llmopt backend remove {environment.name}` and "
            f"`llmopt backend install {environment.name}`.",
        ) from error
    except KeyboardInterrupt:
        log.unlink(missing_ok=True)
        raise
    result = _read_result(work / RESULT_FILE)
    if status != 0 or "versions" not in result:
        reason = _reason(status, str(result.get("error", "")) or last)
        raise BackendError(f"{engine.name} failed: {reason}", f"Its whole output is in {log}.")
    log.unlink(missing_ok=True)
    versions: dict[str, str] = result["versions"]
    return versions


def _log_file(engine: Engine) -> Path:
    directory = cache_directory() / "logs"
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{engine.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _read_result(file: Path) -> dict[str, Any]:
    """What the worker left, or nothing if it did not get that far."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _reason(status: int, said: str) -> str:
    """One line on why a worker failed."""
    if status < 0:
        ended = f"it was ended by signal {-status}"
        return f"{ended}, most likely for lack of memory" if status == _KILLED else ended
    line = next(iter(said.splitlines()), "") or f"it ended with status {status}"
    return line if len(line) <= _REASON_CHARACTERS else f"{line[:_REASON_CHARACTERS]}…"
