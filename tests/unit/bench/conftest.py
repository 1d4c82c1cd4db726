"""A clock that never waits, a backend with known delays, records made by hand, a tiny model."""

import asyncio
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.hardware.ceilings import MeasuredCeilings
from llmopt.results.schema import RequestRecord, RunRecord


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer in place of waiting for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now_s


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for nothing"
        if not ready and timeout:
            self._loop.now_s += timeout
        return ready


@dataclass(frozen=True)
class Script:
    """What the fake backend does with one request: (delay before the event in s, tokens in it)."""

    events: tuple[tuple[float, int], ...]
    error: Exception | None = None
    finish_reason: str | None = "length"
    num_prompt_tokens: int | None = None
    num_preemptions: int = 0


@dataclass
class FakeBackend:
    """Serves every request by a script; knows what it was asked and whether streams were closed."""

    script: Callable[[int], Script]
    name: str = "fake"
    version: str = "1"
    settings: dict[str, object] = field(default_factory=dict)
    asked: list[tuple[tuple[int, ...], GenerationParams]] = field(default_factory=list)
    open_streams: int = 0
    num_steps: int = 0

    def start(self) -> None:
        pass

    def drive(self, client: Callable[[], T]) -> T:
        return client()

    def stop(self) -> None:
        pass

    def stats(self) -> dict[str, float]:
        return {"num_steps": self.num_steps, "peak_used_blocks": 7}

    async def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        script = self.script(len(self.asked))
        self.asked.append((tuple(prompt_token_ids), params))
        self.open_streams += 1
        try:
            for index, (delay_s, num_tokens) in enumerate(script.events):
                await asyncio.sleep(delay_s)
                self.num_steps += 1
                is_last = index == len(script.events) - 1 and script.error is None
                yield TokenEvent(
                    num_tokens,
                    script.finish_reason if is_last else None,
                    script.num_prompt_tokens,
                    script.num_preemptions,
                )
            if script.error is not None:
                raise script.error
        finally:
            self.open_streams -= 1


def steady(ttft_s: float, tpot_s: float, num_tokens: int, per_event: int = 1) -> Script:
    """One event of one token after `ttft_s`, then `per_event` tokens every `per_event * tpot_s`."""
    later, rest = divmod(num_tokens - 1, per_event)
    assert rest == 0
    return Script(((ttft_s, 1), *[(per_event * tpot_s, per_event)] * later))


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on a virtual loop, which it is given."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))


def request_record(**changes: Any) -> RequestRecord:
    """A served request: prompt of 10, 3 tokens at 1.0, 1.5 and 2.5 s, scheduled at 0.2 s."""
    times = changes.pop("token_times_s", (1.0, 1.5, 2.5))
    counts = changes.pop("token_counts", (1,) * len(times))
    fields: dict[str, Any] = {
        "request_id": "request-0",
        "num_prompt_tokens": 10,
        "num_output_tokens": sum(counts),
        "scheduled_s": 0.2,
        "sent_s": 0.3,
        "first_token_s": times[0] if times else None,
        "last_token_s": times[-1] if times else None,
        "done_s": times[-1] + 0.01 if times else None,
        "token_times_s": times,
        "token_counts": counts,
        "finish_reason": "length",
    }
    return RequestRecord(**(fields | changes))


def run_record(requests: Sequence[RequestRecord], **changes: Any) -> RunRecord:
    """A run of these requests that lasted 4 s and took 5 steps."""
    fields: dict[str, Any] = {
        "repeat": 0,
        "started_at": "2026-01-01T00:00:00.000+00:00",
        "seed": 0,
        "duration_s": 4.0,
        "requests": tuple(requests),
        "step_stats": {"num_steps": 5.0},
        "num_warmup_requests": 1,
    }
    return RunRecord(**(fields | changes))


@pytest.fixture
def make() -> Any:
    """The makers of this file, for tests that cannot import it."""

    class Makers:
        Script = Script
        FakeBackend = FakeBackend
        steady = staticmethod(steady)
        run_virtual = staticmethod(run_virtual)
        request = staticmethod(request_record)
        run = staticmethod(run_record)

    return Makers


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, environments and logs are not those of whoever runs the tests."""
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def gguf_source(
    make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]
) -> Path:
    """A random Llama with a tokenizer that a GGUF file can express."""
    from tokenizers import pre_tokenizers

    path = make_tiny_llama(vocab_size=608, bos_token_id=0, eos_token_id=0)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model_path(make_tiny_llama: Callable[..., Path]) -> Path:
    """A random Llama over the bytes of a text, with its tokenizer, in bfloat16."""
    from transformers import AutoModelForCausalLM

    path = make_tiny_llama(vocab_size=256, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16")
    model.save_pretrained(path)
    save_byte_tokenizer(path)
    return path


def save_byte_tokenizer(path: Path) -> None:
    """A tokenizer that reads every byte as one token, 0 to 255."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


@pytest.fixture
def known_ceilings(monkeypatch: pytest.MonkeyPatch) -> MeasuredCeilings:
    """Ceilings that need no measuring."""
    ceilings = MeasuredCeilings(
        gemm_flops={"float32": 1e11, "bfloat16": 2e11},
        copy_bytes_per_s=1e10,
        read_bytes_per_s=2e10,
        measured_at="2026-01-01T00:00:00+00:00",
        num_threads=1,
        device="cpu",
    )
    monkeypatch.setattr("llmopt.bench.site.measure_ceilings", lambda device: ceilings)
    return ceilings
