"""Matrix product with a bfloat16 weight and inputs rounded to bfloat16, summed in float32."""
