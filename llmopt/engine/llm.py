"""`LLM(model).generate(prompts, params)`: text or token ids in, text and token ids out.

Knows nothing about scheduling or tensors.
Law: outputs come in the order of the prompts, and nothing stays queued when `generate` or `stream`
ends, however it ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmopt.engine.chat import Message, encode_conversation
from llmopt.engine.config import EngineConfig, KVDtypeName
from llmopt.engine.detokenizer import TokenText
from llmopt.engine.engine import Engine
from llmopt.engine.outputs import Completion, RequestOutput, TextDelta
from llmopt.engine.policies import PolicyName
from llmopt.engine.preflight import Preflight, check_fit
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.engine.speculation.vocabulary import check_draft_tokenizer
from llmopt.engine.text_stream import TextStream
from llmopt.errors import UsageError
from llmopt.layers.native_linear import WeightActivations
from llmopt.models.dummy import make_dummy_model
from llmopt.models.loader import load_model
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import load_tokenizer

Prompt = str | Sequence[int]


class LLM:
    """A model with its tokenizer and engine.

    Args:
        model: an alias, a local directory or a hub id.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "cuda:1".
        activations: what bfloat16 activations are rounded to before quantized weights on a CPU:
            "int8" or "int16" (the compiled kernels, where there are any), "bf16" (not at all), or
            "auto": int8 before weights of fewer than 8 bits, else int16.
        dummy_weights: a config (a config.json, or a model's) to be served with random weights in
            place of the model, whose tokenizer alone is used; see `make_dummy_model`.
        speculation: who guesses tokens ahead, as `SpeculationConfig.proposer`, or all about it;
            None: nobody.
        block_size, num_blocks, kv_memory_bytes, kv_dtype, max_num_batched_tokens, max_num_seqs,
            max_model_len, policy, prefix_caching, attention_window, sink_tokens: see
            `EngineConfig`.

    Raises:
        ModelError, CheckpointError: the model cannot be found or loaded.
        UsageError, EngineError: as `load_model`, `EngineConfig` and `Engine`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        activations: WeightActivations = "auto",
        dummy_weights: str | None = None,
        speculation: str | SpeculationConfig | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_memory_bytes: int | None = None,
        kv_dtype: KVDtypeName = "auto",
        max_num_batched_tokens: int = 512,
        max_num_seqs: int = 64,
        max_model_len: int | None = None,
        policy: PolicyName = "fcfs",
        prefix_caching: bool = True,
        attention_window: int | None = None,
        sink_tokens: int = 0,
    ) -> None:
        if isinstance(speculation, str):
            speculation = SpeculationConfig(proposer=speculation)
        config = EngineConfig(
            block_size=block_size,
            num_blocks=num_blocks,
            kv_memory_bytes=kv_memory_bytes,
            kv_dtype=kv_dtype,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            policy=policy,
            prefix_caching=prefix_caching,
            attention_window=attention_window,
            sink_tokens=sink_tokens,
            speculation=speculation,
        )
        self._config = config
        path = resolve_model(str(model))
        self.tokenizer = load_tokenizer(path)
        self.token_text = TokenText(self.tokenizer)
        if speculation is not None:
            check_draft_tokenizer(self.tokenizer, speculation)
        if dummy_weights is None:
            loaded = load_model(path, dtype=dtype, device=device, activations=activations)
        else:
            loaded = make_dummy_model(
                dummy_weights, dtype=dtype, device=device, activations=activations
            )
        self._weight_bytes = loaded.weight_bytes
        self.engine = Engine(
            loaded, config, eos_token_ids=self.tokenizer.eos_token_ids, tokenizer=self.tokenizer
        )

    def preflight(self, request_tokens: int, num_requests: int) -> Preflight:
        """What fits of so many requests of a length, prompt and output, in the cache as it is."""
        engine = self.engine
        return check_fit(
            engine.model.config,
            replace(self._config, kv_memory_bytes=engine.plan.kv_bytes),
            weight_bytes=self._weight_bytes,
            dtype=engine.model.dtype,
            device=engine.model.device,
            request_tokens=request_tokens,
            num_requests=num_requests,
        )

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Complete all prompts together; `params` for all of them, or one for each.

        Raises:
            UsageError: no prompt matches its parameters, or a prompt is empty or not of this model.
            EngineError: a prompt is too long for the model or the cache.
        """
        run = self.begin(prompts, params)
        for _ in run:
            pass
        return run.outputs()

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> list[RequestOutput]:
        """Answer conversations of messages; as `generate`, with the model's chat template.

        Raises:
            ModelError: the model has no chat template.
            UsageError: also, a conversation is malformed or the template refuses it.
        """
        return self.generate(
            [encode_conversation(self.tokenizer, one) for one in conversations], params
        )

    def stream(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> Iterator[tuple[int, TextDelta]]:
        """As `generate`, but yields (index of the prompt, what a step added to it) as it comes."""
        yield from self.begin(prompts, params)

    def begin(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> "Run":
        """As `stream`, and what there is so far can be asked for. Raises as `generate`."""
        encoded = self.encode(prompts)
        each = [params] * len(encoded) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(encoded):
            raise UsageError(
                f"there are {len(encoded)} prompts and {len(each)} sampling parameters",
                "Give one SamplingParams for all prompts, or one for each.",
            )
        answers = [
            _Answer(str(index), token_ids, one, self.token_text)
            for index, (token_ids, one) in enumerate(zip(encoded, each, strict=True))
        ]
        return Run(self.engine, answers)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt. Raises UsageError for a text in place of a list."""
        if isinstance(prompts, str):
            raise UsageError(f"prompts is the text {prompts!r}", "Give a list of prompts.")
        return [
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in prompts
        ]


