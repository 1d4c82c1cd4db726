"""AutoAWQ: AWQ, archived by its authors in 2025; slow, but it works on a CPU."""

from llmopt.quantize.engines.engine import Capability, Engine

AUTOAWQ = Engine(
    name="autoawq",
    environment="autoawq",
    worker="autoawq_worker.py",
    packages=("autoawq", "torch", "transformers"),
    capabilities=(
        Capability(
            "awq",
            "awq",
            bits=(4,),
            group_sizes=(32, 64, 128),
            symmetric=(False,),
            needs_calibration=True,
        ),
    ),
)
