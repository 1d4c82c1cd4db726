"""llama.cpp: its own quantizer of GGUF files, on the CPU."""

from llmopt.quantize.engines.engine import Capability, Engine

LLAMA_CPP = Engine(
    name="llama.cpp",
    environment="llama.cpp",
    worker="llama_cpp_worker.py",
    packages=("llama-cpp-python",),
    capabilities=(
        Capability(
            "gguf",
            "gguf",
            gguf_types=(
                *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
                *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m"),
                *("q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs"),
            ),
        ),
    ),
)
