"""Drives transformers, in either of the two ways in which its users generate.

Settings: mode, "static" or "continuous"; attn_implementation (of transformers; "sdpa").
static: `generate` over a batch of the requests that wait, padded on the left. A batch stays as it
    was formed until its longest row has ended. `batch_gather_s` (0.02) is for how long one that is
    not full waits for another request.
continuous: the manager of `init_continuous_batching`, which streams. `max_batch_tokens` (512) is
    its token budget, `num_blocks` its cache: by default what `max_num_seqs` requests of
    `max_model_len` tokens need.
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

Message = dict[str, Any]
Send = Callable[[Iterable[Message]], None]

PADDING = 0  # a token that no row sees
PAGE_SIZE = 256  # tokens of a block of the cache: the library's own default
SAFETY_MARGIN = 0.15  # of the blocks: below it the library's scheduler admits no new request
IDLE_S = 1.0


def load(settings: Message) -> "StaticBatches | ContinuousBatching":
    """Load the checkpoint, unchanged but for the dtype of weights that are not quantized."""
    torch.set_num_threads(settings["num_threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(
        settings["checkpoint"],
        dtype=getattr(torch, settings["dtype"]),
        attn_implementation=settings.get("attn_implementation", "sdpa"),
        local_files_only=True,
    )
    model = model.to(settings["device"]).eval()
    if settings["mode"] == "continuous":
        return ContinuousBatching(model, settings)
    return StaticBatches(model, settings)


def eos_token_ids(model: Any) -> set[int]:
    """The tokens that end a sequence, by the generation config or else the model's."""
    found = model.generation_config.eos_token_id
    if found is None:
        found = model.config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def facts(model: Any) -> Message:
    """What the library found or chose."""
    return {
        "torch": torch.__version__,
        "attn_implementation": model.config._attn_implementation,
        "weights_dtype": str(model.dtype).removeprefix("torch."),
        "torch_threads": torch.get_num_threads(),
    }


class Row:
    """One request of a batch, and whether it still goes on."""

    def __init__(self, request: Message, eos: set[int]) -> None:
        self.number: int = request["id"]
        self.prompt: list[int] = request["prompt_token_ids"]
        self.max_tokens: int = request["max_tokens"]
        self._eos = set() if request["ignore_eos"] else eos
        self._num_tokens = 0
        self.is_over = False

    def add(self, token: int) -> Message:
        """Count a token; returns the message about it."""
        self._num_tokens += 1
        message: Message = {"id": self.number, "token_ids": [token]}
        reason = "stop" if token in self._eos else "length"
        if reason == "stop" or self._num_tokens == self.max_tokens:
            self.is_over = True
            message |= {"finish_reason": reason, "num_prompt_tokens": len(self.prompt)}
        return message


