"""What is said of a cell and its base, on attributions made for one reason each."""

from dataclasses import replace
from typing import Any

import pytest

from llmopt.bench import explanation
from llmopt.bench.explanation import Comparison, Subject, explain
from llmopt.results.attribution import Attribution, TimePart
from llmopt.results.schema import CostModel, ModelFacts

COST = CostModel(200, 50, 1, 0, 1)  # 25 weights in the lm_head
MODEL = ModelFacts("m", "00", "Llama", "bf16", "bfloat16", 125, 250, 250, 16, None, ("dense",))
W4 = replace(MODEL, scheme="w4", kernels=("int4pack", "dense"))


def subject(
    model: ModelFacts = MODEL,
    *,
    bytes_: tuple[float, float] = (200.0, 50.0),
    prompt_operators_s: float = 0.0,
    **seconds: float,
) -> Subject:
    """Ten output tokens of ten steps, whose parts took these seconds."""
    parts = tuple(TimePart(name, value) for name, value in seconds.items())
    found = Attribution(
        wall_s=sum(seconds.values()),
        parts=parts,
        num_output_tokens=10,
        num_steps=10,
        prompt_operators_s=prompt_operators_s,
        matmul_tokens=64.0,
        linear_bytes=bytes_[0],
        lm_head_bytes=bytes_[1],
        kv_bytes=10.0,
        in_flight_s=1.0,
        waiting_s=0.0,
    )
    return Subject(found, model, COST)


BASE = subject(weights=8.0, lm_head=2.0)
QUARTER = (50.0, 50.0)  # bytes of layers at 4 bits, and of a head that stays


def test_the_output_head_is_named_with_its_share_and_bits():
    cell = subject(W4, bytes_=QUARTER, weights=2.0, lm_head=2.0)
    assert str(explain(cell, BASE, 2.5)) == (
        "2.50x of the 4.00x that the bytes of its linear layers allow: lm_head is 50 % of the "
        "weights' bytes and stays in 16 bits (100 % of what is missing)"
    )


def test_a_head_that_shrank_does_not_stay():
    wide = subject(bytes_=(400.0, 100.0), weights=16.0, lm_head=4.0)
    cell = subject(W4, bytes_=QUARTER, weights=2.0, lm_head=2.0)
    assert "and is in 16 bits" in str(explain(cell, wide, 5.0))


def test_dequantized_weights_save_nothing():
    cell = subject(replace(W4, kernels=("dequantized nf4", "dense")), weights=8.0, lm_head=2.0)
    assert str(explain(cell, BASE, 1.01)) == (
        "1.01x: its weights are dequantized to bfloat16 at load: a step reads 0 MB of weights, the "
        "base 0 MB"
    )


def test_more_bytes_save_nothing():
    cell = subject(W4, bytes_=(210e6, 50e6), weights=8.0, lm_head=2.0)
    base = subject(bytes_=(200e6, 50e6), weights=8.0, lm_head=2.0)
    assert str(explain(cell, base, 0.95)) == (
        "0.95x: no bytes are saved: a step reads 260 MB of weights, the base 250 MB"
    )


def test_flops_bound_large_batches():
    base = subject(matmul=8.0, lm_head=2.0)
    cell = subject(W4, bytes_=QUARTER, matmul=8.0, lm_head=0.5)
    assert str(explain(cell, base, 1.18)) == (
        "1.18x of the 4.00x that the bytes of its linear layers allow: compute-bound: FLOPs of the "
        "linear layers need 94 % of the time whatever their bytes, most of it in steps of 64 "
        "tokens (100 % of what is missing)"
    )


def test_bytes_that_bound_longer_are_not_called_compute_bound():
    cell = subject(W4, bytes_=QUARTER, weights=3.0, matmul=2.0)
    assert explanation.compute_bound(Comparison(cell, BASE)) is None
    busier = subject(W4, bytes_=QUARTER, weights=2.0, matmul=3.0)
    assert explanation.compute_bound(Comparison(busier, BASE)) is not None


def test_dequantization_that_costs_more_than_it_saves():
    base = subject(weights=4.0, operators=4.0)
    cell = subject(W4, bytes_=QUARTER, weights=1.0, operators=10.0)
    line = str(explain(cell, base, 0.73))
    assert line.startswith("0.73x of the 4.00x")
    assert "dequantization costs more than the 300 ms that fewer bytes save" in line
    assert "1000 ms per token above the roofline, the base's 400 ms (100 % of what" in line


def test_kernels_that_are_slower_but_worth_it():
    base = subject(weights=8.0, operators=1.0)
    cell = subject(W4, bytes_=QUARTER, weights=2.0, operators=3.0)
    line = str(explain(cell, base, 1.8))
    assert "in decode steps its kernels are slower: 300 ms per token above the roofline" in line
    assert ", the base's 100 ms" in line


