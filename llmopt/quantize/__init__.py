"""Quantization methods: weights in, a checkpoint with fewer bits out. Never imports the engine."""
