"""Compile the C++ sources beside this file into one shared library, once for each content.

Knows nothing of what the sources compute. The law: the library's path is a hash of everything that
goes into it (sources, flags, compiler), and it appears there whole or not at all, however many
processes build it at the same time.

Files named `*_avx512.cpp` and `*_avx2.cpp` are compiled for those instruction sets; which of them
runs is decided at run time.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni", "bf16")))
_PARALLEL_COMPILATIONS = 2
_COMMAND_TIMEOUT_S = 600


class BuildError(Exception):
    """There is no compiler, or it refused the sources; the message is one line."""


def find_compiler(environment: Mapping[str, str] = os.environ) -> str:
    """The C++ compiler to use: $CXX if set, or the first that is installed. Raises BuildError."""
    wanted = environment.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if path := shutil.which(name, path=environment.get("PATH")):
            return path
    if wanted:
        raise BuildError(f"the compiler that CXX names, {wanted}, is not installed")
    raise BuildError(f"no C++ compiler is installed ({', '.join(COMPILERS)})")


def build_library(
    directory: Path,
    compiler: str,
    sources: Path = SOURCES,
    on_compile: Callable[[], None] = lambda: None,
) -> Path:
    """The shared library, compiled into `directory` unless it is there. Raises BuildError.

    `on_compile` is called before something is compiled, or waited for while another process does.
    """
    if sys.platform != "linux":
        raise BuildError(f"the C++ kernels are for Linux, and this is {sys.platform}")
    key = _content_hash(compiler, sources)
    library = directory / key / "llmopt_native.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        on_compile()
        with _locked(library.parent / "lock"):
            if not library.exists():  # another process may have been faster
                _compile(compiler, sources, library)
    except OSError as error:
        raise BuildError(f"{library.parent} cannot be written ({error.strerror})") from error
    return library


def source_flags(name: str, machine: str) -> tuple[str, ...]:
    """Flags of one source file for its instruction set; none on processors that are not x86-64."""
    if machine not in ("x86_64", "AMD64"):
        return ()
    stem = name.removesuffix(".cpp")
    return _AVX512 if stem.endswith("_avx512") else _AVX2 if stem.endswith("_avx2") else ()


def _content_hash(compiler: str, sources: Path) -> str:
    version = _run([compiler, "--version"])
    parts = [platform.machine(), compiler, version, *FLAGS, *_AVX512]
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:24]


def _compile(compiler: str, sources: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:

        def compile_one(source: Path) -> str:
            target = str(Path(scratch) / f"{source.stem}.o")
            flags = source_flags(source.name, platform.machine())
            _run([compiler, *FLAGS, *flags, "-c", str(source), "-o", target])
            return target

        with ThreadPoolExecutor(_PARALLEL_COMPILATIONS) as pool:
            objects = list(pool.map(compile_one, sorted(sources.glob("*.cpp"))))
        linked = Path(scratch) / library.name
        _run([compiler, "-shared", "-fopenmp", *objects, "-o", str(linked)])
        with linked.open("rb") as file:
            os.fsync(file.fileno())  # before its name is there, also for a machine that stops
        os.replace(linked, library)


def _run(command: list[str]) -> str:
    """Output of a command. Raises BuildError with the first line that says what is wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_COMMAND_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line), "no message")
        raise BuildError(f"{command[0]} failed: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {_COMMAND_TIMEOUT_S} s") from error
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run ({error.strerror})") from error
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the operating system releases it if this process dies."""
    import fcntl  # not on Windows, where nothing is built

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
