from pathlib import Path

import pytest

from llmopt.bench.engine_settings import engine_config, engine_problems
from llmopt.bench.speed import backend_facts
from llmopt.bench.workload_spec import open_load
from llmopt.errors import RecipeError
from llmopt.recipe.engine import EngineSettings, Speculation
from llmopt.recipe.load import load_recipe
from llmopt.recipe.schema import Base, Load, Recipe, Target
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import BackendFacts

PLAN = open_load(Load(3, 6, 20, 5), warmup_requests=2)


def test_a_load_gets_room_for_all_that_are_served_at_a_time():
    config = engine_config(PLAN)
    assert (config.num_blocks, config.max_num_seqs, config.max_model_len) == (3 * 2, 3, 25)


def test_settings_come_before_what_the_load_needs():
    config = engine_config(PLAN, EngineSettings(block_size=5, max_num_seqs=2, policy="static"))
    assert (config.num_blocks, config.max_num_seqs, config.max_model_len) == (2 * 5, 2, 25)
    assert config.policy == "static"
    config = engine_config(PLAN, EngineSettings(num_blocks=7, max_model_len=100))
    assert (config.num_blocks, config.max_model_len) == (7, 100)
    config = engine_config(PLAN, EngineSettings(kv_memory_bytes=1000))
    assert (config.num_blocks, config.kv_memory_bytes) == (None, 1000)


def test_what_a_speculation_leaves_out_is_the_engines_default():
    settings = EngineSettings(speculation=Speculation("layers:3", adaptive=False))
    found = engine_config(PLAN, settings).speculation
    assert (found.proposer, found.adaptive, found.num_draft_tokens) == ("layers:3", False, 5)


def test_a_result_keeps_the_settings_and_can_be_read_again():
    settings = EngineSettings(kv_dtype="int8", speculation="ngram")
    facts = backend_facts(PLAN, settings)
    assert facts.settings["kv_dtype"] == "int8"
    assert facts.settings["speculation"]["proposer"] == "ngram"
    assert from_json(BackendFacts, to_json(facts), "x") == facts
    assert facts.settings["activations"] == "auto"


def test_activations_are_kept_beside_quality_too():
    settings = EngineSettings(activations="bf16")
    assert backend_facts(PLAN, settings).settings["activations"] == "bf16"
    assert backend_facts(None, settings).settings == {"activations": "bf16"}
    assert engine_config(PLAN, settings) == engine_config(PLAN)


@pytest.mark.parametrize(
    ("dtype", "activations", "is_refused"),
    [
        ("float32", "int8", True),
        ("float16", "int16", True),
        ("float32", "bf16", False),
        ("float32", "auto", False),
        ("bfloat16", "int8", False),
        ("auto", "int8", False),  # which dtype that is, the checkpoint says
    ],
)
def test_a_dtype_without_such_activations_is_refused_where_it_is_named(
    dtype, activations, is_refused
):
    target = Target("t", "m", dtype, engine=EngineSettings(activations=activations))
    found = list(engine_problems(Recipe("r", Base("m"), (target,))))
    assert [problem.path for problem in found] == [("targets", 0, "engine")] * is_refused
    assert all(f"activations of {activations} were asked for" in p.message for p in found)


@pytest.mark.parametrize(
    ("base", "target", "line", "message"),
    [
        ("{sink_tokens: 4}", "{}", 2, "without an attention_window"),
        ("{}", "{policy: static, attention_window: 9}", 4, "the static policy keeps every token"),
        ("{}", "{block_size: 0}", 4, "block_size is 0"),
        ("{}", "{speculation: magic}", 4, "speculation is 'magic'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_line(
    tmp_path: Path, base: str, target: str, line: int, message: str
):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: r\nbase: {{model: m, engine: {base}}}\ntargets:\n"
        f"  - {{name: t, model: m, engine: {target}}}\nquality: {{}}\n"
    )
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, engine_problems)
    assert f"r.yaml:{line}:" in str(caught.value)
