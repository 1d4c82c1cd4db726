"""llmopt: quantize a language model, run it, and measure what was lost and what was gained."""

__version__ = "0.1.0"
