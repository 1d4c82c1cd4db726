"""Text from the asynchronous engine: `async for delta in stream_text(...)`.

The text is made in the consumer's thread, so the engine's loop never waits for it.

Knows nothing about HTTP.
Law: what each output gives, put together, is its text; an output that a stop string ends is
aborted in the engine, and what the engine computed meanwhile is dropped.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from llmopt.engine.async_engine import AsyncEngine
from llmopt.engine.detokenizer import TokenText
from llmopt.engine.outputs import TextDelta
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.text_stream import TextStream


async def stream_text(
    engine: AsyncEngine,
    token_text: TokenText,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
) -> AsyncGenerator[TextDelta, None]:
    """Stream the outputs of one prompt, all `params.num_samples` of them, as `index` tells apart.

    Raises as `AsyncEngine.generate`; leaving the iteration aborts the request.
    """
    outputs = [TextStream(token_text.start(), params) for _ in range(params.num_samples)]
    async with aclosing(engine.generate(prompt_token_ids, params)) as steps:
        async for step in steps:
            index = sample_index(step.request_id)
            output = outputs[index]
            if output.finish_reason is not None:
                continue
            delta = output.take(step, index)
            yield delta
            if all(one.finish_reason is not None for one in outputs):
                return
            if delta.finish_reason is not None and step.finish_reason is None:
                engine.abort(step.request_id)


def sample_index(request_id: str) -> int:
    """Which output of its prompt a request of the asynchronous engine is."""
    _, _, number = request_id.partition("/")
    return int(number or 0)
