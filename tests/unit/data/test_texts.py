"""The texts are the pinned ones, long enough, clean, and not the same."""

import re

import pytest

from llmopt.data import TextName, read_text, text_sha256

SHA256: dict[TextName, str] = {
    "calibration": "b13c7140f32ca9ef65d12fe37968e827e011499ada5ccb673447743c1c8bce44",
    "evaluation": "820fcd5c38801d659e0772b791f18bbfc1da39f776fe3c5a086d27ad9505f296",
}


@pytest.mark.parametrize("name", SHA256)
def test_results_stay_comparable_because_the_text_is_pinned(name: TextName) -> None:
    assert text_sha256(name) == SHA256[name]


@pytest.mark.parametrize(("name", "words"), [("calibration", 50_000), ("evaluation", 35_000)])
def test_there_is_enough_of_it(name: TextName, words: int) -> None:
    assert len(read_text(name).split()) > words


@pytest.mark.parametrize("name", SHA256)
def test_it_is_clean_prose(name: TextName) -> None:
    text = read_text(name)
    assert set(re.findall(r"[^\x20-\x7e\n]", text)) <= {"—"}
    assert not re.search(r"gutenberg|https?:|[<>_*\[\]]|  |\n\n\n", text, re.IGNORECASE)
    assert text.endswith("\n")


def test_nothing_of_the_evaluation_is_calibrated_on() -> None:
    words = {name: read_text(name).lower().split() for name in SHA256}
    runs = {
        name: {" ".join(list_[i : i + 8]) for i in range(len(list_) - 7)}
        for name, list_ in words.items()
    }
    assert not runs["calibration"] & runs["evaluation"]
