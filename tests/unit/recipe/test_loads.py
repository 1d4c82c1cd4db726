import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import RecipeError
from llmopt.recipe.json_schema import recipe_json_schema
from llmopt.recipe.load import load_recipe
from llmopt.recipe.loads import Lengths, Load, Workload, load_suffixes
from llmopt.recipe.schema import cells
from llmopt.recipe.shipped import list_recipes, recipe_directory

HEAD = "name: r\nbase: {model: m}\ntargets: []\nloads:\n  - "
LENGTHS = "prompt_tokens: 16, output_tokens: 4"


def load_of(directory: Path, text: str) -> Load:
    path = directory / "r.yaml"
    path.write_text(HEAD + "{" + text + "}\n")
    (load,) = load_recipe(path).loads
    return load


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (
            f"concurrency: 4, kind: poisson, rate: 2, duration_s: 30.5, {LENGTHS}",
            Load(4, None, 16, 4, "poisson", rate=2.0, duration_s=30.5),
        ),
        (
            f"concurrency: 4, kind: gamma, rate: .5, burstiness: 0.25, num_requests: 9, {LENGTHS}",
            Load(4, 9, 16, 4, "gamma", rate=0.5, burstiness=0.25),
        ),
        (
            f"concurrency: 4, kind: ramp, start_rate: 1, rate: 8, num_steps: 4, duration_s: 60,"
            f" {LENGTHS}",
            Load(4, None, 16, 4, "ramp", 8.0, 1.0, 4, duration_s=60.0),
        ),
        (
            "concurrency: 4, kind: trace, trace: t.csv, time_scale: 0.1,"
            " prompt_tokens: {kind: source, high: 512}",
            Load(4, None, Lengths("source", 512), kind="trace", trace="t.csv", time_scale=0.1),
        ),
        (
            f'concurrency: 4, kind: poisson, num_requests: 16, slo: "ttft<1s", {LENGTHS}',
            Load(4, 16, 16, 4, "poisson", slo="ttft<1s"),
        ),
        (
            "concurrency: 4, num_requests: 9, prompt_tokens: {kind: lognormal, mean: 90, std: 60,"
            " high: 512}, output_tokens: {kind: uniform, low: 8, high: 64},"
            " workload: {turns: 3, think_s: 0.5, prefix_groups: 2, prefix_tokens: 0}",
            None,
        ),
        (
            "concurrency: 4, num_requests: 9, prompt_tokens: {kind: uniform, low: 80, high: 90},"
            " output_tokens: 4, workload: {turns: 3, prefix_groups: 2, prefix_tokens: 64}",
            Load(
                4,
                9,
                Lengths("uniform", 90, 80),
                4,
                workload=Workload(turns=3, prefix_groups=2, prefix_tokens=64),
            ),
        ),
    ],
)
def test_every_kind_of_load_can_be_written(tmp_path: Path, text: str, load: Load | None) -> None:
    if load is None:
        with pytest.raises(RecipeError, match="prefix_groups and prefix_tokens belong together"):
            load_of(tmp_path, text)
    else:
        assert load_of(tmp_path, text) == load


