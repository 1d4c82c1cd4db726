"""Raw WikiText is read as the hub's data sets and lm-evaluation-harness read it."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.data import wikitext, wikitext_file

RAW = (
    " \n = Du Fu = \n \n He wrote @,@ well . \n \n = = Life = = \n \n"
    " Born in 712 : poor . \n \n \n = Nerva = \n \n An emperor . \n"
)


def test_wikitext_is_told_by_its_first_line_that_is_not_blank() -> None:
    assert wikitext.is_wikitext(RAW)
    assert wikitext.is_wikitext(RAW.replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n \n",
        "= Du Fu =\n\nAn AsciiDoc title.\n",
        " = = Life = = \n A section of the second level.\n",
        " = Du Fu \n",
        "Prose first.\n = Du Fu = \n",
    ],
)
def test_other_texts_are_not_taken_for_wikitext(text: str) -> None:
    assert not wikitext.is_wikitext(text)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_rows_are_lines_and_blank_ones_are_empty(line_end: str) -> None:
    raw = RAW.replace("\n", line_end)
    assert wikitext.rows(raw)[:5] == ["", " = Du Fu = \n", "", " He wrote @,@ well . \n", ""]
    assert len(wikitext.rows(raw)) == 13
    assert wikitext.rows(" = A = \n last") == [" = A = \n", " last"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_pages_begin_at_titles_of_the_first_level(line_end: str) -> None:
    first, second = wikitext.pages(RAW.replace("\n", line_end))
    assert first == (
        " = Du Fu = \n \n He wrote @,@ well . \n \n = = Life = = \n \n Born in 712 : poor . \n \n "
    )
    assert second == " = Nerva = \n \n An emperor . \n"


@given(st.lists(st.sampled_from([" = A = ", " = = B = = ", " = = = C = = = ", " ", " x . "])))
def test_pages_lose_nothing_but_the_line_ends_between_them(lines: list[str]) -> None:
    raw = "\n".join([" = First = ", *lines])
    pages = wikitext.pages(raw)
    assert "\n".join(pages) == raw
    assert len(pages) == 1 + lines.count(" = A = ")
    assert all(page.startswith((" = A = ", " = First = ")) for page in pages)


@pytest.mark.parametrize(
    ("page", "cleaned"),
    [
        ("the dogs ' bone", "the dogs' bone"),
        ("a well @-@ known 1 @,@ 234 @.@ 5", "a well-known 1,234.5"),
        ("Yes : no ; so . Oh ! Eh ? And , then", "Yes: no; so. Oh! Eh? And, then"),
        ("( an aside ) [ 1 ] { x }", "(an aside) [1] {x}"),
        ('" quoted " words', '"quoted" words'),
        (" = = = Deep = = = \n text \n", " === Deep ===\ntext\n"),
        (" = = = = Deeper = = = = ", " ==== Deeper ==== "),
        ("a 45 ° angle of N dogs", "a 45°angle of 1 dogs"),
        ("the dog 's bone", "the dog's bone"),
    ],
)
def test_detokenized_as_the_harness_does(page: str, cleaned: str) -> None:
    assert wikitext.detokenize(page) == cleaned


@given(st.text(alphabet=" =\n.a", max_size=30))
def test_words_are_pieces_between_white_space_ends_included(page: str) -> None:
    ends = bool(re.match(r"\s", page)) + bool(re.search(r"\s\Z", page))
    if page.strip():
        assert wikitext.count_words(page) == len(page.split()) + ends


def test_rows_are_what_reading_the_file_line_by_line_gives() -> None:
    lines = io.TextIOWrapper(io.BytesIO(RAW.replace("\n", "\r\n").encode()), encoding="utf-8")
    assert wikitext.rows(RAW) == [line if line.strip() else "" for line in lines]


def test_the_published_counts_of_the_test_split() -> None:
    """4358 rows on the hub, 62 documents in the harness, 241 211 words in the paper's table."""
    path = wikitext_file.wikitext2_path()
    if not path.is_file():
        pytest.skip(f"WikiText-2 is not at {path}")
    raw = wikitext_file.read_wikitext2().decode()
    pages = wikitext.pages(raw)
    assert len(raw.encode()) == wikitext_file.NUM_BYTES
    assert wikitext.is_wikitext(raw)
    assert (len(wikitext.rows(raw)), len(pages)) == (4358, 62)
    assert sum(len(page.split()) for page in pages) == 241_211
    assert sum(map(wikitext.count_words, pages)) == 241_211 + 2 * 62
