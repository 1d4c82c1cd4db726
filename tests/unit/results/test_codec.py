import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import ResultError
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import BackendFacts, CellResult, PartialCell, Percentiles

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(st.text(max_size=4), json_values, max_size=3)
cell_results = st.builds(
    CellResult, recipe=json_objects, backend=st.builds(BackendFacts, settings=json_objects)
)


@given(cell_results)
def test_round_trip_through_json_text(result: CellResult) -> None:
    text = json.dumps(to_json(result), allow_nan=False)
    again = from_json(CellResult, json.loads(text), "file")
    assert isinstance(again, CellResult)
    assert json.dumps(to_json(again)) == text


@given(st.builds(PartialCell))
def test_partial_cells_round_trip(partial: PartialCell) -> None:
    again = from_json(PartialCell, json.loads(json.dumps(to_json(partial))), "file")
    assert json.dumps(to_json(again)) == json.dumps(to_json(partial))


def test_tuples_come_back_as_tuples_and_equal(make_result: Callable[..., CellResult]) -> None:
    result = make_result()
    assert from_json(CellResult, json.loads(json.dumps(to_json(result))), "file") == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_id": 3}, "f.json: the field 'cell_id' must be str, not 3"),
        ({"cell": "x"}, "f.json: unknown field 'cell'"),
        ({"runs": {}}, "f.json: the field 'runs' must be a list, not {}"),
        ({"environment": None}, "f.json: the field 'environment' must be an object, not None"),
        ({"schema_version": True}, "f.json: the field 'schema_version' must be int, not True"),
        ({"validity": [7]}, r"f.json: the field 'validity\[0\]' must be an object, not 7"),
    ],
)
def test_wrong_fields_are_named(
    make_result: Callable[..., CellResult], change: dict[str, object], message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        from_json(CellResult, to_json(make_result()) | change, "f.json")


def test_wrong_fields_deep_inside_are_named(make_result: Callable[..., CellResult]) -> None:
    document = to_json(make_result())
    document["runs"][0]["requests"][0]["token_times_s"][1] = "soon"
    with pytest.raises(ResultError, match=r"'runs\[0\]\.requests\[0\]\.token_times_s\[1\]'"):
        from_json(CellResult, document, "f.json")
    del document["load"]["concurrency"]
    document["runs"] = []
    with pytest.raises(ResultError, match=r"the field 'load\.concurrency' is missing"):
        from_json(CellResult, document, "f.json")


def test_literals_are_checked(make_result: Callable[..., CellResult]) -> None:
    document = to_json(make_result())
    document["load"]["kind"] = "open"
    with pytest.raises(ResultError, match=r"'load\.kind' must be one of 'closed', not 'open'"):
        from_json(CellResult, document, "f.json")


@pytest.mark.parametrize("value", [True, "1", None, 10**400])
def test_what_is_not_a_float_is_refused(value: object) -> None:
    document = to_json(Percentiles(1.0, 2.0, 3.0, 4.0, 2.0, 9)) | {"p99": value}
    with pytest.raises(ResultError, match="'p99' must be a number"):
        from_json(Percentiles, document, "f.json")


def test_fields_with_defaults_may_be_missing(make_result: Callable[..., CellResult]) -> None:
    document = to_json(make_result())
    del document["schema_version"]
    assert from_json(CellResult, document, "f.json") == make_result()


def test_what_json_cannot_hold_breaks_a_law_at_once() -> None:
    with pytest.raises(AssertionError, match="not JSON"):
        to_json(BackendFacts("llmopt", "1", {"bad": object()}))
