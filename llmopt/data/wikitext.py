"""The shape of WikiText in its raw form, and how the field's protocols read it.

Knows nothing about tokens or files. The law: a copy of the raw file gives the very rows, pages and
cleaned text that the hub's data sets and lm-evaluation-harness give, so that numbers measured on
them can be compared with published ones.
"""

import io
import re

_NUMBER_MARKS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_PUNCTUATION = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
_INNER_SPACE = (  # brackets and quotes, freed of white space just inside them
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def is_wikitext(text: str) -> bool:
    """Whether a text begins as raw WikiText does: with a title ` = Title = `, spaces included.

    Told by shape, not by name, so that a copy under any name counts. Line ends do not matter.
    """
    first = next((line for line in io.StringIO(text) if line.strip()), "").rstrip("\r\n")
    return first.startswith(" = ") and first.endswith(" = ") and _is_title(first)


def rows(text: str) -> list[str]:
    """The rows that the hub's `wikitext-2-raw-v1` has for a raw file.

    One row a line: "" for a blank line, else the line with its "\\n". Line ends of other systems
    are read as "\\n" (Salesforce/wikitext's loader, which reads the file in text mode).
    """
    return [line if line.strip() else "" for line in io.StringIO(text, newline=None)]


def pages(text: str) -> list[str]:
    """The articles of a raw file as EleutherAI/wikitext_document_level has them, at least one.

    A page begins with a title of the first level and ends before the next one. White space before
    the first title is dropped; line ends of other systems are read as "\\n".
    """
    found: list[str] = []
    page: list[str] = []
    for line in io.StringIO(text, newline=None).read().split("\n"):
        if _is_title(line):
            found.append("\n".join(page))
            page = []
        page.append(line)
    complete = [text for text in found if text.strip()]
    return [*complete, "\n".join(page)]


def detokenize(page: str) -> str:
    """Undo WikiText's own tokenization as lm-evaluation-harness's task `wikitext` (version 2) does.

    Every step is that task's, in its order, oddities included: otherwise numbers would differ.
    """
    text = page.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for old, new in (*_NUMBER_MARKS, *_PUNCTUATION):
        text = text.replace(old, new)
    for pattern, replacement in _INNER_SPACE:
        text = re.sub(pattern, replacement, text)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


def count_words(page: str) -> int:
    """Words of a page as lm-evaluation-harness counts them: pieces between runs of white space.

    White space at either end adds an empty piece; the published word perplexities count it too.
    """
    return len(re.split(r"\s+", page))


def _is_title(line: str) -> bool:
    """Whether a line is a title of the first level: ` = Title = `, not ` = = Section = = `."""
    joined = line.replace("= = =", "===").replace("= =", "==").strip()
    return joined.startswith("= ") and joined.endswith(" =")
