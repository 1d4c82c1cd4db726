"""bitsandbytes: NF4, FP4 and LLM.int8, on CPU and GPU."""

from llmopt.quantize.engines.engine import Capability, Engine

BITSANDBYTES = Engine(
    name="bitsandbytes",
    environment="bitsandbytes",
    worker="bitsandbytes_worker.py",
    packages=("bitsandbytes", "torch", "transformers"),
    capabilities=(
        Capability("nf4", "bitsandbytes", double_quant=True),
        Capability("fp4", "bitsandbytes", double_quant=True),
        Capability("int8", "bitsandbytes"),
    ),
)