GOOD = f"concurrency: 4, num_requests: 9, {LENGTHS}"
OPEN = f"concurrency: 4, kind: poisson, rate: 2, num_requests: 9, {LENGTHS}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + ", rate: 2", "rate means nothing to a closed load. Remove it, or use the kind"),
        (
            GOOD + ", kind: posson",
            "Allowed: closed, constant, poisson, gamma, burst, ramp, trace. ",
        ),
        (GOOD + ", kind: poisson", "a poisson load needs rate"),
        (GOOD + ", time_scale: 2", "only a trace has a time_scale"),
        (GOOD.replace("num_requests: 9, ", ""), "a closed load needs num_requests"),
        (OPEN.replace("num_requests: 9, ", ""), "needs num_requests or duration_s"),
        (OPEN + ", duration_s: 3", "num_requests and duration_s are both given"),
        (OPEN.replace("rate: 2", "rate: 0"), "rate is 0. It must be above 0"),
        (OPEN.replace("rate: 2", "rate: .inf"), "rate is inf"),
        (OPEN.replace("rate: 2", "rate: fast"), "'rate' is 'fast'. It must be a number"),
        (OPEN + ", burstiness: 2", "burstiness means nothing to a poisson load"),
        (OPEN + ", start_rate: 2", "start_rate means nothing to a poisson load"),
        (
            OPEN.replace("rate: 2, num_requests: 9", 'slo: "tpot<1s", num_requests: 7'),
            "7 requests, 4 served at a time, show no queue that grows, which a search for the rate"
            " must see. Ask for at least 8 requests.",
        ),
        (OPEN.replace("poisson", "gamma"), "a gamma load needs burstiness"),
        (OPEN.replace("poisson", "ramp"), "a ramp load needs start_rate"),
        (OPEN.replace("poisson", "ramp") + ", start_rate: 1, num_steps: 1", "num_steps is 1"),
        (GOOD + ", trace: t.csv", "trace means nothing to a closed load"),
        (GOOD + ", kind: trace", "a trace load needs trace"),
        (GOOD.replace("output_tokens: 4", "seed: 4"), "unknown key 'seed' in item 1 of 'loads'"),
        (GOOD.replace(", output_tokens: 4", ""), "the load lacks output_tokens"),
        (GOOD.replace("16", "{kind: uniform, low: 9, high: 8}"), "lengths from 9 to 8"),
        (GOOD.replace("16", "{kind: uniform, high: 8, mean: 3}"), "uniform lengths have no mean"),
        (GOOD.replace("16", "{kind: lognormal, high: 8, mean: 3}"), "lognormal lengths need std"),
        (GOOD.replace("16", "{kind: empirical, high: 8}"), "empirical lengths need a table"),
        (GOOD.replace("16", "{kind: source, high: 8}"), "source lengths of a closed load"),
        (GOOD + ", workload: {prefix_groups: 2}", "belong together"),
        (GOOD + ", workload: {prefix_groups: 2, prefix_tokens: 16}", "has no room for 16 shared"),
        (GOOD + ", workload: {think_s: 1}", "one turn has no pause"),
        (GOOD + ", workload: {think_s: -1, turns: 2}", "think_s is -1"),
        (GOOD + ", workload: {turns: 0}", "turns is 0"),
        (GOOD + ", workload: {turns: 2, distinct_prompts: 3}", "do not go together"),
        (GOOD + ", workload: {turns: 2, prompts: p.jsonl}", "do not go together"),
        (GOOD + ", workload: {source: random, prompts: p.jsonl}", "do not go together"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_of(tmp_path, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/r.yaml:5: ")


loads = st.builds(
    Load,
    st.integers(1, 3),
    st.integers(4, 5),
    st.sampled_from([8, 16, Lengths("uniform", 9)]),
    st.sampled_from([4, 5]),
    st.sampled_from(["closed", "poisson"]),
    st.sampled_from([None, 1.0, 2.5]),
)


@given(st.lists(loads, max_size=12))
def test_every_load_has_a_suffix_of_its_own(found: list[Load]) -> None:
    suffixes = load_suffixes(found)
    assert len(set(suffixes)) == len(found)
    assert all("/" not in suffix for suffix in suffixes)


def test_suffixes_are_as_short_as_they_may_be() -> None:
    found = [Load(1, 4, 8, 8), Load(2, 4, 8, 8), Load(2, 4, 16, 8), Load(2, 5, 16, 8)]
    assert load_suffixes(found) == ["c1", "c2-p8-o8", "c2-p16-o8-1", "c2-p16-o8-2"]
    assert load_suffixes([Load(2, 4, 8, 8, "poisson", 0.5), Load(2, kind="trace")]) == [
        "poisson-r0.5",
        "trace",
    ]


def accepts(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """A small reading of JSON Schema: the keywords that ours uses."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], value, root)
    if "anyOf" in schema:
        return any(accepts(member, value, root) for member in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "object":
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(schema["properties"])
            and all(accepts(schema["properties"][key], item, root) for key, item in value.items())
        )
    if schema["type"] == "array":
        return isinstance(value, list) and all(accepts(schema["items"], v, root) for v in value)
    kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if schema["type"] == "null":
        return value is None
    is_number = schema["type"] in ("integer", "number")
    return isinstance(value, kinds[schema["type"]]) and not (is_number and isinstance(value, bool))


def test_the_json_schema_takes_what_the_loader_takes() -> None:
    import yaml

    schema = recipe_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    directory = recipe_directory()
    assert directory is not None
    for path in directory.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        assert accepts(schema, document, schema), path
        assert not accepts(schema, document | {"bogus": 1}, schema)
        assert not accepts(schema, document | {"repeats": "3"}, schema)
    assert schema["$defs"]["Load"]["properties"]["kind"]["enum"][0] == "closed"
    assert schema["$defs"]["Load"]["required"] == ["concurrency"]


def test_shipped_recipes_say_what_they_are() -> None:
    directory = recipe_directory()
    assert directory is not None
    listed = list_recipes(directory)
    assert [recipe.path.stem for recipe in listed] == sorted(r.path.stem for r in listed)
    assert all(recipe.problem is None and recipe.description for recipe in listed)
    demo = next(recipe for recipe in listed if recipe.path.stem == "demo")
    assert demo.recipe is not None
    assert demo.num_cells == len(cells(demo.recipe)) == 10
    assert demo.description.startswith("The default model in full precision")


def test_a_broken_recipe_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("nam: x")
    (tmp_path / "b.yaml").write_text("# Good.\n" + HEAD + "{" + GOOD + "}\n")
    broken, good = list_recipes(tmp_path)
    assert broken.problem is not None
    assert "a.yaml:1: unknown key 'nam'" in broken.problem
    assert (good.description, good.num_cells) == ("Good.", 1)
