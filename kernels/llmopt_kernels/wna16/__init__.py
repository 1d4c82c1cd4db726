"""Matrix products with integer weights (2 to 8 bits) and 16-bit floating-point activations."""
