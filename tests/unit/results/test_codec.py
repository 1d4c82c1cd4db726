import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import ResultError
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import (
    BackendFacts,
    CellResult,
    DeltaP,
    NoiseFloor,
    PartialCell,
    Percentiles,
    QualityBucket,
    QualityRecord,
    Verdict,
)

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
    with pytest.raises(
        ResultError, match=r"'load\.kind' must be one of 'closed', .*'trace', not 'open'"
    ):
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


OLD_QUALITY = {  # a record as the first files have it
    "base_name": "smollm2-135m",
    "base_scheme": "fp32",
    "text_name": "evaluation.txt",
    "text_sha256": "ab" * 32,
    "protocol": "windows of 512 tokens",
    "window": 512,
    "num_windows": 16,
    "num_tokens": 8176,
    "kld_mean": 0.02,
    "kld_mean_ci": [0.019, 0.021],
    "kld_median": 0.01,
    "kld_p99": 0.1,
    "kld_max": 0.3,
    "top1_agreement": 0.95,
    "top1_agreement_ci": [0.94, 0.96],
    "ppl": 20.0,
    "base_ppl": 19.0,
    "ppl_ratio": 1.05,
    "ppl_ratio_ci": [1.04, 1.06],
    "confidence": 0.95,
}


def test_a_quality_record_of_before_the_noise_floor_is_still_read() -> None:
    record = from_json(QualityRecord, OLD_QUALITY, "f.json")
    assert (record.protocol, record.protocol_name) == ("windows of 512 tokens", "windows")
    assert (record.kld_p90, record.delta_p, record.noise, record.verdict) == (None,) * 4
    assert (record.by_confidence, record.source, record.lower_bound) == ((), "llmopt", False)


def test_all_parts_of_a_quality_record_come_back() -> None:
    record = replace(
        from_json(QualityRecord, OLD_QUALITY, "f.json"),
        ppl_ci=(19.0, 21.0),
        delta_p=DeltaP(-0.01, (-0.02, 0.0), 0.03, -0.3, -0.1, -0.01, 0.0, 0.01, 0.1, 0.2),
        by_position=(QualityBucket("1–31", 31, 0.02, 0.9),),
        noise=NoiseFloor("bf16", 1e-3, (0.9e-3, 1.1e-3), 1.0, (0.99, 1.01)),
        verdict=Verdict("worse", float("inf"), (2.0, float("inf")), "Worse than the base."),
    )
    text = json.dumps(to_json(record), allow_nan=False)
    assert from_json(QualityRecord, json.loads(text), "f.json") == record
    other = {"label": "better", "times_noise": 1, "times_noise_ci": [1, 1], "text": ""}
    with pytest.raises(ResultError, match=r"'verdict\.label' must be one of 'indistinguishable'"):
        from_json(QualityRecord, OLD_QUALITY | {"verdict": other}, "f.json")
