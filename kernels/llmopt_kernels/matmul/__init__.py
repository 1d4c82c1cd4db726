"""What the matrix products with stored weights have in common: the layout of packed weights, and
the Triton kernels that multiply by them.

The kernels' names and definitions are in `wna16`, `nf4`, `w8a8`, `fp8` and `moe`.
"""
