"""What the gate tolerates: rules from a YAML file, or the ones that hold without a file.

Knows nothing about results. The law: whatever is wrong with a rules file is one RecipeError that
says file:line, what was found and what is allowed. A rules file looks so:

    rules:
      - {metric: output_throughput, tolerance: 5%}
      - {metric: ttft_p95, absolute: 20, cells: "*-c1"}   # 20 ms
"""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from llmopt.errors import RecipeError
from llmopt.recipe.build import build, line_of
from llmopt.report.gate.metrics import METRICS, Metric

_SHARE = re.compile(r"[+-]?(\d+(?:\.\d+)?|\.\d+)\s*%")


@dataclass(frozen=True, slots=True)
class Rule:
    """How much worse a metric may become.

    tolerance: as a share of the baseline, such as "5%"; a sign is allowed and means nothing, since
        worse is down for a throughput and up for a latency
    absolute: in the metric's own unit (ms, bytes, nats), in place of `tolerance`
    cells: the cells that it holds for, as a pattern of their ids
    """

    metric: str
    tolerance: str | None = None
    absolute: float | None = None
    cells: str = "*"

    @property
    def of(self) -> Metric:
        """The metric itself."""
        return METRICS[self.metric]

    def holds_for(self, cell_id: str) -> bool:
        """Whether the rule is for this cell."""
        return fnmatchcase(cell_id, self.cells)

    def relative_tolerance(self, baseline: float) -> float:
        """The tolerance as a share of the baseline's value, at least 0, and 0 where that is 0."""
        if self.absolute is not None:
            return self.absolute / abs(baseline) if baseline else 0.0
        assert self.tolerance is not None, "a rule has one of the two"
        return _share(self.tolerance)

    def __str__(self) -> str:
        if self.absolute is not None:
            return f"{self.metric} within {self.absolute:g} {self.of.unit}".rstrip()
        return f"{self.metric} within {100 * self.relative_tolerance(1.0):g} %"


@dataclass(frozen=True, slots=True)
class Rules:
    """The content of a rules file."""

    rules: tuple[Rule, ...]


# A rule for a tail is for recipes of hundreds of requests: of a few, the p95 is nearly the longest,
# and that decides nothing.
DEFAULT_RULES = Rules(
    (
        Rule("output_throughput", "5%"),
        Rule("tpot_p50", "5%"),
        Rule("ttft_p50", "10%"),
        Rule("peak_memory", "5%"),
        Rule("kld_mean", "10%"),
        Rule("ppl_ratio", "0.5%"),
        Rule("base_ppl", "0.5%"),
        Rule("file_bytes", "1%"),
    )
)


def load_rules(path: Path | None) -> Rules:
    """Read a rules file; without one, the default rules. Raises RecipeError."""
    if path is None:
        return DEFAULT_RULES
    root = _parse(path)
    rules = build(Rules, root, str(path))
    if not rules.rules:
        raise RecipeError(f"{path}:1: there are no rules", "Give one, or no file.")
    for index, rule in enumerate(rules.rules):
        for field, message, remedy in _problems(rule):
            line = line_of(root, ("rules", index, field))
            raise RecipeError(f"{path}:{line}: {message}", remedy)
    return rules


def _problems(rule: Rule) -> Iterator[tuple[str, str, str]]:
    """Field, message and remedy of everything that is wrong with a rule."""
    if rule.metric not in METRICS:
        close = difflib.get_close_matches(rule.metric, METRICS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(METRICS)}."
        yield "metric", f"{rule.metric!r} is no metric of the gate", hint
        return
    if (rule.tolerance is None) == (rule.absolute is None):
        yield (
            "metric",
            f"the rule for {rule.metric} needs either a tolerance or an absolute one",
            "Write tolerance: 5%, or absolute: 20 in the metric's unit.",
        )
    if rule.tolerance is not None and _SHARE.fullmatch(rule.tolerance) is None:
        yield "tolerance", f"the tolerance is {rule.tolerance!r}", "Write it as 5%."
    if rule.absolute is not None and not 0 <= rule.absolute < math.inf:
        yield "absolute", f"the tolerance is {rule.absolute:g}", "It must be at least 0."


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text)
    assert found is not None, "a rule was checked"
    return float(found[1]) / 100


def _parse(path: Path) -> yaml.Node:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise RecipeError(
            f"The rules {path} cannot be read ({error.strerror})", "Check the path."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {error.problem}", "Mend the syntax.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise RecipeError(f"{path} is not YAML", "Mend the syntax.") from None
    if root is None:
        raise RecipeError(f"{path} is empty", "Give a list of rules.")
    return root
