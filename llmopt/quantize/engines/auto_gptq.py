"""AutoGPTQ: GPTQ, archived by its authors in 2025; it refuses to quantize without CUDA."""

from llmopt.quantize.engines.engine import Capability, Engine

AUTO_GPTQ = Engine(
    name="auto-gptq",
    environment="auto-gptq",
    worker="auto_gptq_worker.py",
    packages=("auto-gptq", "torch", "transformers"),
    capabilities=(
        Capability(
            "gptq",
            "gptq",
            bits=(2, 3, 4, 8),
            group_sizes=(32, 64, 128, 256, 512, 1024, None),
            symmetric=(True, False),
            needs_calibration=True,
        ),
    ),
    needs_cuda=True,
)
