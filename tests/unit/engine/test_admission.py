import pytest

from llmopt.engine.admission import fit_request
from llmopt.engine.block_space import BlockSpace
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import EngineError


def make_request(num_prompt_tokens: int, max_tokens: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request("r", [5] * num_prompt_tokens, num_prompt_tokens, params, max_tokens, seed=0)


def fit(
    request: Request,
    *,
    max_model_len: int = 100,
    num_blocks: int = 25,
    window: int | None = None,
) -> int:
    groups = [LayerGroup((0,), window)]
    blocks = BlockSpace(groups, [num_blocks], block_size=4, max_chunk=8)
    fit_request(request, max_model_len=max_model_len, blocks=blocks)
    return request.max_tokens


def test_max_tokens_are_clipped_to_the_length_of_the_model() -> None:
    assert fit(make_request(90, 50)) == 10
    assert fit(make_request(99, 50)) == 1
    assert fit(make_request(10, 50)) == 50


def test_a_prompt_without_room_for_a_token_is_refused_with_the_length_that_fits() -> None:
    with pytest.raises(
        EngineError, match=r"100 tokens and max_model_len is 100.*at most 99 tokens"
    ):
        fit(make_request(100, 1))


def test_the_last_token_needs_no_slot() -> None:
    assert fit(make_request(8, 5), num_blocks=3) == 5  # 12 slots


def test_a_request_beyond_the_pool_is_refused_with_what_would_fit() -> None:
    with pytest.raises(EngineError) as caught:
        fit(make_request(8, 6), num_blocks=3)
    assert "need 4 cache blocks of 4 tokens, and there are 3" in caught.value.message
    assert "max_tokens of at most 5" in caught.value.remedy
    assert "num_blocks to 4" in caught.value.remedy
    fit(make_request(8, 5), num_blocks=3)
    fit(make_request(8, 6), num_blocks=4)


def test_a_prompt_beyond_the_pool_is_refused_with_the_length_that_fits() -> None:
    with pytest.raises(EngineError, match="Shorten the prompt to at most 12 tokens") as caught:
        fit(make_request(13, 1), num_blocks=3)
    assert "num_blocks to 4" in caught.value.remedy
    assert fit(make_request(12, 1), num_blocks=3) == 1


def test_a_window_needs_no_more_blocks_than_it_and_a_chunk_span() -> None:
    """A window of 5 and a chunk of 8 span at most 12 positions before its end: 4 blocks."""
    assert fit(make_request(60, 30), num_blocks=4, window=5) == 30
    with pytest.raises(EngineError, match="need 4 cache blocks") as caught:
        fit(make_request(60, 30), num_blocks=3, window=5)
    assert "smaller max_num_batched_tokens" in caught.value.remedy
    assert fit(make_request(8, 5), num_blocks=3, window=5) == 5
