"""A real HTTP server on asyncio that speaks OpenAI's streams, with known delays and faults.

Every model that it has is a behaviour, registered with `POST /mock/models` (a JSON object of
behaviours by name). `GET /mock/log/NAME` gives what it really did for that model and when, on the
machine's monotonic clock (`time.perf_counter` of any process on Linux). It knows no llmopt.
"""

import asyncio
import json
import random
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from .behaviour import Behaviour

HEAD_END = b"\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@dataclass
class LogEntry:
    """What happened to one request."""

    model: str
    number: int  # of the model's requests, from 0
    received_s: float
    body: dict[str, Any]
    headers: dict[str, str]
    connection: int
    token_times_s: list[float] = field(default_factory=list)  # one per event with tokens
    token_counts: list[int] = field(default_factory=list)
    done_s: float | None = None
    aborted: bool = False  # the client went before the end


@dataclass
class Model:
    behaviour: Behaviour
    num_requests: int = 0
    slots: asyncio.Semaphore | None = None
    log: list[LogEntry] = field(default_factory=list)


class StreamWriter:
    """Writes the chunks of one stream, cut as the behaviour says, and logs tokens' times."""

    def __init__(self, writer: asyncio.StreamWriter, behaviour: Behaviour, entry: LogEntry) -> None:
        self._writer = writer
        self._behaviour = behaviour
        self._entry = entry

    async def event(self, data: str, num_tokens: int = 0) -> None:
        end = self._behaviour.line_end
        content = f"data: {data}{end}{end}".encode()
        length = self._behaviour.cut_bytes or len(content)
        *first, last = [content[i : i + length] for i in range(0, len(content), length)]
        for piece in first:
            await self._write(piece)
        if num_tokens:  # before the write, after which the client may be first to run
            self._entry.token_times_s.append(time.perf_counter())
            self._entry.token_counts.append(num_tokens)
        await self._write(last)

    async def ping(self) -> None:
        await self._write(f": ping{self._behaviour.line_end}{self._behaviour.line_end}".encode())

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def _write(self, content: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(b"%x\r\n%s\r\n" % (len(content), content))
        await asyncio.sleep(0)  # so that no two pieces are sent as one
        await self._writer.drain()


class MockServer:
    """The server's state and its routes."""

    def __init__(self, models: dict[str, Behaviour], ready_after_s: float = 0.0) -> None:
        self._models: dict[str, Model] = {}
        self._ready_s = time.perf_counter() + ready_after_s
        self._num_connections = 0
        self.register(models)

    def register(self, models: dict[str, Behaviour]) -> None:
        for name, behaviour in models.items():
            slots = asyncio.Semaphore(behaviour.slots) if behaviour.slots else None
            self._models[name] = Model(behaviour, slots=slots)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        connection, self._num_connections = self._num_connections, self._num_connections + 1
        try:
            while await self._serve_one(reader, writer, connection):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        head = (await reader.readuntil(HEAD_END)).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        received_s = time.perf_counter()
        path = target.partition("?")[0]
        if method == "POST" and path.endswith("/completions"):
            body = json.loads(content)
            model = self._models.get(body.get("model"))
            if model is None:
                await answer(writer, 404, {"error": {"message": f"no model {body.get('model')}"}})
                return True
            entry = LogEntry(
                body["model"], model.num_requests, received_s, body, headers, connection
            )
            model.num_requests += 1
            model.log.append(entry)
            return await serve(reader, writer, model, entry, is_chat="chat" in path)
        status, found = self._answer(path, content)
        await answer(writer, status, found)
        return True

    def _answer(self, path: str, content: bytes) -> tuple[int, Any]:
        if path == "/mock/models":
            self.register({name: Behaviour(**b) for name, b in json.loads(content).items()})
            return 200, {}
        if path.startswith("/mock/log/"):
            return 200, [asdict(entry) for entry in self._models[path[10:]].log]
        if time.perf_counter() < self._ready_s:
            return 503, {"error": {"message": "the model is loading"}}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name} for name in self._models]}
        if path == "/version":
            return 200, {"version": "1.2.3"}
        return (200, {}) if path == "/health" else (404, {"detail": "Not Found"})


