"""One scenario for every library behind a worker process, and its greedy tokens against ours.

transformers is a dependency and always runs. The others run where their environment is found: made
by `llmopt backend install NAME`, or named by LLMOPT_ENVIRONMENT_NAME.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.backends import worker_backend
from llmopt.backends.protocol import GenerationParams, TokenEvent
from llmopt.backends.worker_backend import WorkerBackend
from llmopt.backends.worker_options import WORKER_KINDS, WorkerKind, WorkerOptions
from llmopt.backends.worker_process import WorkerProcess
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import find_installation, process_variables
from llmopt.errors import BackendError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import ggml_type
from llmopt.models.gguf_export import FILE_TYPES, export_gguf
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.gguf_encode import encode

FAKE = Path(__file__).parents[1] / "support" / "fake_worker.py"
VOCABULARY = 600
MAX_MODEL_LEN = 256
ENDING, END_AT = 6, 7  # the prompt whose answer has the end of sequence, and where
LENGTHS = (3, 40, 1, 17, 90, 64, 5, 33)  # of the prompts
NUM_NEW = (12, 5, 20, 1, 9, 16, 24, 2)
FAKE_KIND = WorkerKind("fake", FAKE, {"eos": LENGTHS[ENDING] + END_AT, "step_s": 0.01})
GENERATOR = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(3, VOCABULARY, (n,), generator=GENERATOR).tolist() for n in LENGTHS]


@dataclass
class Case:
    """A worker that was started, what it said about tokens, and the checkpoint that it serves."""

    backend: WorkerBackend
    checkpoint: Path
    tokens: dict[int, list[int]] = field(default_factory=dict)  # by request


@pytest.fixture(scope="module")
def source(make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]) -> Path:
    """A tiny Llama in float32 with a tokenizer; one of its answers has its end of sequence."""
    path = make_tiny_llama(vocab_size=VOCABULARY, hidden_size=128, num_attention_heads=2)
    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    end = our_tokens(path)[ENDING][END_AT]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.save_pretrained(path)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(config | {"eos_token_id": end}))
    return path


@pytest.fixture(scope="module")
def gguf_file(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(
        CheckpointReader(source),
        load_tokenizer(source),
        out,
        name="tiny",
        file_type=FILE_TYPES.get("F32", 0),
        choose=lambda tensor: ggml_type("F32"),
        encode=lambda name, weight, kind: encode(weight.float(), kind.name, name=name),
    )
    return out


def environment(name: str) -> tuple[Path, dict[str, str]]:
    """The python of an environment and its variables; skips where there is none."""
    found = find_environment(name)
    python = find_installation(found).python
    if python is None:
        pytest.skip(
            f"no environment: set {found.override_variable} or run `llmopt backend install {name}`"
        )
    return python, process_variables(found)


def options(name: str, source: Path, gguf_file: Path, directory: Path) -> WorkerOptions:
    plain = WorkerOptions(
        WORKER_KINDS.get(
            name, WorkerKind(name, FAKE, {"eos": LENGTHS[ENDING] + END_AT, "step_s": 0.01})
        ),
        Path(sys.executable),
        source,
        directory / "worker.log",
        num_threads=1,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=3,
        dtype="float32",
    )
    if name == "llama-cpp-python":
        python, variables = environment("llama.cpp")
        return replace(
            plain,
            python=python,
            variables=variables,
            checkpoint=gguf_file,
            settings={"cache_type": "f32"},
        )
    if name == "openvino":
        python, variables = environment("openvino")
        settings = {"export_args": ["--weight-format", "fp32"]}
        return replace(plain, python=python, variables=variables, settings=settings)
    return plain


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "transformers",
        "transformers-cb",
        pytest.param("llama-cpp-python", marks=pytest.mark.workers),
        pytest.param("openvino", marks=pytest.mark.workers),
    ],
)
def case(
    request: pytest.FixtureRequest,
    source: Path,
    gguf_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Case]:
    chosen = options(request.param, source, gguf_file, tmp_path_factory.mktemp("worker"))
    started = Case(WorkerBackend(chosen), chosen.checkpoint)

    class Overheard(WorkerProcess):
        def receive(self) -> list[dict[str, Any]]:
            messages = super().receive()
            for message in messages:
                started.tokens.setdefault(message.get("id", 0), []).extend(
                    message.get("token_ids", [])
                )
            return messages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_backend, "WorkerProcess", Overheard)
        patch.setenv("LLMOPT_CACHE", str(chosen.log.parent / "cache"))
        started.backend.start()
    yield started
    process = psutil.Process(started.backend._running.pid)
    started.backend.stop()
    assert not process.is_running()


async def collect(
    backend: WorkerBackend, prompt: list[int], num_new: int, *, ignore_eos: bool = True
) -> list[TokenEvent]:
    params = GenerationParams(max_tokens=num_new, ignore_eos=ignore_eos)
    return [event async for event in backend.stream(prompt, params)]


async def abandon(backend: WorkerBackend) -> None:
    """Give a long request up after its first event."""
    params = GenerationParams(max_tokens=200)
    async with aclosing(backend.stream(PROMPTS[0], params)) as events:
        async for _ in events:
            return


async def refused(backend: WorkerBackend) -> None:
    with pytest.raises(BackendError, match="more than the 256 of the context"):
        await collect(backend, [5] * 250, 7)


def our_tokens(checkpoint: Path) -> list[list[int]]:
    engine = Engine(
        load_model(checkpoint, dtype="float32"),
        EngineConfig(num_blocks=64, max_num_seqs=4, max_model_len=MAX_MODEL_LEN),
    )
    generated: dict[str, list[int]] = {}
    for index, (prompt, num_new) in enumerate(zip(PROMPTS, NUM_NEW, strict=True)):
        engine.add_request(
            str(index), prompt, SamplingParams(max_tokens=num_new, temperature=0, ignore_eos=True)
        )
    while engine.has_unfinished():
        for output in engine.step():
            generated.setdefault(output.request_id, []).extend(output.token_ids)
    return [generated[str(index)] for index in range(len(PROMPTS))]


def test_the_scenario(case: Case) -> None:
    """Eight requests on three slots, one given up, one too long."""

    async def main() -> list[list[TokenEvent]]:
        streams = [
            collect(case.backend, prompt, num_new)
            for prompt, num_new in zip(PROMPTS, NUM_NEW, strict=True)
        ]
        served, _, _ = await asyncio.gather(
            asyncio.gather(*streams), abandon(case.backend), refused(case.backend)
        )
        return served

    case.tokens.clear()
    first = case.backend._num_requests + 1
    for prompt, num_new, events in zip(PROMPTS, NUM_NEW, asyncio.run(main()), strict=True):
        assert sum(event.num_tokens for event in events) == num_new
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason == "length"
        assert events[-1].num_prompt_tokens == len(prompt)
    if case.backend.name == "fake":
        expected = [list(range(n, n + new)) for n, new in zip(LENGTHS, NUM_NEW, strict=True)]
    else:
        expected = our_tokens(case.checkpoint)
        assert min(len(set(tokens)) for tokens in expected if len(tokens) > 10) > 4
    assert [case.tokens[first + index] for index in range(len(PROMPTS))] == expected


def test_an_answer_ends_at_its_end_of_sequence(case: Case) -> None:
    async def main() -> list[list[TokenEvent]]:
        return await asyncio.gather(
            collect(case.backend, PROMPTS[ENDING], NUM_NEW[ENDING], ignore_eos=False),
            collect(case.backend, PROMPTS[ENDING], NUM_NEW[ENDING]),
        )

    stopped, ignored = asyncio.run(main())
    assert stopped[-1].finish_reason == "stop"
    assert sum(event.num_tokens for event in stopped) == END_AT + 1
    assert sum(event.num_tokens for event in ignored) == NUM_NEW[ENDING]


def test_what_was_given_up_computes_no_longer(case: Case) -> None:
    asyncio.run(abandon(case.backend))
    before = case.backend.stats()["num_steps"]
    asyncio.run(collect(case.backend, PROMPTS[0], 3))
    after = case.backend.stats()["num_steps"]
    assert after - before < 20
    time.sleep(0.5)
    assert case.backend.stats()["num_steps"] == after


def test_tokens_come_one_by_one(case: Case) -> None:
    events = asyncio.run(collect(case.backend, PROMPTS[1], 6))
    assert [event.num_tokens for event in events] == [1] * 6


def test_it_says_what_it_is(case: Case) -> None:
    settings = case.backend.settings
    assert case.backend.version[0].isdigit()
    assert settings["num_threads"] == 1
    assert case.backend.stats()["peak_rss_bytes"] > 1 << 20
    if case.backend.name.startswith("transformers"):
        assert settings["weights_dtype"] == "float32"
        assert settings["torch_threads"] == 1
