import json

import pytest

from llmopt.bench.provenance import quantization_record
from llmopt.results.schema import CalibrationFacts, QuantizationRecord

MADE = {
    "llmopt": "0.1.0",
    "scheme": "gptq-w4g64",
    "format": "gptq",
    "calibration": {
        "text": "bundled",
        "text_sha256": "ab" * 32,
        "tokens_sha256": "cd" * 32,
        "num_samples": 32,
        "sample_tokens": 512,
        "seed": 0,
    },
    "modules": [],
}
RUN = {
    "seconds": 12.5,
    "shared_seconds": 3,
    "peak_memory": {"host_bytes": 10**9, "device_bytes": None, "host_before_bytes": 10**8},
    "threads": 2,
    "finished_at": "2026-11-22T10:00:00+00:00",
}
RECORD = QuantizationRecord(
    scheme="gptq-w4g64",
    format="gptq",
    engine="llmopt",
    engine_version="0.1.0",
    seconds=12.5,
    shared_seconds=3.0,
    host_peak_bytes=10**9,
    host_before_bytes=10**8,
    device_peak_bytes=None,
    num_threads=2,
    calibration=CalibrationFacts("bundled", "ab" * 32, 32, 512),
    made_at="2026-11-22T10:00:00+00:00",
)


@pytest.fixture
def write(tmp_path):
    def write_files(made=MADE, run=RUN):
        (tmp_path / "quantization.json").write_text(json.dumps(made))
        if run is not None:
            (tmp_path / "quantization-run.json").write_text(json.dumps(run))
        return tmp_path

    return write_files


def test_the_two_files_say_how_it_was_made(write):
    assert quantization_record(write()) == RECORD


def test_a_gguf_file_is_described_by_its_neighbours_if_it_is_alone(write):
    file = write() / "model.gguf"
    file.touch()
    assert quantization_record(file) == RECORD
    (file.parent / "other.gguf").touch()
    assert quantization_record(file) is None


def test_without_the_record_of_the_run_its_cost_is_not_known(write):
    record = quantization_record(write(run=None))
    assert (record.scheme, record.calibration) == (RECORD.scheme, RECORD.calibration)
    assert record.seconds is record.host_peak_bytes is record.made_at is None


def test_others_are_named_with_their_version(write):
    engine = {"name": "gptqmodel", "versions": {"gptqmodel": "7.6.0", "torch": "2.13.0"}}
    record = quantization_record(write(MADE | {"engine": engine, "calibration": None}))
    assert (record.engine, record.engine_version) == ("gptqmodel", "7.6.0")
    assert record.calibration is None


@pytest.mark.parametrize(
    ("made", "run"),
    [
        ({"scheme": "of another program"}, RUN),
        (MADE | {"scheme": 4}, RUN),
        (MADE | {"engine": "gptqmodel"}, RUN),
        (MADE | {"calibration": {"text": "x"}}, RUN),
        (MADE, RUN | {"seconds": "long"}),
        (MADE, RUN | {"peak_memory": [1]}),
    ],
)
def test_what_is_written_otherwise_is_not_used(write, made, run):
    assert quantization_record(write(made, run)) is None


def test_without_files_nothing_is_known(tmp_path):
    assert quantization_record(tmp_path) is None
    (tmp_path / "quantization.json").write_text("{")
    assert quantization_record(tmp_path) is None
