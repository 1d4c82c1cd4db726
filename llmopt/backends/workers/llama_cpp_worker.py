"""Drives llama-cpp-python as its users do: a `Llama` object and its `generate`.

Such an object serves one sequence at a time, so requests queue, whatever `max_num_seqs` says: that
is what its users get. Settings: n_batch, n_ubatch (512), tokens of a prompt that are computed at
once; cache_type ("f16"), of keys and values; flash_attn (false); n_gpu_layers (none on "cpu", all
elsewhere).
"""

from collections.abc import Callable, Iterable
from typing import Any

import llama_cpp

Message = dict[str, Any]
Send = Callable[[Iterable[Message]], None]


def load(settings: Message) -> "OneSequence":
    """Load a GGUF file; what is computed in is the library's choice."""
    chosen = {
        "n_batch": settings.get("n_batch", 512),
        "n_ubatch": settings.get("n_ubatch", 512),
        "flash_attn": settings.get("flash_attn", False),
        "n_gpu_layers": settings.get("n_gpu_layers", 0 if settings["device"] == "cpu" else -1),
    }
    cache_type = settings.get("cache_type", "f16")
    type_number = getattr(llama_cpp, f"GGML_TYPE_{cache_type.upper()}")
    model = llama_cpp.Llama(
        settings["checkpoint"],
        n_ctx=settings["max_model_len"],
        n_threads=settings["num_threads"],
        n_threads_batch=settings["num_threads"],
        type_k=type_number,
        type_v=type_number,
        logits_all=False,
        verbose=True,  # into the log
        **chosen,
    )
    return OneSequence(model, settings["prefix_caching"], chosen | {"cache_type": cache_type})


class OneSequence:
    """Requests one after the other."""

    version = llama_cpp.__version__

    def __init__(self, model: Any, prefix_caching: bool, chosen: Message) -> None:
        self._model = model
        self._prefix_caching = prefix_caching
        self._num_steps = 0
        self.settings = {
            **chosen,
            "max_num_seqs": 1,
            "n_ctx": model.n_ctx(),
            "file_type": model.metadata.get("general.file_type"),
            "system_info": llama_cpp.llama_print_system_info().decode(),
        }

    def stats(self) -> dict[str, float]:
        """Tokens that were generated, which are evaluations of one sequence."""
        return {"num_steps": self._num_steps}

    def serve(self, inbox: Any, send: Send) -> None:
        """Serve what waits, in order."""
        while True:
            for request in inbox.take(1, wait=True):
                self._generate(request, inbox, send)
            inbox.aborted()

    def _generate(self, request: Message, inbox: Any, send: Send) -> None:
        if not self._prefix_caching:
            self._model.reset()  # or `generate` goes on from the longest prefix that it has
        prompt, number = request["prompt_token_ids"], request["id"]
        vocabulary = llama_cpp.llama_model_get_vocab(self._model.model)
        tokens = self._model.generate(prompt, temp=0.0, repeat_penalty=1.0)
        for count, token in enumerate(tokens, start=1):
            self._num_steps += 1
            message: Message = {"id": number, "token_ids": [token]}
            is_end = llama_cpp.llama_vocab_is_eog(vocabulary, token) and not request["ignore_eos"]
            if is_end or count == request["max_tokens"]:
                message["finish_reason"] = "stop" if is_end else "length"
                message["num_prompt_tokens"] = self._model.n_tokens - count + 1
                send([message])
                return
            send([message])
            if number in inbox.aborted():
                return
