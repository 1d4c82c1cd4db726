"""llmopt's runtime as a model of lm-evaluation-harness.

Imports lm_eval, so that only `harness` may import it. Knows nothing about tasks. The law it keeps:
the same tokens, truncation and stops as the harness' own model for transformers (HFLM).
"""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from llmopt.engine.engine import Engine
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import UsageError
from llmopt.quality.tasks.encode import encode_pair, encode_text, prefix_token_id, rolling_pairs
from llmopt.quality.tasks.loglikelihood import score_pairs
from llmopt.quality.tasks.score import TaskModel

DEFAULT_MAX_TOKENS = 256  # of an answer whose task sets no limit
_LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

OnRequest = Callable[[int, int], None]  # (requests done, requests in all) of one kind


class LlmoptLM(LM):  # type: ignore[misc]  # lm_eval is optional and has no types
    """Answers the three kinds of requests that tasks of the harness are made of."""

    def __init__(self, task_model: TaskModel, on_request: OnRequest | None = None) -> None:
        super().__init__()
        self.model = task_model.model
        self.task_tokenizer = task_model.tokenizer
        self.on_request = on_request

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(context, continuation) each -> (log-probability in nats, is what greedy decoding gives).

        Raises UsageError for a continuation that the model cannot read whole.
        """
        pairs = [encode_pair(self.task_tokenizer, *request.args) for request in requests]
        results = score_pairs(self.model, pairs, on_pair=self.on_request)
        return [(result.log_prob, result.is_greedy) for result in results]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """(text,) each -> log-probability of all its tokens, in nats."""
        prefix = prefix_token_id(self.task_tokenizer)
        limit = self.model.config.max_model_len
        windows = [
            rolling_pairs(encode_text(self.task_tokenizer, request.args[0]), prefix, limit)
            for request in requests
        ]
        pairs = [pair for pairs in windows for pair in pairs]
        results = iter(score_pairs(self.model, pairs, on_pair=self.on_request))
        return [sum(next(results).log_prob for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """(context, generation arguments) each -> text up to the first stop string."""
        engine = Engine(self.model, eos_token_ids=self.task_tokenizer.eos_token_ids)
        stops: list[list[str]] = []
        for index, request in enumerate(requests):
            context, arguments = request.args
            stops.append(_stop_strings(arguments.get("until")))
            params = _sampling_params(arguments, seed=index)
            room = engine.max_model_len - params.max_tokens
            if room < 1:
                raise UsageError(
                    f"a task generates up to {params.max_tokens} tokens, and the model reads at"
                    f" most {engine.max_model_len}",
                    "Leave this task out, or use a model that reads more.",
                )
            prompt = encode_text(self.task_tokenizer, context)[-room:]
            engine.add_request(str(index), prompt, params)
        return self._generate(engine, stops)

    def _generate(self, engine: Engine, stops: Sequence[Sequence[str]]) -> list[str]:
        """Run all requests to their ends; a request ends early at a stop string."""
        token_ids: list[list[int]] = [[] for _ in stops]
        texts = [""] * len(stops)
        num_done = 0
        while engine.has_unfinished():
            for step in engine.step():
                index = int(step.request_id)
                token_ids[index] += step.token_ids
                text = self.task_tokenizer.decode(token_ids[index])
                texts[index] = _cut(text, stops[index])
                is_stopped = len(texts[index]) < len(text)
                if is_stopped:
                    engine.abort(step.request_id)
                if is_stopped or step.finish_reason is not None:
                    num_done += 1
                    if self.on_request is not None:
                        self.on_request(num_done, len(stops))
        return texts


def _stop_strings(until: object) -> list[str]:
    """The stop strings of a request; an empty one is none. The end-of-text tokens stop anyway."""
    given = [until] if isinstance(until, str) else until or []
    assert isinstance(given, list), f"stop strings are {given!r}"
    return [stop for stop in given if stop]


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _sampling_params(arguments: dict[str, Any], *, seed: int) -> SamplingParams:
    """The harness' generation arguments: greedy unless they ask to sample."""
    limits = [arguments[name] for name in _LIMIT_NAMES if arguments.get(name) is not None]
    temperature = float(arguments.get("temperature") or 0.0)
    if arguments.get("do_sample") is False:
        temperature = 0.0
    return SamplingParams(
        max_tokens=int(limits[0]) if limits else DEFAULT_MAX_TOKENS,
        temperature=temperature,
        top_k=arguments.get("top_k") or None,
        top_p=float(arguments.get("top_p") or 1.0),
        seed=seed,
    )
