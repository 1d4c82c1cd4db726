"""Matrix product with 4- or 8-bit weights and inputs rounded to int8, token by token and step by
step.
"""
