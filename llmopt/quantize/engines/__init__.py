"""Quantizers of others, each run as a process in an environment of its own."""
