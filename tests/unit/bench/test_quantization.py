from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from llmopt.bench.quantization import (
    Quantization,
    check_source_for,
    quantization_problems,
    read_quantization,
)
from llmopt.errors import LLMOptError, ModelError, QuantizationError, RecipeError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.options import FileFormat, Job
from llmopt.quantize.scheme import Method, Scheme
from llmopt.recipe.load import load_recipe
from llmopt.recipe.schema import QuantizeSpec, all_targets, cells

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def literals(hint: object) -> set[object]:
    """All choices of a type hint of literals."""
    arguments = get_args(hint)
    return {value for part in arguments for value in (literals(part) or {part})}


def test_a_recipe_may_name_every_method_and_every_format():
    hints = get_type_hints(QuantizeSpec)
    assert literals(hints["method"]) == literals(Method)
    assert literals(hints["format"]) - {type(None)} == literals(FileFormat)


def test_a_name_says_what_a_mapping_says():
    spec = QuantizeSpec("gptq", 4, 64, symmetric=False)
    job = Job(Scheme("gptq", QuantSpec(4, 64, symmetric=False)), "gptq")
    assert read_quantization(spec) == read_quantization("gptq-w4g64-asym") == Quantization(job)
    assert read_quantization("nf4").job.format == "bitsandbytes"
    assert read_quantization("gguf-q4_k_m").label == "gguf-q4_k_m"


def test_others_are_named_in_front_of_the_scheme():
    quantization = read_quantization(QuantizeSpec("awq", 4, 64, engine="gptqmodel"))
    assert not quantization.is_own
    assert quantization.label == "gptqmodel-awq-w4g64"


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("gtpq-w4g64", "no quantization scheme. Did you mean gptq-w4g64"),
        ("gguf-q9_k", "q9_k"),
        ("gptq-w5g64", "5"),
        (QuantizeSpec("rtn", 3, 64, format="awq"), "awq checkpoints hold"),
        (QuantizeSpec("nf4", engine="gptqmodel"), "gptqmodel has no method nf4"),
        (QuantizeSpec("rtn", 4, 64, engine="gptq-model"), "there is no engine 'gptq-model'"),
    ],
)
def test_what_does_not_exist_is_refused(quantize, message):
    with pytest.raises(LLMOptError, match=message):
        read_quantization(quantize)


def test_a_wrong_scheme_has_a_place_in_the_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "name: r\nbase: {model: m}\nquality: {}\ntargets:\n"
        "  - {name: a, model: m, quantize: nf4}\n"
        "  - {name: b, model: m, quantize: nf5}\n"
    )
    with pytest.raises(RecipeError, match=r"r\.yaml:6: 'nf5' is no quantization scheme"):
        load_recipe(tmp_path / "r.yaml", quantization_problems)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_measured(path):
    recipe = load_recipe(path, quantization_problems)
    found = cells(recipe)
    assert len({cell.cell_id for cell in found}) == len(found)
    rows = {(cell.target.name, cell.load) for cell in found}
    assert len(rows) == len(all_targets(recipe)) * max(1, len(recipe.loads))


def test_what_a_model_is_too_odd_for_is_refused(tiny_model_path, gguf_source):
    with pytest.raises(QuantizationError, match="48"):
        check_source_for(read_quantization("rtn-w4g48").job, tiny_model_path)
    job = read_quantization("gguf-q8_0").job
    with pytest.raises(ModelError, match="tokenizer"):
        check_source_for(job, tiny_model_path)
    check_source_for(job, gguf_source)
