"""The options of `llmopt bench` that name backends."""

import pytest

from llmopt.cli.bench_backends import backends_of_options
from llmopt.errors import UsageError
from llmopt.recipe.backends import BackendSpec


def test_names_alone():
    assert backends_of_options("llmopt, vllm") == (BackendSpec("llmopt"), BackendSpec("vllm"))


def test_the_rest_is_about_the_one_that_is_not_ours():
    own, other = backends_of_options(
        "llmopt,vllm", "http://h:1", server_model="m", api_key_env="KEY"
    )
    assert own == BackendSpec("llmopt")
    assert other == BackendSpec("vllm", url="http://h:1", model="m", api_key_env="KEY")
    (started,) = backends_of_options("vllm", server_args="--enforce-eager --seed '1 2'")
    assert started.server_args == ("--enforce-eager", "--seed", "1 2")


@pytest.mark.parametrize("names", ["llmopt", "vllm,sglang"])
def test_a_url_needs_one_backend(names):
    with pytest.raises(UsageError, match="backends of others"):
        backends_of_options(names, "http://h:1")


def test_quotes_must_match():
    with pytest.raises(UsageError, match="No closing quotation"):
        backends_of_options("vllm", server_args="'")
