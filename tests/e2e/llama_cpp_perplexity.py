"""llama.cpp's own perplexity, by its Python interface: `python THIS FILE TEXT NUM_CHUNKS`.

Written after the arithmetic of tools/perplexity/perplexity.cpp and independent of llmopt, which the
environment that runs it need not have. Prints JSON: the perplexity and the number of tokens.
"""

import json
import math
import sys
from pathlib import Path

import llama_cpp
import numpy as np

N_CTX = 512


def main() -> None:
    model_path, text_path, num_chunks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    model = llama_cpp.Llama(
        model_path, n_ctx=N_CTX, n_batch=N_CTX, logits_all=True, n_threads=2, verbose=False
    )
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    text = text_path.read_bytes().removesuffix(b"\n")  # as the tool's option -f does
    add_bos = llama_cpp.llama_vocab_get_add_bos(vocabulary)
    tokens = model.tokenize(text, add_bos=add_bos, special=False)
    first, nll, count = N_CTX // 2, 0.0, 0
    for start in range(0, num_chunks * N_CTX, N_CTX):
        chunk = tokens[start : start + N_CTX]
        read = [llama_cpp.llama_vocab_bos(vocabulary), *chunk[1:]] if add_bos else chunk
        model.reset()
        model.eval(read)
        for position in range(first, N_CTX - 1):
            logits = model.scores[position].astype(np.float64)
            peak = logits.max()
            log_sum = peak + math.log(np.exp(logits - peak).sum())
            nll += log_sum - logits[chunk[position + 1]]
            count += 1
    print(json.dumps({"ppl": math.exp(nll / count), "num_tokens": len(tokens)}))


if __name__ == "__main__":
    main()