def test_operators_that_do_not_shrink():
    base = subject(weights=8.0, operators=4.0)
    cell = subject(W4, bytes_=QUARTER, weights=2.0, operators=3.0)
    line = str(explain(cell, base, 2.4))
    assert "in decode steps kernels and small operators take 60 % of the time: 300 ms" in line
    assert "above the roofline, the base's 400 ms (100 % of what is missing)" in line


@pytest.mark.parametrize(
    ("parts", "claim"),
    [
        (("kv",), "attention and its cache need 50 % of the time (100 % of what is missing)"),
        (("attention",), "attention and its cache need 50 % of the time"),
        (("sampling",), "sampling, scheduling and Python take 50 % of the time (100 %"),
        (("update", "unattributed"), "sampling, scheduling and Python take 50 % of the time"),
        (("client",), "no request is in flight for 50 % of the time (100 %"),
        (("idle",), "no request is in flight for 50 % of the time"),
    ],
)
def test_what_quantization_does_not_touch(parts, claim):
    rest = {name: 2.0 / len(parts) for name in parts}
    base = subject(bytes_=(200.0, 0.0), weights=8.0, **rest)
    cell = subject(W4, bytes_=(50.0, 0.0), weights=2.0, **rest)
    line = str(explain(cell, base, 2.5))
    assert claim in line
    assert line.count("%") == 2


def test_the_largest_reason_comes_first_and_small_ones_are_left_out():
    rest = {"sampling": 1.0, "kv": 2.0, "idle": 0.3}
    base = subject(weights=8.0, lm_head=4.0, **rest)
    cell = subject(W4, bytes_=QUARTER, weights=2.0, lm_head=4.0, **rest)
    claims = str(explain(cell, base, 1.6)).split(": ", 1)[1].split("; ")
    assert [claim.split()[0] for claim in claims] == ["lm_head", "attention", "sampling,"]
    assert [claim.endswith("(55 % of what is missing)") for claim in claims] == [True, False, False]


def test_shares_of_all_parts_sum_to_what_is_missing():
    parts = {name: 0.1 + place for place, name in enumerate(("weights", "kv", "operators", "idle"))}
    base, cell = subject(**parts), subject(W4, bytes_=QUARTER, **parts)
    comparison = Comparison(cell, base)
    total = sum(comparison.missed_s(name) for name in parts)
    assert total == pytest.approx(comparison.missing_s)
    assert comparison.missing_s == pytest.approx(cell.attribution.wall_s / 10 * (1 - 1 / 4))


def test_a_cell_that_reaches_what_its_bytes_allow_needs_no_reason():
    cell = subject(W4, bytes_=(50.0, 12.5), weights=2.0, lm_head=0.5)
    line = "4.00x of the 4.00x that the bytes of its linear layers allow"
    reached, above = explain(cell, BASE, 4.0), explain(cell, BASE, 5.0)
    assert str(reached) == line
    assert reached is not None
    assert not reached.is_above
    assert above is not None
    assert above.is_above
    assert above.reasons == ()


def test_without_an_output_token_nothing_is_said():
    silent = replace(BASE, attribution=replace(BASE.attribution, num_output_tokens=0))
    assert explain(silent, BASE, 1.0) is None
    assert explain(BASE, silent, 1.0) is None


def test_a_head_that_nobody_counted_is_not_spoken_of():
    def without_head(of: Subject) -> Subject:
        return replace(of, attribution=replace(of.attribution, lm_head_bytes=None))

    cell = subject(W4, bytes_=QUARTER, weights=2.0, lm_head=2.0)
    assert explanation.lm_head(Comparison(cell, without_head(BASE))) is None
    assert explanation.lm_head(Comparison(without_head(cell), BASE)) is None


def test_every_claim_has_a_number():
    names: tuple[Any, ...] = ("matmul", "kv", "lm_head", "operators", "sampling", "idle")
    base = subject(**dict.fromkeys(names, 1.0))
    cell = subject(W4, bytes_=QUARTER, **dict.fromkeys(names, 1.0))
    found = [rule(Comparison(cell, base)) for rule in explanation.RULES]
    assert all(claim is not None and any(map(str.isdigit, claim.text)) for claim in found)


def test_prompts_and_decodes_are_told_apart():
    base = subject(weights=8.0, operators=3.0, prompt_operators_s=1.0)
    cell = subject(W4, bytes_=QUARTER, weights=2.0, operators=11.0, prompt_operators_s=10.0)
    line = str(explain(cell, base, 0.85))
    assert (
        "save: in steps with prompts kernels are 1000 ms per token above the roofline, the " in line
    )
    comparison = Comparison(cell, base)
    of_prompts, of_decodes = (
        explanation.prompt_operators(comparison),
        explanation.decode_operators(comparison),
    )
    assert of_prompts.seconds == pytest.approx(1.0 - 0.1 / 4)
    assert of_decodes.seconds == pytest.approx(0.1 - 0.2 / 4)
    assert of_prompts.seconds + of_decodes.seconds == pytest.approx(
        comparison.missed_s("operators")
    )
