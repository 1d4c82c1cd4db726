"""Logged samples of lm-evaluation-harness: which choice is right, and what is refused."""

import pytest

from llmopt.quality.tasks.harness_samples import SampleError, read_sample


def row(*pairs: tuple[object, ...], target: object = "0", doc_id: object = 3) -> dict[str, object]:
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(pair)}
        for i, pair in enumerate(pairs)
    }
    return {"doc_id": doc_id, "target": target, "arguments": arguments}


def test_choices_by_index_and_by_text():
    sample = read_sample(row(("Sky is", " red"), ("Sky is", " blue"), target="1"))
    assert (sample.id, sample.context, sample.continuations) == ("3", "Sky is", (" red", " blue"))
    assert sample.gold == 1
    assert read_sample(row(("Sky", " red"), ("Sky", " blue"), target="blue")).gold == 1


def test_a_single_pair_is_a_target():
    sample = read_sample(row(("He met", " Mary"), target=" Mary"))
    assert (sample.continuations, sample.gold) == ((" Mary",), None)


def test_pairs_as_lists_as_older_versions_wrote_them():
    logged = {"doc_id": 0, "target": "0", "arguments": [["a", " b"], ["a", " c"]]}
    assert read_sample(logged).continuations == (" b", " c")


def test_unconditional_copies_are_left_out():
    pairs = [("Sky", " red"), ("Sky", " blue"), ("", " red"), ("", " blue")]
    assert read_sample(row(*pairs)).continuations == (" red", " blue")
    bare = [("", " red"), ("", " blue"), ("", " red"), ("", " blue")]
    assert len(read_sample(row(*bare)).continuations) == 4


def test_digits_as_choices():
    pairs = [("n", " 1"), ("n", " 2"), ("n", " 7")]
    assert read_sample(row(*pairs, target="7")).gold == 2  # a text: there is no index 7
    assert read_sample(row(*pairs, target="0")).gold == 0  # an index: there is no text 0
    with pytest.raises(SampleError, match="fits several"):
        read_sample(row(*pairs, target="2"))


@pytest.mark.parametrize(
    ("logged", "message"),
    [
        (row(("a", " b"), ("a", " c"), target="red"), "none of its choices"),
        (row(("a", " b"), ("a", " c"), target="2"), "none of its choices"),
        (row(("a x", " b"), ("a y", " b")), "choices are in the contexts"),
        (row(("a", {"until": ["x"]})), "other things"),
        (row(("a text to roll over",)), "other things"),
        (row(("a", "")), "other things"),
        (row(), "no arguments"),
        (row(("a", " b"), doc_id="3"), "no doc_id"),
        ({"doc_id": 0, "arguments": []}, "no doc_id or no target"),
        ({"doc_id": 0, "target": "0", "arguments": "x"}, "neither an object nor a list"),
    ],
)
def test_what_cannot_be_replayed(logged, message):
    with pytest.raises(SampleError, match=message):
        read_sample(logged)
