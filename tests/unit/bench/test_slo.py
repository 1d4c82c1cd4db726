import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.slo import METRICS, format_slo, parse_slo, slo_problems
from llmopt.errors import UsageError
from llmopt.recipe.loads import Load
from llmopt.recipe.schema import Base, Recipe
from llmopt.results.schema import SloTerm


def test_bounds_are_read():
    assert parse_slo("ttft_p95<500ms, tpot_p99.9 <= 0.05 s,e2e<2s") == (
        SloTerm("ttft", 500, 95),
        SloTerm("tpot", 50, 99.9),
        SloTerm("e2e", 2000, None),
    )


terms = st.builds(
    SloTerm,
    st.sampled_from(METRICS),
    st.integers(1, 10**6).map(lambda tenths: tenths / 10),
    st.none() | st.integers(1, 99).map(float),
)


@given(st.lists(terms, min_size=1, max_size=4, unique_by=lambda term: (term.metric, term.percent)))
def test_text_and_bounds_are_the_same(found):
    assert parse_slo(format_slo(found)) == tuple(found)


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "ttft", "ttft<5", "ttft>5ms", "ttfb_p95<5ms", "ttft_p0<5ms", "ttft_p100<5ms"),
        *("ttft<0ms", "ttft<-1ms", "ttft_p95<5ms,ttft_p95<6ms", "ttft_p95<5ms,", "mfu<5ms"),
    ],
)
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(UsageError):
        parse_slo(text)


def test_a_recipe_is_told_where_its_slo_is_wrong():
    good, bad = (Load(1, 4, 8, 8, slo=slo) for slo in ("ttft<1s", "ttft<1"))
    recipe = Recipe("r", Base("m"), (), (good, bad, Load(1, 4, 8, 8)))
    (problem,) = slo_problems(recipe)
    assert problem.path == ("loads", 1, "slo")
