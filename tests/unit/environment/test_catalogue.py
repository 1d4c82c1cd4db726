"""The table of environments."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from llmopt.environment.catalogue import ENVIRONMENTS, find_environment
from llmopt.errors import UsageError


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: e.name)
def test_every_requirement_is_pinned(environment):
    for requirement in environment.pinned:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*", requirement)
    assert any(r.startswith(f"{environment.package}==") for r in environment.pinned)
    assert environment.disk_gb > 0
    assert environment.minutes > 0


def test_names_and_override_variables_are_unique():
    assert len({e.name for e in ENVIRONMENTS}) == len(ENVIRONMENTS)
    assert len({e.override_variable for e in ENVIRONMENTS}) == len(ENVIRONMENTS)
    assert find_environment("llama.cpp").override_variable == "LLMOPT_ENVIRONMENT_LLAMA_CPP"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="vllm2") as error:
        find_environment("vllm2")
    assert "gptqmodel, " in error.value.remedy


def test_what_is_changed_after_installing_is_in_the_fingerprint():
    plain = find_environment("vllm-cpu")
    assert replace(plain, removed=()).fingerprint != plain.fingerprint
    assert replace(plain, stand_ins=()).fingerprint != plain.fingerprint
    other = find_environment("gptqmodel")
    assert other.fingerprint == hashlib.sha256(json.dumps(other.pinned).encode()).hexdigest()
