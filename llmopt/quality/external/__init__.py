"""Logits and log-probabilities that runtimes of others compute, for the same windows as ours.

The same file in two runtimes against the same base is a pair of rows that tells what the runtime
does from what the quantization does:

    llmopt eval model.gguf --base MODEL
    llmopt eval model.gguf --base MODEL --backend llama.cpp
"""
