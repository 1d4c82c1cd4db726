"""The page as text; tests/e2e/test_html_report.py opens it in a browser."""

import base64
import hashlib
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from llmopt.report.origin import make_origin
from llmopt.report.render import render
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]
VOID = {"meta", "link", "br", "use", "path"}


class Tags(HTMLParser):
    """All tags with their attributes, and whether they are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(results: list[CellResult]) -> str:
    out = io.StringIO()
    render(results, [], "html", out)
    return out.getvalue()


@pytest.fixture(scope="module")
def evil() -> str:
    return '<img src="https://example.org/x" onerror="alert(1)">\'"&{{ 1 }}'


def test_whatever_a_file_says_stays_text(make_result: MakeResult, evil: str) -> None:
    result = make_result("bf16")
    odd = replace(
        result,
        cell_id=evil,
        target=evil,
        recipe_name=evil,
        recipe={evil: evil},
        error=evil,
        summary=None,
        backend=replace(result.backend, name=evil, version=evil, command=evil),
        environment=replace(
            result.environment, device=evil, os=evil, git_sha=evil, instruction_sets=(evil,)
        ),
        validity=(replace(result.validity[0], name=evil, detail=evil, passed=False),),
    )
    text = page_of([odd, make_result("fp32")])
    tags = Tags(text)
    assert tags.open == []
    names = [name for name, _ in tags.found]
    assert "img" not in names
    assert names.count("script") == 1
    assert not [a for _, attrs in tags.found for a in attrs if a.startswith("on")]
    assert "{{ 1 }}" in text


def test_the_page_needs_nothing_else(demo_results: list[CellResult]) -> None:
    text = page_of(demo_results)
    for name, attributes in Tags(text).found:
        for attribute in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("#", "data:")), (name, value)
    outside = set(re.findall(r"https?://[^\"' <]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text


def test_the_policy_allows_its_own_script_only(demo_results: list[CellResult]) -> None:
    text = page_of(demo_results)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_it_says_what_is_best_what_failed_and_why(make_result: MakeResult) -> None:
    failed = make_result("gptq-w8g64", summary=None, error="out of memory")
    text = page_of([make_result("bf16"), make_result("rtn-w4g64"), failed])
    assert '<span class="reason">failed: out of memory</span>' in text
    assert re.search(r'data-key="0.00041" class="number best"', text)
    assert "Bold: the best of its column" in text
    assert "passed: requests: 4 of 4 succeeded" in text


def test_it_is_the_same_each_time(demo_results: list[CellResult]) -> None:
    assert page_of(demo_results) == page_of(demo_results)


def test_the_recipe_can_be_run_again(make_result: MakeResult) -> None:
    result = make_result()
    name = "my recipe; rm -rf x"
    odd = replace(result, recipe_name=name)
    origin = make_origin([odd, result])
    assert [yaml.safe_load(text) for _, text in origin.recipes] == [odd.recipe, result.recipe]
    assert "git checkout 0123456789" in origin.commands
    (line,) = (line for line in origin.commands if name in line)
    assert line.startswith(f"llmopt bench '{name}.yaml' --out results")


def test_a_recipes_name_runs_nothing(make_result: MakeResult) -> None:
    hostile = replace(make_result(), recipe_name="a\nrm -rf x #")
    (line,) = (line for line in make_origin([hostile]).commands if "rm -rf" in line)
    assert shlex.split(line, comments=True)[:3] == ["llmopt", "bench", "a\nrm -rf x #.yaml"]
    assert line.count("\n") == 1  # within the quotes
