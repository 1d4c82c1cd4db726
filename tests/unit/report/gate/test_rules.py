import pytest

from llmopt.errors import RecipeError
from llmopt.report.gate.rules import DEFAULT_RULES, Rule, load_rules


def written(tmp_path, text):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return path


def test_a_rules_file_replaces_the_usual_rules(tmp_path):
    path = written(
        tmp_path,
        "rules:\n"
        "  - {metric: output_throughput, tolerance: -5 %}\n"
        "  - {metric: ttft_p95, absolute: 20, cells: '*-c1'}\n",
    )
    throughput, ttft = load_rules(path).rules
    assert throughput.relative_tolerance(100.0) == pytest.approx(0.05)
    assert ttft.relative_tolerance(200.0) == pytest.approx(0.1)
    assert ttft.holds_for("demo-fp32-c1")
    assert not ttft.holds_for("demo-fp32-c8")


def test_without_a_file_speed_quality_and_size_are_ruled():
    assert load_rules(None) is DEFAULT_RULES
    assert {rule.of.kind for rule in DEFAULT_RULES.rules} == {"speed", "quality", "size"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("rules:\n  - {metric: kld_maen, tolerance: 5%}\n", 2, "'kld_mean'"),
        ("rules:\n  - metric: tpot_p50\n    tolerance: much\n", 3, "5%"),
        ("rules:\n  - {metric: tpot_p50}\n", 2, "tolerance"),
        ("rules:\n  - {metric: tpot_p50, tolerance: 5%, absolute: 3}\n", 2, "either"),
        ("rules:\n  - {metric: tpot_p50, absolute: -3}\n", 2, "at least 0"),
        ("rules:\n  - {metric: tpot_p50, tolerence: 5%}\n", 2, "'tolerance'"),
        ("rules: []\n", 1, "no rules"),
        ("rules: [\n", 2, "not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, line, words):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        load_rules(path)
    assert f"{path}:{line}:" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_and_an_empty_file_are_named(tmp_path, text):
    path = tmp_path / "rules.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=r"rules\.yaml"):
        load_rules(path)


def test_a_rule_says_what_it_allows():
    assert str(Rule("tpot_p50", "5%")) == "tpot_p50 within 5 %"
    assert str(Rule("ttft_p95", absolute=20)) == "ttft_p95 within 20 ms"
