"""Why pip failed, in one sentence, read from what it printed.

Knows nothing of environments. The law: what is not recognised is quoted, never guessed.
"""

import re
from collections.abc import Sequence

from llmopt.errors import BackendError

_LOG = "The whole output is in {log}."
_CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk filled up",
        "Free some space, or set LLMOPT_CACHE to a directory on another disk.",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable|"
        r"Failed to establish a new connection|Connection refused|Read timed out|ProxyError|"
        r"ConnectTimeoutError|nodename nor servname",
        "the package index cannot be reached",
        "Check the network, or set PIP_INDEX_URL to an index that this machine reaches.",
    ),
    (
        r"CMAKE_C(XX)?_COMPILER|No CMAKE_|command '[^']*(gcc|cc|g\+\+|clang)[^']*' failed|"
        r"unable to execute '?\w*(gcc|cc|\+\+)|fatal error: Python\.h",
        "a package could not be compiled on this machine",
        "Install a C and C++ compiler and the headers of this Python; on Debian: "
        "`apt-get install build-essential python3-dev`.",
    ),
    (
        r"error: subprocess-exited-with-error|Failed to build|Failed building wheel",
        "a package could not be built on this machine",
        "Another Python (--python) may have a ready wheel.",
    ),
    (
        r"Could not find a version that satisfies|No matching distribution found",
        "the package index has no such version for this machine and Python",
        "Try another Python with --python, or another index with --torch-index or PIP_INDEX_URL.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "its requirements contradict each other",
        "The index may serve other packages than the pinned ones; report it with the log.",
    ),
)
_QUOTED = re.compile(r"^(ERROR|error|\w*Error)\b:?\s*(.+)")


def explain_failure(name: str, step: str, lines: Sequence[str], log: str) -> BackendError:
    """The error to raise after the lines that a failed step of installing `name` printed."""
    text = "\n".join(lines)
    where = _LOG.format(log=log)
    for pattern, cause, remedy in _CAUSES:
        if re.search(pattern, text):
            return BackendError(f"{name} was not installed: {cause} ({step})", f"{remedy} {where}")
    quoted = [match.group(2) for line in lines if (match := _QUOTED.match(line))]
    reason = quoted[-1] if quoted else (lines[-1] if lines else "it printed nothing")
    return BackendError(f"{name} was not installed: {step} failed ({reason})", where)
