"""GPTQModel: GPTQ and AWQ, on CPU and GPU."""

from llmopt.quantize.engines.engine import Capability, Engine

GPTQMODEL = Engine(
    name="gptqmodel",
    environment="gptqmodel",
    worker="gptqmodel_worker.py",
    packages=("gptqmodel", "torch", "transformers"),
    capabilities=(
        Capability(
            "gptq",
            "gptq",
            bits=(2, 3, 4, 8),
            group_sizes=(16, 32, 64, 128, 256, 512, 1024, None),
            symmetric=(True, False),
            needs_calibration=True,
        ),
        Capability(
            "awq",
            "awq",
            bits=(4,),
            group_sizes=(16, 32, 64, 128),
            symmetric=(True, False),
            needs_calibration=True,
        ),
    ),
)
