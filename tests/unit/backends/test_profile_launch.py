"""The command lines that start servers, word for word."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.backends.profiles.launch import ContainerSteps, LaunchCommand, LaunchRequest
from llmopt.backends.profiles.registry import PROFILES, find_profile
from llmopt.errors import UsageError

CPU = LaunchRequest(
    program="PROGRAM",
    checkpoint=Path("/models/a model"),
    quantization=None,
    model_name="m",
    port=8123,
    context_length=2048,
    num_parallel=16,
    dtype="bfloat16",
    device="cpu",
    num_threads=2,
    processors=(2, 3),
)
GPU = replace(CPU, device="cuda", num_threads=None, processors=())
GGUF = replace(CPU, checkpoint=Path("/models/m.gguf"), quantization="gguf")


def launch(name: str, request: LaunchRequest) -> LaunchCommand:
    launcher = PROFILES[name].launch
    assert launcher is not None
    return launcher(request)


def container(name: str, request: LaunchRequest) -> ContainerSteps:
    steps = PROFILES[name].container
    assert steps is not None
    return steps(replace(request, program="docker"))


@pytest.mark.parametrize(
    ("name", "request_", "line"),
    [
        (
            "vllm",
            CPU,
            "HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 "
            "VLLM_CPU_OMP_THREADS_BIND=2,3 VLLM_CPU_NUM_OF_RESERVED_CPU=0 "
            "PROGRAM serve '/models/a model' --host 127.0.0.1 --port 8123 --served-model-name m "
            "--dtype bfloat16 --max-model-len 2048 --max-num-seqs 16 "
            "--enable-prompt-tokens-details --disable-uvicorn-access-log "
            "--kv-cache-memory-bytes 4294967296",
        ),
        (
            "vllm",
            replace(GPU, quantization="gptq", dtype="float16", extra_args=("--enforce-eager",)),
            "HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 "
            "PROGRAM serve '/models/a model' --host 127.0.0.1 --port 8123 --served-model-name m "
            "--dtype float16 --max-model-len 2048 --max-num-seqs 16 "
            "--enable-prompt-tokens-details --disable-uvicorn-access-log --enforce-eager",
        ),
        (
            "sglang",
            GPU,
            "HF_HUB_OFFLINE=1 PROGRAM -m sglang.launch_server --model-path '/models/a model' "
            "--host 127.0.0.1 --port 8123 --served-model-name m --dtype bfloat16 --device cuda "
            "--context-length 2048 --max-running-requests 16 "
            "--enable-metrics --enable-cache-report --log-level-http warning",
        ),
        (
            "sglang",
            replace(GGUF, tokenizer=Path("/models/m")),
            "HF_HUB_OFFLINE=1 SGLANG_USE_CPU_ENGINE=1 SGLANG_CPU_OMP_THREADS_BIND=2,3 "
            "PROGRAM -m sglang.launch_server --model-path /models/m.gguf "
            "--host 127.0.0.1 --port 8123 --served-model-name m --dtype bfloat16 --device cpu "
            "--context-length 2048 --max-running-requests 16 "
            "--enable-metrics --enable-cache-report --log-level-http warning "
            "--load-format gguf --quantization gguf --tokenizer-path /models/m",
        ),
        (
            "llama-server",
            GGUF,
            "PROGRAM -m /models/m.gguf --alias m --host 127.0.0.1 --port 8123 -c 32768 -np 16 "
            "-t 2 -tb 2 --device none --metrics --no-webui --offline",
        ),
        (
            "llama-server",
            replace(GGUF, device="cuda", num_threads=None, extra_args=("-fa", "on")),
            "PROGRAM -m /models/m.gguf --alias m --host 127.0.0.1 --port 8123 -c 32768 -np 16 "
            "-ngl 999 --metrics --no-webui --offline -fa on",
        ),
        (
            "trtllm",
            GPU,
            "HF_HUB_OFFLINE=1 PROGRAM '/models/a model' --backend pytorch --host 127.0.0.1 "
            "--port 8123 --max_batch_size 16 --max_seq_len 2048 --max_num_tokens 8192 "
            "--log_level warning",
        ),
        (
            "lmdeploy",
            replace(GPU, quantization="awq", dtype="float16"),
            "HF_HUB_OFFLINE=1 PROGRAM serve api_server '/models/a model' --server-name 127.0.0.1 "
            "--server-port 8123 --model-name m --dtype float16 --session-len 2048 "
            "--max-batch-size 16 --log-level WARNING --model-format awq",
        ),
        (
            "lmdeploy",
            CPU,
            "HF_HUB_OFFLINE=1 PROGRAM serve api_server '/models/a model' --server-name 127.0.0.1 "
            "--server-port 8123 --model-name m --dtype bfloat16 --session-len 2048 "
            "--max-batch-size 16 --log-level WARNING --backend pytorch --device cpu",
        ),
    ],
)
def test_the_command(name, request_, line):
    assert launch(name, request_).shell_line == line


@pytest.mark.parametrize("quantization", ["gptq", "awq", "compressed-tensors", "fp8"])
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_format_that_the_checkpoint_names_is_not_named_again(name, quantization):
    command = launch(name, replace(GPU, quantization=quantization))
    assert "--quantization" not in command.arguments
    assert command == launch(name, GPU)


def test_a_cache_on_a_cpu_is_as_large_as_it_has_to_be():
    arguments = launch("vllm", replace(CPU, kv_cache_bytes=1234)).arguments
    assert arguments[-2:] == ("--kv-cache-memory-bytes", "1234")
    gpu = launch("vllm", replace(GPU, kv_cache_bytes=1234)).arguments
    assert "--kv-cache-memory-bytes" not in gpu


def test_weights_of_bitsandbytes():
    arguments = launch("sglang", replace(GPU, quantization="bitsandbytes")).arguments
    assert arguments[-4:] == ("--load-format", "bitsandbytes", "--quantization", "bitsandbytes")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": "float32"}, "float32"), ({"quantization": "bitsandbytes"}, "bitsandbytes")],
)
def test_what_lmdeploy_cannot(change, reason):
    with pytest.raises(UsageError, match=reason):
        launch("lmdeploy", replace(GPU, **change))


@pytest.mark.parametrize("name", [name for name, p in PROFILES.items() if p.launch is not None])
def test_a_server_listens_on_this_machine_only_and_has_its_program(name):
    command = launch(name, replace(GGUF if name == "llama-server" else GPU, extra_args=("--x",)))
    assert "127.0.0.1" in command.arguments
    assert "0.0.0.0" not in command.shell_line
    assert (command.arguments[0], command.arguments[-1]) == ("PROGRAM", "--x")
    assert PROFILES[name].program


def test_ollama_in_a_container():
    steps = container("ollama", GGUF)
    assert steps.files == {
        "/models/Modelfile": "FROM ./m.gguf\nPARAMETER num_ctx 2048\n"
        "PARAMETER num_thread 2\nPARAMETER num_gpu 0\n"
    }
    assert steps.shell_lines == (
        "cat > /models/Modelfile <<'END'\n"
        "FROM ./m.gguf\nPARAMETER num_ctx 2048\nPARAMETER num_thread 2\nPARAMETER num_gpu 0\n"
        "END\n"
        "docker run --detach --rm --name llmopt-ollama --publish 127.0.0.1:8123:11434 "
        "--volume /models:/checkpoint:ro --env OLLAMA_NUM_PARALLEL=16 "
        "--env OLLAMA_CONTEXT_LENGTH=2048 --env OLLAMA_KEEP_ALIVE=-1 "
        "--env OLLAMA_MAX_LOADED_MODELS=1 ollama/ollama:0.33.3\n"
        "docker exec llmopt-ollama ollama create m --file /checkpoint/Modelfile"
    )


def test_ollama_with_safetensors_on_a_gpu():
    steps = container("ollama", GPU)
    assert steps.files == {"/models/a model/Modelfile": "FROM .\nPARAMETER num_ctx 2048\n"}
    assert "--gpus all" in steps.shell_lines
    assert "'/models/a model:/checkpoint:ro'" in steps.shell_lines


def test_tgi_in_a_container():
    image = "ghcr.io/huggingface/text-generation-inference:3.3.5"
    assert container("tgi", GPU).shell_lines == (
        "docker run --rm --shm-size 1g --gpus all --publish 127.0.0.1:8123:80 "
        f"--volume '/models/a model:/model:ro' --env HF_HUB_OFFLINE=1 {image} "
        "--model-id /model --dtype bfloat16 --max-input-tokens 2047 --max-total-tokens 2048 "
        "--max-batch-size 16 --usage-stats off"
    )
    on_cpu = container("tgi", replace(CPU, quantization="gptq")).shell_lines
    assert f"{image}-intel-cpu --model-id /model --max-input-tokens" in on_cpu
    assert on_cpu.endswith("--usage-stats off --cuda-graphs 0")


def test_trtllm_in_a_container():
    assert container("trtllm", replace(GPU, extra_args=("--tp_size", "2"))).shell_lines == (
        "docker run --rm --ipc host --gpus all --ulimit memlock=-1 --ulimit stack=67108864 "
        "--publish 127.0.0.1:8123:8000 --volume '/models/a model:/model:ro' "
        "--env HF_HUB_OFFLINE=1 nvcr.io/nvidia/tensorrt-llm/release:1.2.1 "
        "trtllm-serve /model --backend pytorch --host 0.0.0.0 --port 8000 --max_batch_size 16 "
        "--max_seq_len 2048 --max_num_tokens 8192 --log_level warning --tp_size 2"
    )


def test_a_name_that_is_none():
    assert find_profile("vllm").name == "vllm"
    with pytest.raises(UsageError, match=r"there is no server 'vlm'.*vllm, sglang"):
        find_profile("vlm")
