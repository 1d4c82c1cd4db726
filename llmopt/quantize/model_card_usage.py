"""How each engine is told to run a quantized checkpoint.

Data only: one template per engine, and the flags that a format needs there.
"""

import shlex
from collections.abc import Iterator, Sequence

_COMMANDS = {
    "vLLM": ("bash", "vllm serve {path}{flags}"),
    "SGLang": ("bash", "python -m sglang.launch_server --model-path {path}{flags}"),
    "transformers": (
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "tokenizer = AutoTokenizer.from_pretrained({where}{flags})\n"
        "model = AutoModelForCausalLM.from_pretrained({where}{flags})",
    ),
    "gptqmodel": (
        "python",
        "from gptqmodel import GPTQModel\n\nmodel = GPTQModel.load({where})",
    ),
    "llama.cpp": ("bash", "llama-cli --model {path}"),
    "Ollama": ("bash", "echo {modelfile} > Modelfile\nollama create {model} -f Modelfile"),
    "TGI": ("bash", "text-generation-launcher --model-id {path}{flags}"),
}
_FLAGS = {
    ("vLLM", "gguf"): " --tokenizer {base}",
    ("SGLang", "bitsandbytes"): " --load-format bitsandbytes",
    ("SGLang", "gguf"): " --load-format gguf --tokenizer-path {base}",
    ("transformers", "gguf"): ", gguf_file={file}",
    ("TGI", "gptq"): " --quantize gptq",
    ("TGI", "awq"): " --quantize awq",
    ("TGI", "compressed-tensors"): " --quantize compressed-tensors",
}


def usage(
    format: str, name: str, base_model: str, engines: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """(engine, language, code) for llmopt and for each of the engines.

    name: the checkpoint's directory or, for "gguf", its file; base_model: where its tokenizer is
    """
    path = shlex.quote(f"./{name}")
    yield "llmopt", "bash", f"llmopt generate {path} --prompt 'Once upon a time'"
    for engine in engines:
        language, template = _COMMANDS[engine]
        facts = {
            "path": path,
            "where": repr("." if format == "gguf" else f"./{name}"),
            "file": repr(name),
            "modelfile": shlex.quote(f"FROM ./{name}"),
            "model": shlex.quote(name.removesuffix(".gguf").lower()),
            "base": shlex.quote(base_model),
        }
        flags = _FLAGS.get((engine, format), "").format(**facts)
        yield engine, language, template.format(**facts, flags=flags)