async def serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    model: Model,
    entry: LogEntry,
    *,
    is_chat: bool,
) -> bool:
    """Answer one request for tokens; returns whether the connection stays open."""
    behaviour = model.behaviour
    fault = behaviour.fault if (entry.number + 1) % behaviour.fault_every == 0 else None
    if behaviour.refuses_field in entry.body:
        message = f"Extra inputs are not permitted: {behaviour.refuses_field}"
        await answer(writer, 400, {"detail": message})
        return True
    if fault == "status":
        await answer(writer, behaviour.status, {"error": {"message": "out of luck", "code": 1}})
        return True
    if fault == "not a stream":
        await answer(writer, 200, {"choices": [{"text": "all at once", "finish_reason": "stop"}]})
        return True
    if fault in ("not http", "close before answer"):
        writer.write(b"SSH-2.0-mock\r\n\r\n" if fault == "not http" else b"")
        return False
    stream = StreamWriter(writer, behaviour, entry)
    try:
        async with slot(model):
            writer.write(STREAM_HEAD)
            async with pinging(stream, behaviour.ping_every_s):
                stays = await generate(stream, behaviour, entry, fault, is_chat=is_chat)
            if fault == "hang":
                await reader.read()  # until the client goes
            entry.done_s = time.perf_counter()
            return stays and not behaviour.closes_after
    except ConnectionError:
        entry.aborted = True
        return False
    finally:
        entry.aborted |= fault == "hang"


async def generate(
    stream: StreamWriter, behaviour: Behaviour, entry: LogEntry, fault: str | None, *, is_chat: bool
) -> bool:
    """Write the tokens at their times; returns whether the stream ended as it should."""
    chunks = Chunks(behaviour, entry.body, is_chat=is_chat)
    start_s = time.perf_counter() if behaviour.slots else entry.received_s
    if behaviour.role_first_s is not None:
        await sleep_until(start_s + behaviour.role_first_s)
        await stream.event(chunks.role())
    for first, last, due_s in schedule(behaviour, chunks.num_tokens, entry.number):
        await sleep_until(start_s + due_s)
        if fault is not None and last > behaviour.fault_after:
            return await break_off(stream, fault)
        is_final = last == chunks.num_tokens
        await stream.event(chunks.tokens(last - first, last, is_final=is_final), last - first)
    if not behaviour.finish_with_last:
        await stream.event(chunks.finish())
    if chunks.wants_usage:
        await stream.event(chunks.usage())
    await stream.event("[DONE]")
    await stream.end()
    return True


async def break_off(stream: StreamWriter, fault: str) -> bool:
    if fault == "error event":
        await stream.event(json.dumps({"error": {"message": "the engine fell over", "code": 500}}))
        await stream.event("[DONE]")
        await stream.end()
        return True
    if fault == "malformed":
        await stream.event('{"choices": [{"text": ')
        await stream.end()
        return True
    if fault == "no finish":
        await stream.event("[DONE]")
        await stream.end()
        return True
    return False  # a drop; of a hang, the caller waits


def schedule(behaviour: Behaviour, num_tokens: int, number: int) -> list[tuple[int, int, float]]:
    """(tokens before, tokens with it, when due) of each event of a request."""
    chance = random.Random(f"{behaviour.seed} {number}")
    extra_s = behaviour.first_extra_s if number == 0 else 0.0

    def varied(gap_s: float) -> float:
        return gap_s * (1 + behaviour.jitter * chance.uniform(-1, 1))

    events = [(0, 1, extra_s + varied(behaviour.ttft_s))]
    while (done := events[-1][1]) < num_tokens:
        more = min(behaviour.tokens_per_event, num_tokens - done)
        gap_s = sum(varied(behaviour.tpot_s) for _ in range(more))
        events.append((done, done + more, events[-1][2] + gap_s))
    return events


