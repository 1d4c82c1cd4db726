"""Checkpoint formats: packing, quantized weights, and reading and writing files."""