class Run:
    """Prompts on their way through the engine; iterating computes."""

    def __init__(self, engine: Engine, answers: Sequence["_Answer"]) -> None:
        self._engine = engine
        self._answers = answers

    def __iter__(self) -> Iterator[tuple[int, TextDelta]]:
        """(Index of the prompt, what a step added to one of its outputs), to the end of all.

        An output that a stop string ends computes nothing more.
        """
        owners: dict[str, tuple[int, int]] = {}  # request id -> indices of prompt and sample
        try:
            for index, answer in enumerate(self._answers):
                ids = self._engine.add_request(
                    answer.request_id, answer.prompt_token_ids, answer.params
                )
                owners |= {name: (index, sample) for sample, name in enumerate(ids)}
            while self._engine.has_unfinished():
                # All is recorded before a consumer, who may leave, sees any of it.
                yield from [self._take(owners, step) for step in self._engine.step()]
        finally:
            for name in owners:
                self._engine.abort(name)

    def outputs(self) -> list[RequestOutput]:
        """All prompts with what was generated for them, so far or to the end."""
        return [answer.output() for answer in self._answers]

    def _take(self, owners: dict[str, tuple[int, int]], step: StepOutput) -> tuple[int, TextDelta]:
        index, sample = owners[step.request_id]
        delta = self._answers[index].take(sample, step)
        if delta.finish_reason is not None:
            self._engine.abort(step.request_id)
        return index, delta


class _Answer:
    """One prompt with its outputs in the making."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        token_text: TokenText,
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self._samples = [TextStream(token_text.start(), params) for _ in range(params.num_samples)]
        self._last: dict[int, StepOutput] = {}
        self._first: StepOutput | None = None  # of the first sample

    def take(self, sample: int, step: StepOutput) -> TextDelta:
        if sample == 0 and self._first is None:
            self._first = step
        self._last[sample] = step
        return self._samples[sample].take(step, sample)

    def output(self) -> RequestOutput:
        completions = [stream.completion(i) for i, stream in enumerate(self._samples)]
        if self.params.num_samples > self.params.n:
            completions.sort(key=_merit, reverse=True)
        if self.params.logprobs is None:
            completions = [replace(one, logprobs=None) for one in completions]
        first = self._first
        return RequestOutput(
            request_id=self.request_id,
            prompt_token_ids=tuple(self.prompt_token_ids),
            completions=tuple(completions[: self.params.n]),
            num_preemptions=sum(step.num_preemptions for step in self._last.values()),
            num_prefix_hit_tokens=0 if first is None else first.num_prefix_hit_tokens,
            prompt_logprobs=(
                None
                if first is None or self.params.prompt_logprobs is None
                else first.prompt_logprobs
            ),
        )


def _merit(completion: Completion) -> tuple[bool, float]:
    """Outputs that ended in an error come last, the others by their mean log-probability."""
    mean = completion.mean_logprob
    assert mean is not None, "log-probabilities are computed where outputs are compared"
    return completion.finish_reason != "error", mean
