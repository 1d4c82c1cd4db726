"""Multiple-choice and last-word tasks by log-likelihood, a model paired with its base."""
