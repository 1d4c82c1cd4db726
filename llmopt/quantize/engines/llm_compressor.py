"""llm-compressor: GPTQ, W8A8 and FP8 in the compressed-tensors format, on CPU and GPU."""

from llmopt.quantize.engines.engine import Capability, Engine

LLM_COMPRESSOR = Engine(
    name="llm-compressor",
    environment="llm-compressor",
    worker="llm_compressor_worker.py",
    packages=("llmcompressor", "compressed-tensors", "torch", "transformers"),
    capabilities=(
        Capability(
            "gptq",
            "compressed-tensors",
            bits=(4, 8),
            group_sizes=(32, 64, 128, 256, None),
            symmetric=(True, False),
            needs_calibration=True,
        ),
        Capability("w8a8", "compressed-tensors", needs_calibration=True),
        Capability("fp8", "compressed-tensors"),
    ),
)
