"""`LLM(model).generate(prompts, params)`: text or token ids in, text and token ids out.

Knows nothing about scheduling or tensors.
Law: outputs come in the order of the prompts, and nothing stays queued after `generate`, however it
ends.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete all prompts together; `params` for all of them, or one for each.

        Raises:
            UsageError: no prompt matches its parameters, or a prompt is empty or not of this model.
            EngineError: a prompt is too long for the model or the cache.
        """
        if isinstance(prompts, str):
            raise UsageError(f"prompts is the text {prompts!r}", "Give a list of prompts.")
        if isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise UsageError(
                f"there are {len(prompts)} prompts and {len(params)} sampling parameters",
                "Give one SamplingParams for all prompts, or one for each.",
            )
        encoded = [self._encode(prompt) for prompt in prompts]
        request_ids = [str(index) for index in range(len(prompts))]
        try:
            for request_id, token_ids, one in zip(request_ids, encoded, params, strict=True):
                self.engine.add_request(request_id, token_ids, one)
            steps = self._run(request_ids, progress)
        finally:
            for request_id in request_ids:
                self.engine.abort(request_id)
        return [
            self._collect(request_id, token_ids, steps[request_id])
            for request_id, token_ids in zip(request_ids, encoded, strict=True)
        ]

    def _encode(self, prompt: str | Sequence[int]) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _run(self, request_ids: Sequence[str], progress: bool) -> dict[str, list[StepOutput]]:
        """Step until all is done; the outputs of each request in order."""
        steps: dict[str, list[StepOutput]] = {request_id: [] for request_id in request_ids}
        with _progress_bar() if progress else nullcontext() as bar:
            task = bar.add_task("requests", total=len(steps)) if bar is not None else None
            while self.engine.has_unfinished():
                for out in self.engine.step():
                    steps[out.request_id].append(out)
                    if bar is not None and task is not None and out.finish_reason is not None:
                        bar.advance(task)
        return steps

    def _collect(
        self, request_id: str, prompt_token_ids: Sequence[int], steps: Sequence[StepOutput]
    ) -> RequestOutput:
        token_ids = tuple(token_id for out in steps for token_id in out.token_ids)
        return RequestOutput(
            request_id=request_id,
            prompt_token_ids=tuple(prompt_token_ids),
            token_ids=token_ids,
            finish_reason=steps[-1].finish_reason,
            num_preemptions=steps[-1].num_preemptions,
            text=self.tokenizer.decode(list(token_ids)),
        )


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
    )
