import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import SUPPORTED_BITS, QuantSpec
from llmopt.quantize.scheme import UNIFORM_METHODS, Scheme, parse_scheme, parse_schemes

specs = st.builds(
    QuantSpec,
    st.sampled_from(SUPPORTED_BITS),
    st.one_of(st.none(), st.sampled_from([16, 32, 64, 128])),
    st.booleans(),
)
schemes = st.one_of(
    st.builds(Scheme, st.sampled_from(UNIFORM_METHODS), specs),
    st.builds(Scheme, st.sampled_from(["nf4", "fp4"]), double_quant=st.booleans()),
    st.builds(Scheme, st.sampled_from(["int8", "w8a16", "w8a8", "fp8"])),
    st.builds(Scheme, st.just("gguf"), mix=st.sampled_from(["q4_k_m", "q8_0"])),
)


@given(schemes)
def test_a_label_says_everything(scheme: Scheme) -> None:
    assert parse_scheme(scheme.label) == scheme


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" GPTQ-W4G64 ", "gptq-w4g64"),
        ("awq+gptq-w4g128-asym", "awq+gptq-w4g128-asym"),
        ("rtn-w8", "rtn-w8"),
        ("nf4-dq", "nf4-dq"),
        ("gguf-Q4_K_M", "gguf-q4_k_m"),
    ],
)
def test_what_people_write(text: str, label: str) -> None:
    assert parse_scheme(text).label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gptq-w4g64-sym", "Did you mean gptq-w4g64"),
        ("gtpq-w4g64", "Did you mean gptq-w4g64"),
        ("awq", "Did you mean awq-w4g64-asym"),
        ("gptq", "Did you mean gptq-w4g64"),
        ("gguf-", "is no quantization scheme"),
        ("nf4-w4g64", "is no quantization scheme"),
        ("q", "Schemes look like"),
        ("gptq-w5g64", "5-bit weights are not supported"),
        ("gptq-w4g0", "group size of 0"),
    ],
)
def test_others_are_refused(text: str, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        parse_scheme(text)


def test_lists() -> None:
    found = parse_schemes("gptq-w4g64, nf4,")
    assert [scheme.label for scheme in found] == ["gptq-w4g64", "nf4"]
    with pytest.raises(QuantizationError, match="no scheme"):
        parse_schemes(" ,")
    with pytest.raises(QuantizationError, match="nf4 was asked for twice"):
        parse_schemes("nf4,fp4,NF4")


def test_which_methods_look_at_data() -> None:
    blind = ("rtn-w4g64", "nf4", "fp4", "int8", "w8a16", "fp8")
    looking = ("gptq-w4g64", "awq-w4g64", "awq+gptq-w4g64", "w8a8", "gguf-q4_k_m")
    assert not any(parse_scheme(name).needs_calibration for name in blind)
    assert all(parse_scheme(name).needs_calibration for name in looking)
