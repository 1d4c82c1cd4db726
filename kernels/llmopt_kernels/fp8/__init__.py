"""Matrix products of e4m3 values: weights with a scale per output row, inputs with one per token
that is found at run time.
"""
