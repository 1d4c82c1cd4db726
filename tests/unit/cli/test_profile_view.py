import io
from types import SimpleNamespace

from llmopt.cli.profile_view import print_profiles
from llmopt.results.attribution import ProfiledPart, StepProfile

LONG = "dequantized compressed-tensors w4a16 + dense + int4pack x 2"
PARTS = (
    ProfiledPart("gate_up", 0.006, 30, LONG, 6e7, 12e9, 0.004),
    ProfiledPart("attention", 0.003, 30, None, 3e6, 9e6, 0.004),
    ProfiledPart("rope tables", 0.0, 1, None, 100.0, None, 1e-8),
    ProfiledPart("other operators, Python", 0.001),
)
PROFILE = StepProfile("decode", 8, 8, 160, 20, 0.0098, 0.01, PARTS)


def text_of(*profiles: StepProfile) -> str:
    out = io.StringIO()
    cell = SimpleNamespace(cell_id="demo-gptq-w4g64-c8", profile=profiles)
    print_profiles([cell, SimpleNamespace(cell_id="demo-fp32-c8", profile=())], out)
    return out.getvalue()


def test_a_table_has_each_part_against_its_ideal():
    text = text_of(PROFILE)
    lines = text.splitlines()
    assert lines[0].startswith("demo-gptq-w4g64-c8: decode step of 8 tokens, 9.80 ms, 160 tokens")
    assert max(map(len, lines)) <= 100
    (gate_up,) = (line for line in lines if line.startswith("gate_up"))
    assert gate_up.split()[-7:] == ["30", "6.000", "60.0", "4.000", "1.50", "10.0", "2000"]
    (attention,) = (line for line in lines if line.startswith("attention"))
    assert attention.split() == [
        "attention",
        "30",
        "3.000",
        "30.0",
        "4.000",
        "0.75",
        "1.00",
        "3.00",
    ]
    (rope,) = (line for line in lines if line.startswith("rope tables"))
    assert rope.split()[2:] == ["1", "0.000", "0.0", "0.000", "–", "–", "–"]
    (rest,) = (line for line in lines if line.startswith("other operators"))
    assert rest.split()[-7:] == ["–", "1.000", "10.0", "–", "–", "–", "–"]
    assert "20 steps each; without timers 9.800 ms, with them 10.000 ms (+2.0 %)" in text
    assert "compressed-tensors" in text.replace("\n", "")
    assert "ratio: the part / its ideal" in text


def test_cells_without_a_profile_print_nothing():
    assert text_of() == ""
