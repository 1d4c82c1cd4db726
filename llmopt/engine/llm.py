"""`LLM(model).generate(prompts, params)`: text or token ids in, text and token ids out.

Knows nothing about scheduling or tensors.
Law: outputs come in the order of the prompts, and nothing stays queued when `generate` or `stream`
ends, however it ends.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import RequestOutput, SamplingParams, StepOutput
from llmopt.errors import UsageError
from llmopt.models.loader import load_model
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import load_tokenizer


class LLM:
    """A model with its tokenizer and engine.

    Args:
        model: an alias, a local directory or a hub id.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "cuda:1".
        block_size, num_blocks, kv_memory_bytes, max_num_batched_tokens, max_num_seqs,
            max_model_len: see `EngineConfig`.

    Raises:
        ModelError, CheckpointError: the model cannot be found or loaded.
        UsageError, EngineError: as `EngineConfig` and `Engine`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_memory_bytes: int | None = None,
        max_num_batched_tokens: int = 512,
        max_num_seqs: int = 64,
        max_model_len: int | None = None,
    ) -> None:
        config = EngineConfig(
            block_size=block_size,
            num_blocks=num_blocks,
            kv_memory_bytes=kv_memory_bytes,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
        )
        path = resolve_model(str(model))
        self.tokenizer = load_tokenizer(path)
        loaded = load_model(path, dtype=dtype, device=device)
        self.engine = Engine(loaded, config, eos_token_ids=self.tokenizer.eos_token_ids)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> list[RequestOutput]:
        """Complete all prompts together; `params` for all of them, or one for each.

        Raises:
            UsageError: no prompt matches its parameters, or a prompt is empty or not of this model.
            EngineError: a prompt is too long for the model or the cache.
        """
        encoded = self.encode(prompts)
        steps: list[list[StepOutput]] = [[] for _ in encoded]
        for index, step in self.stream(encoded, params):
            steps[index].append(step)
        return [
            self.collect(index, token_ids, steps[index]) for index, token_ids in enumerate(encoded)
        ]

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> Iterator[tuple[int, StepOutput]]:
        """As `generate`, but yields (index of the prompt, what a step added to it) as it comes."""
        encoded = self.encode(prompts)
        each = [params] * len(encoded) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(encoded):
            raise UsageError(
                f"there are {len(encoded)} prompts and {len(each)} sampling parameters",
                "Give one SamplingParams for all prompts, or one for each.",
            )
        try:
            for index, (token_ids, one) in enumerate(zip(encoded, each, strict=True)):
                self.engine.add_request(str(index), token_ids, one)
            while self.engine.has_unfinished():
                for step in self.engine.step():
                    yield int(step.request_id), step
        finally:
            for index in range(len(encoded)):
                self.engine.abort(str(index))

    def encode(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """Token ids of each prompt. Raises UsageError for a text in place of a list."""
        if isinstance(prompts, str):
            raise UsageError(f"prompts is the text {prompts!r}", "Give a list of prompts.")
        return [
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in prompts
        ]

    def collect(
        self, index: int, prompt_token_ids: Sequence[int], steps: Sequence[StepOutput]
    ) -> RequestOutput:
        """The steps of one prompt, so far or to its end, as its output."""
        token_ids = tuple(token_id for step in steps for token_id in step.token_ids)
        return RequestOutput(
            request_id=str(index),
            prompt_token_ids=tuple(prompt_token_ids),
            token_ids=token_ids,
            finish_reason=steps[-1].finish_reason if steps else None,
            num_preemptions=steps[-1].num_preemptions if steps else 0,
            text=self.tokenizer.decode(list(token_ids)),
        )
