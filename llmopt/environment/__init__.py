"""Isolated environments of other people's software, which llmopt drives as processes."""
