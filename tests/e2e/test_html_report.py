"""The HTML report in a real browser: it sorts, says nothing on the console, and asks for nothing.

LLMOPT_BROWSER names a Chromium that is not on the path.
"""

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, find_browser

from llmopt.report.render import render
from llmopt.results.store import read_results

BROWSER = find_browser()
DEMO = Path(__file__).parents[2] / "results" / "demo"
HOSTILE = '<img src=x onerror="document.title=1">"\'><script>document.title=2</script>'

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="there is no Chromium: install one, or name it in LLMOPT_BROWSER"
)


def write(path: Path, results: list[Any]) -> None:
    text = StringIO()
    render(results, [], "html", text)
    path.write_text(text.getvalue(), encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    results, _ = read_results([DEMO])
    write(folder / "demo.html", results)
    first, *others = results
    hostile = replace(
        first,
        recipe_name=HOSTILE,
        target=HOSTILE,
        error=HOSTILE,
        summary=None,
        backend=replace(first.backend, name=HOSTILE, command=HOSTILE),
        environment=replace(first.environment, device=HOSTILE, git_sha=HOSTILE),
        recipe={"name": HOSTILE},
    )
    mixed = [replace(each, target=f"{each.target} {HOSTILE}") for each in others]
    write(folder / "hostile.html", [hostile, *mixed])
    return {"demo": folder / "demo.html", "hostile": folder / "hostile.html"}


@pytest.fixture
def page() -> Iterator[Page]:
    assert BROWSER is not None
    opened = Page(BROWSER)
    yield opened
    opened.close()


def column(page: Page, name: str) -> list[str]:
    script = f"""(() => {{
      const table = document.querySelector("table.sortable");
      const heads = [...table.tHead.rows[0].cells].map((cell) => cell.innerText.trim());
      const index = heads.findIndex((text) => text.startsWith({name!r}));
      return [...table.tBodies[0].rows].map((row) => row.cells[index].innerText);
    }})()"""
    found: list[str] = page.evaluate(script)
    return found


def head(name: str) -> str:
    return (
        "[...document.querySelectorAll('table.sortable thead button')]"
        f".find((button) => button.innerText.startsWith({name!r}))"
    )


def test_the_page_is_quiet_and_asks_for_nothing(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["demo"])
    assert page.requests == [pages["demo"].as_uri()]
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.console == []
    assert page.errors == []
    assert page.evaluate("document.querySelectorAll('.drawing svg').length") >= 4
    ids = "[...document.querySelectorAll('[id]')].map((each) => each.id)"
    assert page.evaluate(f"{ids}.length === new Set({ids}).size")


def test_tables_sort_by_click(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["demo"])
    before = column(page, "tok/s")
    page.evaluate(f"{head('tok/s')}.click()")
    rising = [float(text) for text in column(page, "tok/s")]
    assert rising == sorted(rising)
    assert [float(text) for text in before] != rising
    assert page.evaluate(f"{head('tok/s')}.closest('th').getAttribute('aria-sort')") == "ascending"
    page.evaluate(f"{head('tok/s')}.click()")
    assert [float(text) for text in column(page, "tok/s")] == rising[::-1]
    page.evaluate(f"{head('target')}.click()")
    names = column(page, "target")
    assert names == sorted(names)
    assert page.evaluate("document.querySelectorAll('[aria-sort=ascending]').length") == 1


def test_what_is_not_known_stays_last(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["demo"])
    for _ in range(2):
        page.evaluate(f"{head('KLD')}.click()")
        assert column(page, "KLD")[-2:] == ["base", "base"]
    assert page.errors == []


def test_tables_sort_by_keyboard(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["demo"])
    page.evaluate("document.querySelector('table.sortable thead button').focus()")
    page.press("Tab", 9)
    page.press("Enter", 13, "\r")
    loads = [int(text) for text in column(page, "conc")]
    assert loads == sorted(loads)
    page.press("Enter", 13, "\r")
    assert [int(text) for text in column(page, "conc")] == loads[::-1]


def test_nothing_in_a_result_file_becomes_markup(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["hostile"])
    assert page.evaluate("document.title") == "llmopt report"
    assert page.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert page.evaluate("document.scripts.length") == 1
    assert page.requests == [pages["hostile"].as_uri()]
    assert page.errors == []
    assert any("<img src=x" in text for text in column(page, "target"))


def test_the_page_forbids_scripts_that_are_not_its_own(
    page: Page, pages: dict[str, Path], tmp_path: Path
) -> None:
    """So that even markup that slipped in would do nothing."""
    text = pages["demo"].read_text(encoding="utf-8")
    path = tmp_path / "injected.html"
    path.write_text(text.replace("<h1>", "<script>document.title='run'</script><h1>"))
    page.open(path)
    assert page.evaluate("document.title") == "llmopt report"


@pytest.mark.parametrize(("scheme", "paper"), [("light", "255, 255, 255"), ("dark", "22, 24, 28")])
def test_it_follows_the_theme_and_prints_on_white(
    page: Page, pages: dict[str, Path], scheme: str, paper: str
) -> None:
    page.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    page.open(pages["demo"])
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == f"rgb({paper})"
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    document = page.send("Page.printToPDF")["data"]
    assert len(document) > 10_000


def test_the_table_does_not_widen_a_narrow_page(page: Page, pages: dict[str, Path]) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.open(pages["demo"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
