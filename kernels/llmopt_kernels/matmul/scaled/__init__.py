"""Products of 8-bit values, integers or e4m3, with a scale per token and one per row."""
