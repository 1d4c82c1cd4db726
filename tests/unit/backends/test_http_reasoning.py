import json

import pytest

from llmopt.backends.http_chunks import ChunkReader
from llmopt.backends.sse import ServerSentEvent


@pytest.mark.parametrize(
    ("choice", "is_reasoning"),
    [
        ({"delta": {"reasoning_content": "hm"}}, True),  # SGLang, DeepSeek
        ({"delta": {"reasoning": "hm", "content": None}}, True),  # vLLM
        ({"delta": {"reasoning": "hm", "content": "so"}}, False),  # the answer has begun
        ({"delta": {"content": "so"}}, False),
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"text": "so"}, False),
    ],
)
def test_a_reasoning_is_told_from_the_answer(choice, is_reasoning):
    event = ServerSentEvent(data=json.dumps({"choices": [choice]}), event="")
    assert ChunkReader().read(event).is_reasoning is is_reasoning
