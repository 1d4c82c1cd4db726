"""Building blocks of decoder models; each knows tensors, none knows a model or an engine."""
