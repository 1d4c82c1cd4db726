from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.prometheus import read_samples

NAMES = {"a:b_total": "num_b", "c": "use"}
LABELS = st.dictionaries(
    st.sampled_from(["engine", "le", "model_name"]),
    st.text(st.characters(blacklist_categories=["Cs"])),
    max_size=3,
)


def escaped(value: str) -> str:
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        value = value.replace(plain, written)
    return value


def test_samples_of_all_labels_are_added_up():
    page = """# HELP a:b_total Number of b.
# TYPE a:b_total counter
a:b_total{engine="0",model_name="m"} 3.0
a:b_total{engine="1",model_name="m"} 4e0 1395066363000
a:b_total_created{engine="0"} 1.7e+09
c 0.25
"""
    assert read_samples(page, NAMES) == {"num_b": 7.0, "use": 0.25}


def test_what_is_no_number_is_left_out():
    page = 'c NaN\nc{x="y"} +Inf\na:b_total many\na:b_total\nnothing 1\n{} 2\n'
    assert read_samples(page, NAMES) == {}


def test_braces_and_quotes_in_a_label_end_nothing():
    assert read_samples('c{path="/v1/{model}",said="\\"}\\\\"} 5', NAMES) == {"use": 5.0}


@given(st.lists(st.tuples(LABELS, st.integers(0, 10**9)), max_size=5))
def test_any_labels(samples):
    lines = []
    for labels, value in samples:
        written = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items())
        lines.append(f"c{{{written}}} {value}")
    expected = {"use": float(sum(value for _, value in samples))} if samples else {}
    assert read_samples("\n".join(lines), NAMES) == expected
