"""Decoder models built from a Hugging Face config and safetensors."""
