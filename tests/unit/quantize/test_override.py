import pytest

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.override import Override, parse_override, resolve_specs

SPEC = QuantSpec(4, 64)
FAMILIES = [("0.q", "0.k", "0.v"), ("0.o",), ("1.q", "1.k", "1.v"), ("1.o",)]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("*.o=skip", Override("*.o", skip=True)),
        ("*.o=fp", Override("*.o", skip=True)),
        ("*.o=bits:8,group:32", Override("*.o", bits=8, group_size=32)),
        ("*.o=group:row, asym", Override("*.o", group_size=0, symmetric=False)),
        ("a=b=bits:2,sym", None),
    ],
)
def test_syntax(text: str, override: Override | None) -> None:
    if override is None:
        with pytest.raises(QuantizationError, match=r"means nothing.*Write PATTERN="):
            parse_override(text)
    else:
        assert parse_override(text) == override


@pytest.mark.parametrize("text", ["", "x", "=skip", "x=", "x=bits:four", "x=group:0", "x=bits"])
def test_what_is_no_override_is_said(text: str) -> None:
    with pytest.raises(QuantizationError, match="Write PATTERN="):
        parse_override(text)


def resolve(*texts: str, spec: QuantSpec | None = SPEC) -> dict[str, QuantSpec | None]:
    return resolve_specs(FAMILIES, spec, [parse_override(text) for text in texts])


def test_without_overrides_everything_has_the_default() -> None:
    assert set(resolve().values()) == {SPEC}
    assert len(resolve()) == 8


def test_the_last_match_wins() -> None:
    found = resolve("*=bits:8", "1.*=bits:3", "1.o=group:32")
    assert found["0.q"] == QuantSpec(8, 64)
    assert found["1.k"] == QuantSpec(3, 64)
    assert found["1.o"] == QuantSpec(4, 32)  # of the scheme, not of the override before


def test_skipped_modules_are_absent() -> None:
    assert sorted(resolve("0.[qkv]=skip")) == ["0.o", "1.k", "1.o", "1.q", "1.v"]
    assert resolve("0.*=skip", "1.*=fp", spec=None) == {}


@pytest.mark.parametrize("text", ["0.q=bits:8", "0.v=skip", "?.[qk]=asym"])
def test_fused_layers_share_their_settings(text: str) -> None:
    with pytest.raises(QuantizationError, match=r"q, .\.k, .\.v are one layer for readers"):
        resolve(text)


def test_patterns_that_match_nothing_are_said() -> None:
    with pytest.raises(QuantizationError, match=r"override 'o' matches no module"):
        resolve("o=skip", "0.o=skip")


def test_schemes_without_a_spec_can_only_skip() -> None:
    with pytest.raises(QuantizationError, match="no bits or groups to choose"):
        resolve("0.o=bits:8", spec=None)


def test_bits_that_do_not_exist_are_refused() -> None:
    with pytest.raises(QuantizationError, match="7-bit weights"):
        resolve("0.o=bits:7")