class Chunks:
    """The JSON of the chunks of one request."""

    def __init__(self, behaviour: Behaviour, body: dict[str, Any], *, is_chat: bool) -> None:
        self._behaviour = behaviour
        self._is_chat = is_chat
        wanted = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        self.num_tokens = min(wanted, behaviour.max_generated or wanted)
        self._finish_reason = "length" if self.num_tokens == wanted else "stop"
        options = body.get("stream_options") or {}
        self.wants_usage = behaviour.usage == "asked" and bool(options.get("include_usage"))
        self._each = (
            self.wants_usage
            and behaviour.knows_each_usage
            and bool(options.get("continuous_usage_stats"))
        )
        self._num_prompt_tokens = count_prompt(body)
        if behaviour.max_prompt is not None:
            self._num_prompt_tokens = min(self._num_prompt_tokens, behaviour.max_prompt)
        self._frame = {
            "id": "cmpl-1",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": 0,
            "model": body["model"],
        }

    def role(self) -> str:
        choice = {"delta": {"role": "assistant", "content": ""}} if self._is_chat else {"text": ""}
        return self._chunk(choice, None, 0)

    def tokens(self, count: int, so_far: int, *, is_final: bool) -> str:
        text = self._behaviour.text * count
        choice = {"delta": {"content": text}} if self._is_chat else {"text": text}
        reason = self._finish_reason if is_final and self._behaviour.finish_with_last else None
        has_usage = self._behaviour.usage == "last chunk" and is_final
        return self._chunk(choice, reason, so_far, has_usage=has_usage)

    def finish(self) -> str:
        choice = {"delta": {}} if self._is_chat else {"text": ""}
        return self._chunk(choice, self._finish_reason, self.num_tokens)

    def usage(self) -> str:
        return json.dumps(self._frame | {"choices": [], "usage": self._usage(self.num_tokens)})

    def _chunk(
        self, choice: dict[str, Any], reason: str | None, so_far: int, *, has_usage: bool = False
    ) -> str:
        choice = {"index": 0, **choice, "finish_reason": reason}
        usage = {"usage": self._usage(so_far)} if self._each or has_usage else {}
        return json.dumps(self._frame | {"choices": [choice]} | usage, ensure_ascii=False)

    def _usage(self, so_far: int) -> dict[str, Any]:
        generated = so_far + (self._behaviour.output_count_error if so_far else 0)
        usage: dict[str, Any] = {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._num_prompt_tokens + generated,
        }
        if self._behaviour.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self._behaviour.cached_tokens}
        return usage


def count_prompt(body: dict[str, Any]) -> int:
    """Token ids, or words."""
    prompt = body.get("prompt", "")
    if isinstance(prompt, list):
        return len(prompt)
    contents = [message["content"] for message in body.get("messages", [])]
    texts = [c if isinstance(c, str) else " ".join(part["text"] for part in c) for c in contents]
    return len(" ".join([prompt, *texts]).split())


@asynccontextmanager
async def slot(model: Model):
    if model.slots is None:
        yield
        return
    async with model.slots:
        yield


@asynccontextmanager
async def pinging(stream: StreamWriter, every_s: float | None):
    async def ping() -> None:
        while every_s is not None:
            await asyncio.sleep(every_s)
            await stream.ping()

    task = asyncio.create_task(ping()) if every_s is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await task


async def sleep_until(due_s: float) -> None:
    """The loop's own timers are up to a millisecond late, and these are what is measured."""
    while (left_s := due_s - time.perf_counter()) > 0:
        await asyncio.sleep(left_s)


async def answer(writer: asyncio.StreamWriter, status: int, found: Any) -> None:
    content = json.dumps(found).encode()
    writer.write(
        b"HTTP/1.1 %d Mock\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (status, len(content), content)
    )
    await writer.drain()
