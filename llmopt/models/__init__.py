"""Decoder models built from a Hugging Face config and safetensors, or from a GGUF file."""
