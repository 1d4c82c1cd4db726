import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from tokenizers import pre_tokenizers

from llmopt.cli import generate as command
from llmopt.engine.structured import GrammarState
from llmopt.errors import UsageError


@pytest.fixture(scope="module")
def model(make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]) -> str:
    path = make_tiny_llama(vocab_size=600, bos_token_id=1, eos_token_id=0)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return str(path)


def generate(model: str, **options: Any) -> None:
    command.generate(
        model,
        **{"prompt": ["Hi"], "max_tokens": 6, "ignore_eos": True, "kv_memory": "1MiB"} | options,
    )


def outputs(capsys: pytest.CaptureFixture[str], model: str, **options: Any) -> list[dict[str, Any]]:
    generate(model, json=True, **options)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_json_has_all_samples_and_the_first_in_front(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    (output,) = outputs(capsys, model, n=2, temperature=1.0, seed=1, logprobs=1)
    first, second = output["completions"]
    assert [output[name] for name in ("text", "token_ids", "finish_reason")] == [
        first["text"],
        first["token_ids"],
        "length",
    ]
    assert first["token_ids"] != second["token_ids"]
    assert [one["token_id"] for one in second["logprobs"]] == second["token_ids"]
    assert all(len(one["top"]) == 1 for one in second["logprobs"])


def test_samples_are_shown_one_below_the_other(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    generate(model, prompt=["Hi", "Ho"], n=2, temperature=1.0, seed=1)
    lines = capsys.readouterr().out
    assert [lines.count(mark) for mark in (">>> Hi", ">>> Ho", "--- 0", "--- 1")] == [1, 1, 2, 2]


def test_stop_strings_and_penalties_reach_the_engine(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    (plain,) = outputs(capsys, model, max_tokens=20)
    stop = plain["text"][4:6]
    (stopped,) = outputs(capsys, model, max_tokens=20, stop=[stop])
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]
    assert stopped["completions"][0]["stop_reason"] == stop
    (biased,) = outputs(capsys, model, max_tokens=20, frequency_penalty=2.0, presence_penalty=2.0)
    assert biased["text"] != plain["text"]


def test_a_system_prompt_changes_the_prompt(capsys: pytest.CaptureFixture[str], model: str) -> None:
    (plain,) = outputs(capsys, model, chat=True)
    (told,) = outputs(capsys, model, chat=True, system="Be kind.")
    assert len(told["prompt_token_ids"]) > len(plain["prompt_token_ids"])


def test_a_schema_is_read_from_a_file(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "boolean"}')
    (output,) = outputs(capsys, model, json_schema=schema, ignore_eos=False)
    assert json.loads(output["text"]) in (True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "Be kind."}, "--system needs a chat template. Give --chat"),
        ({"logprobs": 1}, "--logprobs is shown only by --json"),
        ({"kv_memory": "much"}, "--kv-memory is 'much'"),
        ({"json_schema": Path("nowhere.json")}, "nowhere.json cannot be read"),
        ({"prompt": None}, "there is no prompt"),
        ({"best_of": 2, "n": 3}, "best_of is 2"),
        ({"speculation": "magic"}, "speculation is 'magic'"),
        ({"kv_dtype": "int3"}, "kv_dtype is 'int3'"),
    ],
)
def test_wrong_options_are_refused(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(model, **options)


def test_it_says_what_fits_and_what_would_help(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    generate(model, json=True)
    said = capsys.readouterr().err
    assert "1 of 1 requests of" in said
    assert "--kv-memory" not in said
    generate(model, json=True, prompt=["Hi"] * 40, max_tokens=400, kv_memory="4MiB")
    said = capsys.readouterr().err
    fitting = re.search(r"(\d+) of 40 requests of \d+ tokens fit at once", said)
    assert fitting is not None
    assert 0 < int(fitting[1]) < 40
    assert "MiB would hold 40" in said


def test_random_weights_of_a_config_are_served_with_a_models_tokenizer(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    config = json.loads((Path(model) / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "other.json").write_text(json.dumps(config))
    (real,) = outputs(capsys, model)
    (dummy,) = outputs(capsys, model, dummy_weights=str(tmp_path / "other.json"))
    (again,) = outputs(capsys, model, dummy_weights=str(tmp_path / "other.json"))
    assert dummy == again
    assert dummy["prompt_token_ids"] == real["prompt_token_ids"]
    assert dummy["token_ids"] != real["token_ids"]


def test_an_output_that_was_given_up_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setattr(GrammarState, "has_failed", property(lambda _: True))
    with pytest.raises(typer.Exit) as end:
        generate(model, regex="a*", ignore_eos=False)
    assert end.value.exit_code == 1
    assert "ended early: its constraint got too complex" in capsys.readouterr().err
