"""Calibration text that the model itself writes, so that no data is needed.

Drives the engine; knows nothing of quantization. Law: the same model, sizes and seed give the same
tokens. The idea: text sampled from the model covers what it knows (arXiv 2305.17888, 2410.17170).
"""

from collections.abc import Callable

from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import UsageError


def sample_from_model(
    llm: LLM,
    *,
    num_tokens: int,
    sample_tokens: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, ...]]:
    """Sample texts of up to `sample_tokens` tokens at temperature 1 until there are `num_tokens`.

    Each text starts from the BOS token (from the end-of-text token, where there is no BOS), which
    is not part of it, has a random stream of its own, and ends where the model ends it.
    `on_progress` is told (tokens so far, num_tokens). Raises `UsageError` for a model that has
    neither token, and as `LLM.stream`.
    """
    start = _start_token(llm)
    texts: list[tuple[int, ...]] = []
    done = 0
    while done < num_tokens:
        count = -(-(num_tokens - done) // sample_tokens)
        params = [
            SamplingParams(
                max_tokens=sample_tokens,
                min_tokens=1,  # a text that ends before it begins would never fill the samples
                temperature=1.0,
                seed=_stream(seed, len(texts) + i),
            )
            for i in range(count)
        ]
        batch: list[list[int]] = [[] for _ in range(count)]
        for index, step in llm.stream([[start]] * count, params):
            batch[index] += step.token_ids
            done += len(step.token_ids)
            if on_progress is not None:
                on_progress(min(done, num_tokens), num_tokens)
        texts += [tuple(text) for text in batch]
    return texts


def _stream(seed: int, index: int) -> int:
    """A seed for each text, different ones for different runs."""
    return ((seed << 32) + index) % 2**64


def _start_token(llm: LLM) -> int:
    if llm.tokenizer.bos_token_id is not None:
        return llm.tokenizer.bos_token_id
    if llm.tokenizer.eos_token_ids:
        return llm.tokenizer.eos_token_ids[0]
    raise UsageError(
        "the model has neither a BOS nor an end-of-text token to start a text from",
        "Give a calibration text.",
    )
