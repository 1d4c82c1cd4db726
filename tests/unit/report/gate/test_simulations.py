"""How often the gate is right, over whole simulated gates: two cells, seven rules, real noise.

Runs scatter by 3 %, one in twenty is slowed down by 15 %, the machine drifts by 5 % over a session.
"""

import pytest

from llmopt.report.gate.rules import DEFAULT_RULES, Rule, Rules
from llmopt.report.gate.verdict import judge

NUM_SESSIONS = 200
STRICT = Rules(tuple(Rule(rule.metric, "0%") for rule in DEFAULT_RULES.rules))


def count(session, word, rules=DEFAULT_RULES, sessions=NUM_SESSIONS, **settings) -> int:
    verdicts = [judge(*session(seed, **settings), rules).verdict for seed in range(sessions)]
    return verdicts.count(word)


def test_of_200_sessions_without_a_change_at_most_10_regress(session):
    assert count(session, "REGRESSED") <= 10


def test_of_200_sessions_without_a_change_at_most_10_regress_even_without_tolerance(session):
    # Here nothing but the correction for many comparisons stands against a false alarm.
    assert count(session, "REGRESSED", STRICT) <= 10


@pytest.mark.parametrize("slow_share", [0.0, 0.05])
def test_of_200_slowdowns_by_10_percent_at_least_190_are_caught(session, machine, slow_share):
    noisy = machine(slow_share=slow_share)
    assert count(session, "REGRESSED", slowdown=1.1, machine=noisy) >= 190


def test_of_200_quality_losses_by_30_percent_at_least_190_are_caught(session):
    assert count(session, "REGRESSED", kld_factor=1.3) >= 190


def test_of_200_sessions_one_after_the_other_at_most_10_regress(session):
    assert count(session, "REGRESSED", interleaved=False, pairs=5) <= 10


def test_40_of_40_sessions_on_a_calm_machine_pass(session, machine):
    calm = machine(run=0.01, request=0.01, slow_share=0.0)
    assert count(session, "PASS", machine=calm, sessions=40) == 40
