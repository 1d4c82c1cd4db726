"""Greedy divergence: where a model's greedy output first differs from its base's.

The target never generates. The base does, and the target reads the base's prompt and output once.
Why that finds the first difference of its own greedy run: let y_1 y_2 ... be the base's greedy
tokens and z_1 z_2 ... the target's, and k the first position where they differ. Before it the
target's run has the same prefix as the base's, so z_k is the target's argmax after the prompt and
y_1 .. y_{k-1}, which is what the target computes there when it reads the base's output; at every
earlier position i its argmax is z_i = y_i. So k is the first position where its argmax is not y_k.
(That is exact in real arithmetic. Decoding with a cache rounds otherwise than one pass over the
text: in float32 by about 1e-6, which only an exact tie can feel, in 16 bits so that near ties do.)

Behind the first difference the two texts are no longer comparable, but the target's reading of the
base's path is: `flips` counts every position on it where the target would choose otherwise.

Near ties: rounding alone flips a token where two are about equally likely, and such a flip is no
damage. How far rounding moves a gap is measured: the base reads the same tokens in its 16-bit
dtype, and `near_tie_nats` is the 99th percentile, over all positions, of the change of the gap
between the base's two likeliest tokens (a difference of log-probabilities, hence of logits). All
positions serve, since the change hardly depends on the gap. A difference counts as a near tie when
the base's own gap to the token that the target chose is at most that.

Knows nothing about files or layouts. The law it keeps: in float32 a model against itself never
differs, up to exact ties.
"""

from collections.abc import Callable, Sequence

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.greedy_paths import read_path
from llmopt.quality.greedy_prompts import GreedyOptions, load_prompts
from llmopt.quality.greedy_report import GreedyReport
from llmopt.quality.greedy_summary import near_tie_nats, summarize_run
from llmopt.quality.source import ScorableModel

BLOCK_SIZE = 16  # of the base's key/value cache
MAX_BATCH = 64  # prompts that the base completes at a time

OnProgress = Callable[[int, int], None]  # (tokens done, tokens in all)


def measure_greedy(
    target: ScorableModel,
    base: Decoder,
    tokenizer: Tokenizer,
    options: GreedyOptions,
    on_progress: OnProgress | None = None,
    *,
    noise: ScorableModel | None = None,
    target_name: str = "model",
    base_name: str = "base",
) -> GreedyReport:
    """Compare greedy outputs of the target with the base's, prompt by prompt.

    `noise` is the base in its 16-bit dtype: the reference row, and what near ties are told by. An
    output of the base ends with an end-of-sequence token or after `max_new_tokens`. Shares of
    prompts have Wilson's interval (a bootstrap of 0 or all of n prompts has no width); the share of
    tokens has a bootstrap's over prompts.

    Raises UsageError when the models or prompts do not fit together, EngineError or ModelError when
    a model gives NaN or infinite logits.
    """
    source, prompts = load_prompts(tokenizer, options)
    readers = [target] if noise is None else [target, noise]
    _check(prompts, [base, *readers], options)
    clock = _Clock(2 * len(prompts) * options.max_new_tokens, on_progress)
    outputs = _generate(base, prompts, tokenizer.eos_token_ids, options, clock)
    clock.advance_to(len(prompts) * options.max_new_tokens)
    paths = []
    for prompt, output in zip(prompts, outputs, strict=True):
        paths.append(read_path(base, readers, prompt, output))
        clock.advance(options.max_new_tokens)
    threshold = None if noise is None else near_tie_nats(paths, reader=1)
    names = [target_name, f"{base_name} in 16 bits"]
    runs = [
        summarize_run(name, paths, reader, threshold, tokenizer, options)
        for reader, name in enumerate(names[: len(readers)])
    ]
    return GreedyReport(
        base_name=base_name,
        prompt_source=source,
        max_new_tokens=options.max_new_tokens,
        num_tokens=sum(len(output) for output in outputs),
        near_tie_nats=threshold,
        target=runs[0],
        noise=runs[1] if noise is not None else None,
        confidence=options.confidence,
    )


class _Clock:
    """Adds up the work that is done, in tokens."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total = total
        self.done = 0
        self._on_progress = on_progress

    def advance(self, num_tokens: int) -> None:
        """Count finished work."""
        self.advance_to(self.done + num_tokens)

    def advance_to(self, done: int) -> None:
        """So much is finished in all."""
        self.done = done
        if self._on_progress is not None:
            self._on_progress(done, self.total)


def _check(
    prompts: Sequence[Sequence[int]], models: Sequence[ScorableModel], options: GreedyOptions
) -> None:
    sizes = sorted({model.config.vocab_size for model in models})
    if len(sizes) > 1:
        raise UsageError(
            f"the model and its base have vocabularies of {sizes[0]} and {sizes[-1]} tokens",
            "Compare a model with the one that it was made from.",
        )
    limit = min(model.config.max_model_len for model in models)
    longest = max(len(prompt) for prompt in prompts)
    if longest + options.max_new_tokens > limit:
        raise UsageError(
            f"the model reads at most {limit} tokens, and the longest prompt has {longest} and"
            f" gets {options.max_new_tokens} more",
            "Give shorter prompts, or generate fewer tokens.",
        )


def _generate(
    base: Decoder,
    prompts: Sequence[Sequence[int]],
    eos_token_ids: Sequence[int],
    options: GreedyOptions,
    clock: _Clock,
) -> list[list[int]]:
    """The base's greedy output for each prompt."""
    longest = max(len(prompt) for prompt in prompts)
    config = EngineConfig(
        block_size=BLOCK_SIZE,
        max_num_seqs=min(len(prompts), MAX_BATCH),
        max_model_len=longest + options.max_new_tokens,
    )
    engine = Engine(base, config, eos_token_ids=eos_token_ids)
    greedy = SamplingParams(max_tokens=options.max_new_tokens, temperature=0.0)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, greedy)
    outputs: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished():
        for step in engine.step():
            outputs[int(step.request_id)].extend(step.token_ids)
            clock.advance(len(step.token_ids))
    return outputs
