"""What a quantized model lost against its base: paired per token, with confidence intervals."""
