"""Backends in recipes: which cells follow, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.bench.foreign import backend_problems
from llmopt.errors import RecipeError, UsageError
from llmopt.recipe.backends import OWN, BackendSpec
from llmopt.recipe.load import load_recipe, recipe_from_targets
from llmopt.recipe.loads import Load
from llmopt.recipe.schema import Base, Recipe, cell_document, cells, to_document

TEXT = """\
name: r
base: {model: m, dtype: bfloat16}
targets:
  - {name: gguf, model: m, quantize: gguf-q4_k_m, backends: [llama-server]}
  - {name: w4, model: m, quantize: gptq-w4g128}
loads:
  - {concurrency: 1, num_requests: 4, prompt_tokens: 128, output_tokens: 64}
backends:
  - llmopt
  - {name: vllm, server_args: [--enforce-eager], reuse_server: true}
"""


def read(directory: Path, text: str) -> Recipe:
    path = directory / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, backend_problems)


def test_a_recipe_multiplies_its_cells_by_backends(tmp_path):
    recipe = read(tmp_path, TEXT)
    assert [cell.cell_id for cell in cells(recipe)] == [
        "r-bf16-llmopt-c1",
        "r-w4-llmopt-c1",
        "r-bf16-vllm-c1",
        "r-w4-vllm-c1",
        "r-gguf-llama-server-c1",
    ]
    vllm = cells(recipe)[2].backend
    assert vllm == BackendSpec("vllm", server_args=("--enforce-eager",), reuse_server=True)
    assert cells(recipe)[0].backend == OWN


def test_a_target_names_a_backend_of_the_recipe_by_its_title(tmp_path):
    recipe = read(tmp_path, TEXT.replace("[llama-server]", "[vllm, llmopt]"))
    served = [cell for cell in cells(recipe) if cell.target.name == "gguf"]
    assert [cell.backend.title for cell in served] == ["llmopt", "vllm"]
    assert served[1].backend.server_args == ("--enforce-eager",)


def test_quality_needs_no_backend(tmp_path):
    recipe = replace(read(tmp_path, TEXT), loads=())
    assert [cell.cell_id for cell in cells(recipe)] == [
        "r-bf16-quality",
        "r-gguf-quality",
        "r-w4-quality",
    ]


def test_two_of_one_backend_are_told_apart_by_their_labels():
    specs = (BackendSpec("vllm"), BackendSpec("vllm", label="eager", server_args=("-e",)))
    recipe = Recipe("r", Base("m"), (), (Load(1, 4, 8, 8),), backends=specs)
    assert [cell.cell_id for cell in cells(recipe)] == ["r-base-vllm-c1", "r-base-eager-c1"]


def test_documents_are_json_and_tell_backends_apart(tmp_path):
    recipe = read(tmp_path, TEXT)
    document = to_document(recipe)
    assert json.loads(json.dumps(document)) == document
    own, other = cells(recipe)[0], cells(recipe)[2]
    assert cell_document(recipe, own) != cell_document(recipe, other)
    assert json.loads(json.dumps(cell_document(recipe, other))) == cell_document(recipe, other)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: vllm", "name: vlm", "r.yaml:10: there is no backend 'vlm'"),
        ("  - llmopt\n", "  - llmop\n", "r.yaml:9: there is no backend 'llmop'"),
        ("backends: [llama-server]", "backends: [llama]", "r.yaml:4: there is no backend 'llama'"),
        ("reuse_server: true", "url: 127.0.0.1:80", "r.yaml:10: '127.0.0.1:80' is no URL"),
        (
            "reuse_server: true",
            "url: 'http://h:80'",
            "r.yaml:10: server_args means nothing for a server that runs already",
        ),
        ("reuse_server: true", "model: m", "model means nothing for a server that is started"),
        ("reuse_server: true", "request_timeout_s: 0", "request_timeout_s is 0"),
        ("reuse_server: true", "label: a b", "'a b' cannot be a label"),
        ("name: vllm", "name: ollama", "r.yaml:10: ollama cannot be started by llmopt"),
        ("name: vllm", "name: transformers", "transformers is no server with arguments"),
        ("  - llmopt\n", "  - vllm\n", "two different backends are called 'vllm'"),
        ("llama-server]", "{name: llama-cpp-python, url: 'http://h'}]", "is no server that a URL"),
        ("[llama-server]", "[]", "r.yaml:4: no backend is named"),
        ("[llama-server]", "[{name: vllm}]", "two different backends are called 'vllm'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(RecipeError) as error:
        read(tmp_path, TEXT.replace(old, new))
    assert message in str(error.value)


def test_no_backend_at_all_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no backend is named"):
        read(tmp_path, TEXT.rpartition("backends:")[0] + "backends: []\n")


def test_targets_of_a_command_line_have_backends_too():
    recipe = recipe_from_targets(["m"], [Load(1, 4, 8, 8)], backends=(BackendSpec("vllm"),))
    assert cells(recipe)[0].backend.name == "vllm"
    with pytest.raises(UsageError, match="no backend 'nothing'"):
        recipe_from_targets(
            ["m"],
            [Load(1, 4, 8, 8)],
            backends=(BackendSpec("nothing"),),
            rules=(backend_problems,),
        )
