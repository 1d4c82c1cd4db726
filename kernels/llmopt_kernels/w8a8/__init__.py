"""Matrix products of 8-bit integers: weights with a scale per output row, inputs with one per
token that is found at run time.
"""
