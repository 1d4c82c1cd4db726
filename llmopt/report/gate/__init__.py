"""The regression gate: two sets of result files in, one verdict out."""
