"""The model card: it says what it was given, and nothing in it can break out of its place."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmopt.formats.portability import Verdict
from llmopt.quantize.model_card import (
    CalibrationFacts,
    CardFacts,
    SmokeTest,
    model_card,
    source_license,
)
from llmopt.quantize.options import ModuleRecord


def record(name: str, loss: float | None = None, **changes: Any) -> ModuleRecord:
    fields: dict[str, Any] = {"name": name, "bits": 4, "group_size": 64, "stored_as": "w4"}
    if loss is not None:
        fields |= {"loss": loss, "relative_loss": 10 * loss, "damping": 0.01, "dead_columns": 0}
    return ModuleRecord(**(fields | changes))


def facts(**changes: Any) -> CardFacts:
    fields: dict[str, Any] = {
        "name": "tiny-w4",
        "base_model": "someone/tiny",
        "method": "gptq",
        "scheme": "gptq-w4g64",
        "format": "gptq",
        "bits_per_weight": 4.28125,
        "source_bytes": 200_000_000,
        "file_bytes": 70_000_000,
        "source_sha256": "ab" * 32,
        "seconds": 129.4,
        "command": "llmopt quantize someone/tiny --bits 4 --out tiny-w4",
        "version": "0.1.0",
        "modules": (
            record("model.layers.0.self_attn.q_proj", 0.001),
            record("model.layers.0.mlp.down_proj", 0.004),
            record("model.layers.1.self_attn.q_proj", 0.002),
        ),
        "damping": 0.01,
    }
    return CardFacts(**(fields | changes))


def front_matter(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    found = yaml.safe_load(match[1])
    assert isinstance(found, dict)
    return found


def test_front_matter() -> None:
    keys = front_matter(model_card(facts(license={"license": "apache-2.0"})))
    assert keys == {
        "license": "apache-2.0",
        "base_model": "someone/tiny",
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["llmopt", "gptq", "4-bit"],
    }


def test_directories_are_no_hub_ids() -> None:
    keys = front_matter(model_card(facts(base_model="my model", format="gguf", method="q4_k_m")))
    assert "base_model" not in keys
    assert "library_name" not in keys
    assert keys["tags"] == ["llmopt", "gguf", "q4_k_m", "4-bit"]


def test_numbers_are_the_given_ones() -> None:
    card = model_card(facts())
    assert "3 layers (3 as `w4`), 4.281 bits per weight on disk" in card
    assert "200.0 MB before, 70.0 MB after (35.0%)" in card
    assert "129 s" in card
    assert "Time" not in model_card(facts(seconds=None))
    assert "abab" in card
    assert "None: the method looks at weights only." in card
    assert "```bash\nllmopt quantize someone/tiny --bits 4 --out tiny-w4\n```" in card


def test_losses_by_block_and_the_worst_layers() -> None:
    card = model_card(facts())
    assert "| 0 | 2 | 0.025 | `down_proj` 0.04 |" in card
    assert "| 1 | 1 | 0.02 | `q_proj` 0.02 |" in card
    worst = [line for line in card.splitlines() if line.startswith("| `model.layers")]
    assert [line.split("`")[1] for line in worst] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj",
    ]


def test_methods_without_losses_have_no_sections_about_them() -> None:
    card = model_card(facts(modules=(record("model.layers.0.mlp.down_proj"),), damping=None))
    assert "Loss" not in card
    assert "Damping" not in card


def test_damping_that_was_raised_is_shown() -> None:
    assert "Damping of 0.01 was enough for every layer." in model_card(facts())
    modules = (
        record("a.0.q_proj", 0.1, damping=0.04),
        record("a.0.o_proj", 0.1, damping=None),
        record("a.1.q_proj", 0.1, dead_columns=3),
    )
    card = model_card(facts(modules=modules))
    assert "Damping of 0.01 was raised for 1 layer." in card
    assert "* `a.0.q_proj`: 0.04" in card
    assert "* `a.0.o_proj`: none was enough, rounded to nearest" in card
    assert "3 inputs of 1 layer gave zero" in card


def test_calibration() -> None:
    calibration = CalibrationFacts("data.jsonl", "cd" * 32, 32, 512, 7, ("note: few tokens",))
    card = model_card(facts(calibration=calibration))
    assert "| Samples | 32 of 512 tokens = 16,384 |" in card
    assert "* note: few tokens" in card
    assert "cdcd" in card


def verdict(engine: str, status: Any, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "engine": engine,
        "version": "1.0",
        "status": status,
        "kernels": ("Marlin (NVIDIA)",) if status == "loads" else (),
        "gpu_counts": (1, 2) if status == "loads" else (),
        "reason": "",
        "evidence": "source",
        "source": "x.py",
    }
    return Verdict(**(fields | changes))


def test_engines_that_load_it_are_told_how() -> None:
    verdicts = (
        verdict("vLLM", "loads"),
        verdict("SGLang", "refused", reason="takes | 4 bits"),
        verdict("TGI", "loads with a slower kernel", evidence="unverified"),
        verdict("transformers", "loads", evidence="run"),
    )
    card = model_card(facts(verdicts=verdicts, name="it's"))
    assert "| vLLM 1.0 | loads | Marlin (NVIDIA) | 1, 2 | read in its code |  |" in card
    assert r"| SGLang 1.0 | refused |  |  | read in its code | takes \| 4 bits |" in card
    assert "| unverified |" in card
    assert """vllm serve './it'"'"'s'\n""" in card
    assert "--quantize gptq" in card
    assert """from_pretrained("./it's")""" in card
    assert "sglang.launch_server" not in card


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "gguf"])
def test_every_engine_has_a_command(format: str) -> None:
    engines = ("vLLM", "SGLang", "transformers", "gptqmodel", "llama.cpp", "Ollama", "TGI")
    verdicts = tuple(verdict(engine, "loads") for engine in engines)
    card = model_card(facts(verdicts=verdicts, format=format, name="tiny.gguf"))
    for engine in (*engines, "llmopt"):
        assert f"\n{engine}:\n" in card
    assert "{" not in card.partition("## How to run it")[2]


def test_smoke_text_cannot_leave_its_fence() -> None:
    smoke = SmokeTest("Say `hi`", "```\n# not a heading\n````\nend")
    card = model_card(facts(smoke=smoke))
    assert "Greedy continuation of `` Say `hi` `` by" in card
    assert "`````text\n```\n# not a heading\n````\nend\n`````\n" in card


@given(st.text(max_size=40))
def test_names_stay_in_their_line_and_cell(name: str) -> None:
    card = model_card(facts(name=name, base_model=name))
    (heading,) = [line for line in card.split("\n") if line.startswith("# ")] or ["# "]
    assert not re.search(r"(?<!\\)[<>\[\]|*_`]", heading)
    row = next(line for line in card.split("\n") if line.startswith("| Base model |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert front_matter(card)["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# T", {"license": "mit"}),
        (
            "---\r\nlicense: other\r\nlicense_name: x\r\nlicense_link: LICENSE\r\n---\r\n",
            {"license": "other", "license_name": "x", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [mit, x]\n---\n", {}),
        ("---\n: {\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("# no front matter", {}),
        (None, {}),
    ],
)
def test_license_of_the_source(tmp_path: Path, text: str | None, expected: dict[str, str]) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text, encoding="utf-8", newline="")
    assert source_license(tmp_path) == expected
