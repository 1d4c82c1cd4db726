"""Computes logits of a GGUF file with llama.cpp: `python llama_cpp_worker.py FILE NUM_THREADS`.

Runs in an environment with llama-cpp-python, which need not have llmopt, and knows only its pipes:
a line of JSON per window comes in (`token_ids`, `num_scored`), the scored rows go out as float32
numbers in the machine's byte order, after one line of JSON that describes the model. The law: every
window starts from an empty cache, and nothing but the answers is written to standard output.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import llama_cpp

BATCH_TOKENS = 512  # read at a time, which bounds the logits that are held
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


def main() -> None:
    """Answer windows until standard input ends."""
    answers = _own_standard_output()
    os.environ["GGML_NO_BACKTRACE"] = "1"  # the last words of a failed assertion are its own
    errors: list[str] = []

    def take(level: int, text: bytes, _data: Any) -> None:
        if level == ERROR_LEVEL:
            errors.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(take)  # kept alive as long as it may be called
    llama_cpp.llama_log_set(callback, None)
    try:
        _serve(Path(sys.argv[1]), int(sys.argv[2]), answers)
    except RuntimeError as error:
        sys.exit(": ".join([str(error), *errors[:1]]))


def _serve(path: Path, num_threads: int, answers: BinaryIO) -> None:
    model = _load(path)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    description = {
        "vocab_size": vocab_size,
        "max_tokens": llama_cpp.llama_model_n_ctx_train(model),
        "version": llama_cpp.__version__,
    }
    answers.write(json.dumps(description).encode() + b"\n")
    answers.flush()
    context, num_slots = None, 0
    for line in sys.stdin:
        window = json.loads(line)
        if len(window["token_ids"]) > num_slots:
            if context is not None:
                llama_cpp.llama_free(context)
            num_slots = len(window["token_ids"])
            context = _context(model, num_slots, num_threads)
        _answer(context, window["token_ids"], window["num_scored"], vocab_size, answers)


def _own_standard_output() -> BinaryIO:
    """Take standard output for the answers; what the library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _load(path: Path) -> Any:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError("llama.cpp cannot load the file")
    return model


def _context(model: Any, num_slots: int, num_threads: int) -> Any:
    """A context for so many tokens, with llama.cpp's own defaults (a float16 cache)."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = num_slots
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_threads = parameters.n_threads_batch = num_threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {num_slots} tokens")
    return context


def _answer(
    context: Any, token_ids: list[int], num_scored: int, vocab_size: int, answers: BinaryIO
) -> None:
    """Read a window batch by batch and write the logits in front of its scored tokens."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    last = len(token_ids) - 1  # nothing follows it, so it is not read
    first_scored = last - num_scored
    for start in range(0, last, BATCH_TOKENS):
        piece = range(start, min(start + BATCH_TOKENS, last))
        num_rows = sum(position >= first_scored for position in piece)
        _decode(context, token_ids, piece, first_scored)
        if num_rows:
            row_bytes = vocab_size * ctypes.sizeof(ctypes.c_float)
            logits = llama_cpp.llama_get_logits(context)
            address = ctypes.addressof(logits.contents)
            answers.write((ctypes.c_char * (num_rows * row_bytes)).from_address(address))
    answers.flush()


def _decode(context: Any, token_ids: list[int], piece: range, first_scored: int) -> None:
    """Run the model on one batch, with the head on the rows from `first_scored` on."""
    batch = llama_cpp.llama_batch_init(len(piece), 0, 1)
    try:
        batch.n_tokens = len(piece)
        for index, position in enumerate(piece):
            batch.token[index] = token_ids[position]
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = position >= first_scored
        status = llama_cpp.llama_decode(context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")


if __name__ == "__main__":
    main()
