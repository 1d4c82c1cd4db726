import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.module_patterns import check_pattern, cover, matches

NAMES = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]
MODULES = [f"model.layers.{block}.{name}" for block in range(12) for name in NAMES] + ["lm_head"]


@pytest.mark.parametrize(
    ("pattern", "module", "found"),
    [
        ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", False),
        ("model.layers.1", "model.layers.1.mlp.up_proj", False),  # a name, not a prefix
        ("re:model.layers.1", "model.layers.11.mlp.up_proj", True),  # from the start, not the end
        (r"re:.*\.1\.mlp.*", "model.layers.1.mlp.up_proj", True),
        (r"re:mlp", "model.layers.1.mlp.up_proj", False),
        (r"re:.*(q|k)_proj$", "model.layers.1.self_attn.k_proj", True),
        (r"re:", "anything", True),
    ],
)
def test_patterns_match_as_readers_match_them(pattern, module, found):
    assert matches(pattern, module) == found


@given(chosen=st.sets(st.sampled_from(MODULES)))
def test_a_cover_matches_the_modules_and_no_others(chosen):
    expressions = cover(sorted(chosen))
    matched = {m for m in MODULES if any(matches(f"re:{e}", m) for e in expressions)}
    assert matched == chosen
    assert all(check_pattern(f"re:{expression}") for expression in expressions)


def test_a_cover_is_short_and_names_fused_layers():
    down = [module for module in MODULES if module.endswith("down_proj")]
    assert len(cover(down)) == 1
    assert len(cover(down)[0]) < 80
    qkv = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    (expression,) = cover(qkv)
    assert re.match(expression, "model.layers.0.self_attn.qkv_proj")
    (partly,) = cover(qkv[:2])
    assert not re.match(partly, "model.layers.0.self_attn.qkv_proj")
    (mlp,) = cover(["model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj"])
    assert re.match(mlp, "model.layers.3.mlp.gate_up_proj")


def test_experts_have_numbers_of_their_own():
    experts = [f"model.layers.2.mlp.experts.{e}.up_proj" for e in (0, 10)]
    found = cover(experts)
    assert all(any(matches(f"re:{e}", module) for e in found) for module in experts)
    assert not any(matches(f"re:{e}", "model.layers.2.mlp.experts.1.up_proj") for e in found)


@pytest.mark.parametrize(
    "expression",
    [
        r"(a+)+$",
        r"(?:.*)*x",
        r"(\w|\d){2,}x",
        "(a|b)*c",
        ".*" * 7 + "x",
        "x" * 10_001,
        ".?" * 60 + "!",
        "(?:.|.)" * 60 + "!",
        "(?:" + "|" * 40 + ")" + "(?:.|.|.)" * 16 + "!",
        "(?#[)(a+)+$(?#])",  # the comments make a class of what is between them
        "(?x)(a+) + !",
    ],
)
def test_patterns_that_could_take_for_ever_are_refused_at_once(expression):
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"for ever.*without repeated groups"):
        matches(f"re:{expression}", "a" * 60)
    assert time.perf_counter() - started < 1


def test_a_pattern_that_is_fine_for_names_is_refused_for_a_text():
    pattern = r"re:.*\.(?:3[1-9]|2[0-9])\..*(?:up|down)_proj.*"
    assert matches(pattern, "model.layers.31.mlp.down_proj")
    assert not matches(pattern, "a" * 200)
    with pytest.raises(CheckpointError, match="for ever on a name of 5000 letters"):
        matches(pattern, "a" * 5000)
    assert matches("re:a+$", "a" * 5000)


@pytest.mark.parametrize("expression", ["(", "*a", "[z-a]", "(?P<x>a)(?P<x>b)"])
def test_what_is_no_regular_expression_is_refused(expression):
    with pytest.raises(CheckpointError, match="no regular expression"):
        check_pattern(f"re:{expression}")


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(?:3[1-9]|2[0-9])\..*",
        r"model\.layers\.\d+\.mlp\.(gate|up)_proj$",
        "[+*]",
        ".*attn.*|.*visual.*|.*mtp.*",
        ".*lm_head.*|.*embed_tokens.*|.*norm.*",
        r"(?:model\.)?.*?layers\.\d+?\..*mlp\.(?:shared_)?experts?\.\d+\.(?:gate|up)_proj",
        rf"model\.layers\.(?:{'|'.join(map(str, range(500)))})\.mlp\.(?:gate|up|down)_proj$",
    ],
)
def test_patterns_of_real_configs_are_fine(expression):
    assert check_pattern(f"re:{expression}") == f"re:{expression}"


def test_a_pattern_is_text():
    with pytest.raises(CheckpointError, match="no text"):
        check_pattern(3)
