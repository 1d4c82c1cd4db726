from dataclasses import fields

from llmopt.bench.definitions import DEFINITIONS
from llmopt.bench.latencies import LATENCIES
from llmopt.results.schema import Goodput, SteadySummary, Summary

PARTS = {"steady": SteadySummary, "goodput": Goodput}


def test_every_definition_has_its_field():
    for name, definition in DEFINITIONS.items():
        owner, _, part = definition.field.rpartition(".")
        known = {field.name for field in fields(PARTS[owner] if owner else Summary)}
        assert part in known, name


def test_every_latency_has_a_definition():
    assert set(LATENCIES) <= set(DEFINITIONS)


def test_every_number_of_a_summary_has_a_definition():
    defined = {definition.field.split(".")[0] for definition in DEFINITIONS.values()}
    derived = {"run_output_throughput", "run_tpot_ms", "drift"}
    derived |= {"output_throughput_ci", "tpot_p50_ci"}
    assert {field.name for field in fields(Summary)} == defined | derived
