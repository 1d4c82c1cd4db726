"""Compiling at first use: once for each content, whole or not at all, never an error for a user."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmopt_kernels.native import library as native
from llmopt_kernels.native.build import (
    SOURCES,
    BuildError,
    build_library,
    find_compiler,
    source_flags,
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("one.cpp", "two_avx2.cpp", "shared.h"):
        (folder / name).write_text(f"// {name}\n")
    return folder


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A compiler that writes its arguments to what it should make, and one line to a log."""
    script = tmp_path / "fake-c++"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo fake 1.0; exit; fi\n'
        f'echo "$@" >> {tmp_path}/log\n'
        'for last; do :; done; echo "$@" > "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_each_source_is_compiled_once_for_its_instruction_set(tmp_path, sources, compiler):
    said: list[str] = []

    def build() -> Path:
        return build_library(
            tmp_path / "cache", str(compiler), sources, lambda: said.append("compiling")
        )

    made = build()
    assert made.read_text().startswith("-shared")
    assert len(calls(tmp_path)) == 3
    assert build() == made
    assert len(calls(tmp_path)) == 3
    assert said == ["compiling"]
    leftovers = {path.name for path in made.parent.iterdir()} - {made.name, "lock"}
    assert leftovers == set()


@pytest.mark.parametrize("change", ["source", "header", "compiler"])
def test_other_content_is_another_library(tmp_path, sources, compiler, change):
    before = build_library(tmp_path / "cache", str(compiler), sources)
    changed = {"source": sources / "one.cpp", "header": sources / "shared.h"}.get(change, compiler)
    text = changed.read_text()
    changed.write_text(text.replace("fake 1.0", "fake 2.0").replace("// ", "// other "))
    after = build_library(tmp_path / "cache", str(compiler), sources)
    assert after != before
    assert before.exists()


def test_builders_at_the_same_time_compile_once(tmp_path, sources, compiler):
    with ThreadPoolExecutor(4) as pool:
        arguments = [(tmp_path / "cache", str(compiler), sources)] * 4
        made = set(pool.map(lambda a: build_library(*a), arguments))
    assert len(made) == 1
    assert len(calls(tmp_path)) == 3


def test_a_compiler_that_refuses_is_quoted(tmp_path, sources):
    script = tmp_path / "refusing"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
        "echo 'warning: hm' >&2; echo 'one.cpp:3: error: no such thing' >&2; exit 1\n"
    )
    script.chmod(0o755)
    with pytest.raises(BuildError, match=r"refusing failed: one.cpp:3: error: no such thing"):
        build_library(tmp_path / "cache", str(script), sources)
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path, sources, compiler):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(BuildError, match="cannot be written"):
        build_library(tmp_path / "cache", str(compiler), sources)


def test_cxx_names_the_compiler(compiler):
    assert find_compiler({"CXX": str(compiler), "PATH": ""}) == str(compiler)
    with pytest.raises(BuildError, match="CXX names, nothing-here, is not installed"):
        find_compiler({"CXX": "nothing-here", "PATH": ""})
    with pytest.raises(BuildError, match=r"no C\+\+ compiler is installed"):
        find_compiler({"PATH": ""})


def test_flags_follow_the_name_and_the_processor():
    assert "-mavx512vnni" in source_flags("linear_avx512.cpp", "x86_64")
    assert source_flags("linear_avx2.cpp", "x86_64") == ("-mavx2", "-mfma", "-mf16c")
    assert source_flags("linear_scalar.cpp", "x86_64") == ()
    assert source_flags("linear_avx512.cpp", "aarch64") == ()


def test_without_a_compiler_one_line_says_so_and_torch_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "nothing-here")
    monkeypatch.delenv("LLMOPT_NATIVE", raising=False)
    for _ in range(2):
        assert native.native_library(tmp_path) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "nothing-here" in lines[0]
    assert "LLMOPT_NATIVE=0" in lines[0]


@pytest.mark.parametrize("times", [1, 2])
def test_a_library_that_cannot_be_loaded_is_built_once_more(
    tmp_path, sources, compiler, monkeypatch, capsys, times
):
    """Such as one that a machine which stopped left half written; `times` it cannot be loaded."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv("LLMOPT_NATIVE", raising=False)
    monkeypatch.setattr(native, "build_library", partial(build_library, sources=sources))
    build_library(cache, str(compiler), sources).write_text("half")
    loaded: list[str] = []

    def load(path: str) -> SimpleNamespace:
        loaded.append(Path(path).read_text())
        if len(loaded) <= times:
            raise OSError("file too short")
        return SimpleNamespace(llmopt_best_instruction_set=lambda: 1)

    monkeypatch.setattr(native.ctypes, "CDLL", load)
    found = native.native_library(cache)
    assert len(loaded) == 2
    assert (loaded[0], loaded[1][:7]) == ("half", "-shared")
    said = capsys.readouterr().err
    assert "compiling the CPU kernels" in said
    assert ("file too short" in said) == (found is None) == (times == 2)


def test_turned_off_nothing_is_built_and_nothing_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    assert native.native_library(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_the_sources_are_package_data():
    import tomllib

    project = tomllib.loads((SOURCES.parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["llmopt_kernels.native"]
    shipped = {path.name for pattern in patterns for path in SOURCES.glob(pattern)}
    assert {path.name for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h")} == shipped
    assert "linear.cpp" in shipped
