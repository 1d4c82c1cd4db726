"""C++ kernels for CPUs: their sources, how they are compiled at first use, and how they are called.

Knows no model, file format or engine. The law: without a compiler, or with LLMOPT_NATIVE=0,
everything still runs, on torch alone.
"""
