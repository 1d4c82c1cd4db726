"""A recipe: which models, quantizations and loads to compare, as YAML and as frozen data."""