class StaticBatches:
    """`generate`, one batch after the other."""

    version = transformers.__version__

    def __init__(self, model: Any, settings: Message) -> None:
        self._model = model
        self._max_num_seqs: int = settings["max_num_seqs"]
        self._gather_s: float = settings.get("batch_gather_s", 0.02)
        self._eos = eos_token_ids(model)
        # `generate` fills what a config leaves open from the model's: nothing is left to fill
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=PADDING)
        self._num_steps = 0
        self._num_batches = 0
        self.settings = {"batch_gather_s": self._gather_s, **facts(model)}

    def stats(self) -> dict[str, float]:
        """Forward passes and batches since the start."""
        return {"num_steps": self._num_steps, "num_batches": self._num_batches}

    def serve(self, inbox: Any, send: Send) -> None:
        """Form a batch of what waits, generate, and begin again."""
        while True:
            requests = inbox.take(self._max_num_seqs, wait=True, gather_s=self._gather_s)
            inbox.aborted()  # of batches that are over
            if requests:
                self._generate([Row(request, self._eos) for request in requests], inbox, send)

    def _generate(self, rows: list[Row], inbox: Any, send: Send) -> None:
        def step(input_ids: Any, *_: Any) -> Any:
            """A stopping criterion, which sees the new token of every row, ends all at once."""
            self._num_steps += 1
            aborted = inbox.aborted()
            for row in rows:
                row.is_over = row.is_over or row.number in aborted
            pairs = zip(rows, input_ids[:, -1].tolist(), strict=True)
            send([row.add(token) for row, token in pairs if not row.is_over])
            is_over = all(row.is_over for row in rows)
            return torch.full((len(rows),), is_over, device=input_ids.device)

        width = max(len(row.prompt) for row in rows)
        ids = [[PADDING] * (width - len(row.prompt)) + row.prompt for row in rows]  # [B, T]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        self._num_batches += 1
        with torch.inference_mode():
            self._model.generate(
                input_ids=torch.tensor(ids, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=max(row.max_tokens for row in rows),
                stopping_criteria=transformers.StoppingCriteriaList([step]),
            )


class ContinuousBatching:
    """The library's continuous batching: a thread of its own computes; requests come and go."""

    version = transformers.__version__

    def __init__(self, model: Any, settings: Message) -> None:
        self._max_num_seqs: int = settings["max_num_seqs"]
        self._eos = eos_token_ids(model)
        blocks = math.ceil(settings["max_model_len"] / PAGE_SIZE) * self._max_num_seqs
        config = transformers.ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=settings.get("num_blocks", math.ceil((blocks + 1) / (1 - SAFETY_MARGIN))),
            max_batch_tokens=settings.get("max_batch_tokens", 512),
            max_requests_per_batch=self._max_num_seqs,
            allow_block_sharing=settings["prefix_caching"],
        )
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=config,
        )
        self._manager.warmup()  # as the library's context manager does
        self._requests: dict[int, Message] = {}
        self._num_sent: dict[int, int] = {}  # tokens, by request
        found = self._manager.continuous_batching_config
        names = ("page_size", "num_blocks", "max_batch_tokens", "allow_block_sharing")
        self.settings = {name: getattr(found, name) for name in names} | facts(model)

    def stats(self) -> dict[str, float]:
        """Forward passes since the start."""
        return {"num_steps": getattr(self._manager, "current_batch", 0)}

    def serve(self, inbox: Any, send: Send) -> None:
        """Pass on what the library's thread has computed, while another thread feeds it."""
        self._manager.start()
        feeder = threading.Thread(target=self._feed, args=(inbox,), daemon=True)
        feeder.start()
        while True:
            messages = []
            result = self._manager.get_result(timeout=IDLE_S)
            while result is not None:
                messages.append(self._message(result))
                result = self._manager.get_result(timeout=0)
            send(messages)
            if not (feeder.is_alive() and self._manager.is_running()):
                raise RuntimeError("continuous batching has ended")

    def _feed(self, inbox: Any) -> None:
        while True:
            for request in inbox.take(self._max_num_seqs, wait=True):
                self._requests[request["id"]] = request
                self._manager.add_request(
                    request["prompt_token_ids"],
                    request_id=str(request["id"]),
                    max_new_tokens=request["max_tokens"],
                    eos_token_id=-1 if request["ignore_eos"] else sorted(self._eos),
                    streaming=True,
                )
            for number in inbox.aborted():
                self._manager.cancel_request(str(number))

    def _message(self, result: Any) -> Message:
        number = int(result.request_id)
        if result.error is not None:
            return {"id": number, "error": result.error}
        tokens = result.generated_tokens[self._num_sent.get(number, 0) :]
        self._num_sent[number] = len(result.generated_tokens)
        if not result.is_finished():
            return {"id": number, "token_ids": tokens}
        is_stop = not self._requests[number]["ignore_eos"] and tokens[-1] in self._eos
        return {
            "id": number,
            "token_ids": tokens,
            "finish_reason": "stop" if is_stop else "length",
            "num_prompt_tokens": len(result.prompt_ids),
        }
