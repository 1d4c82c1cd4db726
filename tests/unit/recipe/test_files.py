from pathlib import Path

import pytest

from llmopt.bench.trace_files import trace_problems
from llmopt.errors import RecipeError, UsageError
from llmopt.recipe.load import load_recipe, recipe_from_targets
from llmopt.recipe.loads import Load
from llmopt.recipe.schema import all_targets
from llmopt.recipe.shipped import recipe_directory

RECIPE = """name: r
base: {model: m}
targets: []
loads:
  - {kind: trace, trace: t.csv, concurrency: 2}
  - {concurrency: 1, num_requests: 2, prompt_tokens: 9, workload: {prompts: p.jsonl}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def files_of(folder: Path) -> list[str | None]:
    traced, prompted = load_recipe(folder / "recipes" / "r.yaml").loads
    return [traced.trace, prompted.workload.prompts]


def test_a_file_is_looked_for_here_and_beside_the_recipe(folder: Path) -> None:
    assert files_of(folder) == ["t.csv", "p.jsonl"]  # nowhere
    beside = [folder / "recipes" / name for name in ("t.csv", "p.jsonl")]
    for path in beside:
        path.write_text("")
    assert files_of(folder) == [str(path) for path in beside]
    (folder / "elsewhere" / "t.csv").write_text("")  # here comes first
    assert files_of(folder) == ["t.csv", str(beside[1])]


def test_the_configs_of_random_weights_are_looked_for_too(folder: Path) -> None:
    path = folder / "recipes" / "d.yaml"
    path.write_text(
        "name: d\nbase: {model: 'dummy:c.json'}\ntargets:\n"
        "  - {name: t, model: 'dummy:c.json'}\n  - {name: real, model: c.json}\nquality: {}\n"
    )

    def models() -> list[str]:
        return [target.model for target in all_targets(load_recipe(path))]

    assert models() == ["dummy:c.json", "dummy:c.json", "c.json"]  # nowhere
    beside = folder / "recipes" / "c.json"
    beside.write_text("{}")
    assert models() == [f"dummy:{beside}", f"dummy:{beside}", "c.json"]


def test_an_absolute_path_is_left_alone(folder: Path) -> None:
    trace = folder / "elsewhere" / "own.csv"
    trace.write_text("")
    text = RECIPE.replace("t.csv", str(trace))
    (folder / "recipes" / "r.yaml").write_text(text)
    assert files_of(folder)[0] == str(trace)


def test_a_missing_trace_is_told_with_its_line_and_where_to_get_it(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipes" / "r.yaml", trace_problems)
    message = str(caught.value)
    assert "r.yaml:5: there is no trace t.csv" in message
    assert "github.com/Azure/AzurePublicDataset" in message
    assert "beside the recipe or in the current directory as t.csv" in message
    (folder / "recipes" / "t.csv").write_text("")
    load_recipe(folder / "recipes" / "r.yaml", trace_problems)


@pytest.mark.parametrize(
    ("trace", "source"), [("m.jsonl", "kvcache-ai/Mooncake"), ("r.json", "Check the path, or put")]
)
def test_each_kind_of_trace_has_its_source(folder: Path, trace: str, source: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from_targets(["m"], [Load(1, kind="trace", trace=trace)], rules=(trace_problems,))
    assert source in str(caught.value)


def test_the_shipped_replay_names_a_file_that_the_user_gives(folder: Path) -> None:
    directory = recipe_directory()
    assert directory is not None
    (load,) = load_recipe(directory / "azure-replay.yaml").loads
    assert load.trace == "azure-conversation.csv"
    (folder / "elsewhere" / "azure-conversation.csv").write_text("")
    load_recipe(directory / "azure-replay.yaml", trace_problems)
