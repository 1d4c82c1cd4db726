"""Benchmarks of the kernels, of a checkout only: run with `kernels` on the path of imports.

`llmopt bench-kernels` and `python -m bench.gpu_check` are the ways in.
"""
