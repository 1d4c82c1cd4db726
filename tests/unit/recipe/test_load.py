import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import RecipeError, UsageError
from llmopt.recipe.check import Problem
from llmopt.recipe.load import load_recipe, recipe_from_targets
from llmopt.recipe.schema import (
    Base,
    Calibration,
    Cell,
    Load,
    Quality,
    QuantizeSpec,
    Recipe,
    Target,
    all_targets,
    cells,
)

RECIPES = Path(__file__).parents[3] / "recipes"

GOOD = """\
name: demo
base: {model: m, dtype: float32}
targets:
  - name: bf16
    model: m
    dtype: bfloat16
  - {name: gptq, model: m, quantize: {method: gptq, bits: 4, group_size: null}}
loads:
  - {concurrency: 1, num_requests: 4, prompt_tokens: 128, output_tokens: 64}
quality: {window: 256}
"""


def load_text(directory: Path, text: str) -> Recipe:
    path = directory / "r.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_recipe(path)


def test_a_recipe_becomes_data_with_all_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path, GOOD) == Recipe(
        name="demo",
        base=Base("m", "float32"),
        targets=(
            Target("bf16", "m", "bfloat16"),
            Target("gptq", "m", "auto", QuantizeSpec("gptq", 4, None, True)),
        ),
        loads=(Load(1, 4, 128, 64),),
        repeats=3,
        warmup_requests=1,
        seed=0,
        backends=("llmopt",),
        calibration=Calibration("bundled", 32, 512),
        quality=Quality("bundled", "windows", 256, 16, True),
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert cells(recipe)


def test_the_demo_compares_the_five_schemes_at_two_loads() -> None:
    recipe = load_recipe(RECIPES / "demo.yaml")
    names = [target.name for target in all_targets(recipe)]
    assert names == ["fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64"]
    assert [load.concurrency for load in recipe.loads] == [1, 8]
    assert recipe.repeats == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "name: demo",
            "nam: demo",
            "r.yaml:1: unknown key 'nam' in the recipe. Allowed: name, base, targets, loads, "
            "repeats, warmup_requests, seed, backends, calibration, quality, price_per_hour, "
            "until_ci, max_repeats. Did you mean 'name'?",
        ),
        ("name: demo", "repeats: 2", "r.yaml:1: the recipe lacks 'name'. It needs name, base"),
        ("name: demo", "name: 4", "r.yaml:1: 'name' is '4'. It must be text."),
        ("name: demo", "name: no", "r.yaml:1: 'name' is 'no'. It must be text."),
        ("name: demo", "name: a/b", "r.yaml:1: 'a/b' cannot be used as a name"),
        ("name: demo", "name:", "r.yaml:1: 'name' is empty. It must be text."),
        (
            "dtype: bfloat16",
            "dtype: bfloat",
            "r.yaml:6: 'dtype' is 'bfloat'. Allowed: auto, float32, bfloat16, float16. "
            "Did you mean 'bfloat16'?",
        ),
        ("bits: 4", "bits: 5", "r.yaml:7: 'bits' is '5'. Allowed: 2, 3, 4, 8."),
        ("bits: 4", "bits: '4'", "r.yaml:7: 'bits' is '4'. Allowed: 2, 3, 4, 8."),
        (
            "method: gptq",
            "method: gtpq",
            "nf4, fp4, int8, w8a16, w8a8, fp8, gguf. Did you mean 'gptq'?",
        ),
        ("bits: 4, ", "", "r.yaml:7: gptq needs bits. Add bits, such as 4."),
        ("method: gptq", "method: nf4", "r.yaml:7: nf4 has no choice of bits. Remove it."),
        ("method: gptq, bits: 4", "method: gguf", "r.yaml:7: gguf needs mix. Add one"),
        ("bits: 4", "bits: 4, mix: q4_k_m", "r.yaml:7: gptq has no mix. Remove it."),
        ("group_size: null", "group_size: -1", "r.yaml:7: group_size is -1. Use a positive"),
        ("group_size: null", "group_size: 6.4", "r.yaml:7: 'group_size' is '6.4'. It must be a w"),
        ("group_size: null", "group_size: 8, format: ggml", "Allowed: gptq, awq, compressed-tens"),
        (
            "group_size: null",
            "group_size: 8, format: gguf",
            "gptq weights cannot be stored as gguf",
        ),
        ("group_size: null", "group_size: null, format: awq", "r.yaml:7: the format awq holds 4-b"),
        ("bits: 4, group_size: null", "bits: 8, group_size: 8, format: awq", "the format awq hold"),
        ("name: gptq", "name: BF16", "r.yaml:7: the name 'BF16' is used twice"),
        ("name: gptq", "name: fp32", "used twice (the base is named 'fp32')"),
        ("concurrency: 1", "concurrency: 0", "r.yaml:9: concurrency is 0. It must be at least 1."),
        ("concurrency: 1", "concurrency: 8", "r.yaml:9: 4 requests cannot keep 8 in flight"),
        ("concurrency: 1", "concurrency: true", "'concurrency' is 'true'. It must be a whole"),
        ("{window: 256}", "{window: 1}", "r.yaml:10: window is 1. It must be at least 2."),
        (
            "{window: 256}",
            "{num_windows: 1}",
            "r.yaml:10: num_windows is 1. It must be at least 2.",
        ),
        (
            "{window: 256}",
            "{protocol: lama.cpp}",
            "r.yaml:10: 'protocol' is 'lama.cpp'. Allowed: windows, paper, llama.cpp, rolling. "
            "Did you mean 'llama.cpp'?",
        ),
        ("{window: 256}", "{noise: 1}", "r.yaml:10: 'noise' is '1'. It must be true or false."),
        ("{window: 256}", "yes", "r.yaml:10: 'quality' is 'yes'. It must be a mapping"),
        ("{window: 256}", "[1]", "r.yaml:10: 'quality' is a list. It must be a mapping"),
        ("{window: 256}", "{window: 2024-13-45}", "which YAML cannot read"),
        ("{window: 256}", "{window: 256", "r.yaml:11: not YAML"),
        ("{window: 256}", "{[1]: 256}", "r.yaml:10: unknown key 'a list' in 'quality'"),
        ("{window: 256}", "{window: 256}\nname: again", "r.yaml:11: the key 'name' stands twice"),
        ("{window: 256}", "{window: 256}\nrepeats: 0", "r.yaml:11: repeats is 0."),
        ("    model: m\n", "    model: ''\n", "r.yaml:5: the model is empty."),
        ("  - {conc", "  {conc", "r.yaml:9: 'loads' is a mapping. It must be a list."),
        ("base: {model: m,", "base: {modle: m,", "Did you mean 'model'?"),
        ("  - name: bf16\n    model", "  - model", "r.yaml:4: item 1 of 'targets' lacks 'name'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        load_text(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n- b\n", "r.yaml:1: the recipe is a list. It must be a mapping"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("&a [*a]", "the recipe is a list"),
        ("name: \x07", "is not YAML"),
        ("[" * 50_000, "is nested too deeply"),
        ("name: !!python/object/apply:os.system [ls]", "'name' is a list. It must be text"),
        ("name: !!python/name:os.system", "which YAML cannot read"),
    ],
)
def test_what_is_no_recipe_at_all(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_text(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        load_recipe(tmp_path / "bytes.yaml")


def test_loads_of_one_kind_twice_are_refused(tmp_path: Path) -> None:
    line = "  - {concurrency: 1, num_requests: 4, prompt_tokens: 128, output_tokens: 64}\n"
    with pytest.raises(RecipeError, match=r"r\.yaml:10: this load has the concurrency"):
        load_text(tmp_path, GOOD.replace(line, line + line))
    with pytest.raises(RecipeError, match=r"r\.yaml:8: there is neither a load nor quality"):
        load_text(tmp_path, GOOD.replace("loads:\n" + line, "loads: []\n").split("quality")[0])


def test_without_loads_only_quality_is_measured(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, "name: r\nbase: {model: m}\ntargets: []\nquality: {window: 256}\n")
    assert recipe.loads == ()
    assert cells(recipe) == [Cell("r-base-quality", Target("base", "m"), None)]


def test_a_protocol_has_its_own_length_and_may_take_the_whole_text(tmp_path: Path) -> None:
    quality = "{protocol: rolling, num_windows: null, noise: false}"
    recipe = load_text(tmp_path, GOOD.replace("{window: 256}", quality))
    assert recipe.quality == Quality("bundled", "rolling", None, None, False)


def test_the_ladder_goes_from_rounding_noise_to_damage_without_loads() -> None:
    recipe = load_recipe(RECIPES / "precision-ladder.yaml")
    names = [target.name for target in recipe.targets]
    assert names[0] == "bf16"
    assert names[-1] == "rtn-w2g64"
    assert {"int8", "nf4", "gguf-q4_k_m", "gptq-w4g64", "awq-w4g64-asym"} < set(names)
    assert recipe.loads == ()
    assert recipe.quality == Quality("wikitext-2", "windows", 512, 16, True)


def test_a_target_may_name_its_scheme(tmp_path: Path) -> None:
    mapping = "{method: gptq, bits: 4, group_size: null}"
    recipe = load_text(tmp_path, GOOD.replace(mapping, "gptq-w4-asym"))
    assert recipe.targets[1].quantize == "gptq-w4-asym"
    with pytest.raises(RecipeError, match=r"r\.yaml:7: 'quantize' is '4'. It must be text"):
        load_text(tmp_path, GOOD.replace(mapping, "4"))


def test_whoever_measures_may_have_rules_of_their_own(tmp_path: Path) -> None:
    def rule(recipe: Recipe) -> Iterator[Problem]:
        yield Problem(("targets", 1, "quantize"), f"{recipe.name} is odd", "Mend it.")

    (tmp_path / "r.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"r\.yaml:7: demo is odd\. Mend it\."):
        load_recipe(tmp_path / "r.yaml", rule)


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.text(max_size=3), st.integers(0, 12))
def test_a_damaged_recipe_loads_or_is_refused_and_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, start: int, insert: str, drop: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes((GOOD[:start] + insert + GOOD[start + drop :]).encode())
    with contextlib.suppress(RecipeError):
        assert cells(load_recipe(path))


LOADS = (Load(1, 4, 16, 8),)


def test_targets_without_a_file_are_named_after_their_paths() -> None:
    recipe = recipe_from_targets(["org/Model 1", "out/gptq/", "other/gptq"], LOADS)
    assert recipe.base == Base("org/Model 1", "auto", "Model-1")
    assert recipe.targets == (Target("gptq", "out/gptq/"), Target("gptq-2", "other/gptq"))
    assert recipe.quality is None


def test_a_base_of_its_own_is_not_repeated_among_the_targets() -> None:
    recipe = recipe_from_targets(["a", "b"], LOADS, base="b", dtype="float32")
    assert recipe.base == Base("b", "float32", "b")
    assert recipe.targets == (Target("a", "a", "float32"),)


@given(st.lists(st.text(st.sampled_from("aA-/. 2é"), min_size=1), min_size=1, max_size=8))
def test_any_paths_get_distinct_usable_names(paths: list[str]) -> None:
    if any(not path.strip() for path in paths):
        return
    ids = [cell.cell_id.lower() for cell in cells(recipe_from_targets(paths, LOADS))]
    assert len(set(ids)) == 1 + sum(path != paths[0] for path in paths)
    assert all("/" not in cell_id for cell_id in ids)


def test_impossible_targets_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="no target"):
        recipe_from_targets([], LOADS)
    with pytest.raises(UsageError, match=r"loads\.0\.num_requests: 1 requests cannot keep 2"):
        recipe_from_targets(["m"], [Load(2, 1, 16, 8)])
