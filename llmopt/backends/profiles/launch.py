"""How a server is started: what is wanted of it, and the command that says so.

Data only. The law: the same request gives the same command, and everything that decides what is
measured (context, parallel requests, dtype, threads) is said in it, so that no default does.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """One model to serve on this machine's loopback address.

    program: the executable; which one, says the profile's `program`, such as "vllm" or "python"
    checkpoint: a directory of safetensors, or a GGUF file
    quantization: None for full precision, "gguf", or the `quant_method` of the checkpoint's
        `config.json` ("gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8")
    model_name: what requests call the model
    context_length: tokens that prompt and answer of one request have together at most
    num_parallel: requests that are computed at once; more wait
    dtype: "float32", "bfloat16" or "float16"
    device: "cpu" or "cuda"
    num_threads: of the computation on a CPU; None: the server's own choice
    processors: to keep those threads on, one each, for servers that would else take any
    kv_cache_bytes: what `num_parallel` requests of `context_length` need in the cache, for servers
        that would else take most of a computer's memory; None: not known
    tokenizer: a directory with `config.json` and the tokenizer, for servers that a GGUF file alone
        is not enough for
    extra_args: of the user, after all others, so that they win
    """

    program: str
    checkpoint: Path
    quantization: str | None
    model_name: str
    port: int
    context_length: int
    num_parallel: int
    dtype: str
    device: str
    num_threads: int | None = None
    processors: tuple[int, ...] = ()
    kv_cache_bytes: int | None = None
    tokenizer: Path | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """Arguments, the executable first, and the environment variables that are set beside them."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def shell_line(self) -> str:
        """As one would type it."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


@dataclass(frozen=True, slots=True)
class ContainerSteps:
    """What is done by hand where no package registry has the server.

    files: contents by name, to be written into the directory of the checkpoint
    commands: run one after the other
    """

    commands: tuple[tuple[str, ...], ...]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def shell_lines(self) -> str:
        """As one would type it, the files as here-documents."""
        written = [
            f"cat > {shlex.quote(name)} <<'END'\n{text}END" for name, text in self.files.items()
        ]
        return "\n".join([*written, *(shlex.join(command) for command in self.commands)])
