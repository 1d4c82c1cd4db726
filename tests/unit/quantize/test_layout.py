from collections.abc import Callable
from pathlib import Path

import pytest

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.models.config import ModelConfig
from llmopt.quantize.layout import check_shapes, check_source, fitting_group_sizes, tensor_shapes

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


def test_a_source_is_quantized_where_its_config_says_so(tiny_llama: Path) -> None:
    reader = CheckpointReader(tiny_llama)
    config = dict(reader.config)
    reader.config = config | {"quantization_config": None}
    check_source(reader)
    reader.config = config | {"quantization_config": {}}
    with pytest.raises(QuantizationError, match="quantized already"):
        check_source(reader)
    reader.config = config | {"quantization_config": []}
    with pytest.raises(CheckpointError, match="no JSON object"):
        check_source(reader)


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe"]
)
def test_a_config_tells_the_shapes_of_all_tensors(
    make_tiny_model: Callable[..., Path], model_type: str
) -> None:
    reader = CheckpointReader(make_tiny_model(model_type))
    shapes = tensor_shapes(ModelConfig.from_hf(reader.config))
    stored = {name: reader.shape(name) for name in reader.names()}
    assert shapes == {name: shape for name, shape in stored.items() if not name.endswith("bias")}
