import pytest

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.layout import check_shapes, fitting_group_sizes

SMOLLM = {"q_proj": (576, 576), "k_proj": (192, 576), "down_proj": (576, 1536)}


@pytest.mark.parametrize("group_size", [32, 64, 96, 192, None])
def test_group_sizes_that_fit_are_accepted(group_size: int | None) -> None:
    check_shapes(SMOLLM, QuantSpec(4, group_size))


def test_impossible_group_size_names_a_layer_and_the_sizes_that_fit() -> None:
    with pytest.raises(QuantizationError) as caught:
        check_shapes(SMOLLM, QuantSpec(4, 128))
    message = str(caught.value)
    assert "group size 128 does not divide the 576 inputs of q_proj" in message
    assert "2 of 3 layers" in message
    assert "row lengths are 576 and 1536" in message
    assert "32, 64, 96, 192 or one group per output channel" in message


def test_fitting_sizes_divide_every_row_length() -> None:
    assert fitting_group_sizes([576, 1536]) == [32, 64, 96, 192]
    assert fitting_group_sizes([4096, 11008]) == [32, 64, 128, 256]


@pytest.mark.parametrize("shape", [(576, 100), (100, 576)])
def test_sizes_that_do_not_fill_words_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(QuantizationError, match="multiples of 32"):
        check_shapes({"odd": shape}, QuantSpec(4, None))
