"""The engines of others that `--engine` names."""

from llmopt.errors import UsageError
from llmopt.quantize.engines.auto_gptq import AUTO_GPTQ
from llmopt.quantize.engines.autoawq import AUTOAWQ
from llmopt.quantize.engines.bitsandbytes import BITSANDBYTES
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.gptqmodel import GPTQMODEL
from llmopt.quantize.engines.llama_cpp import LLAMA_CPP
from llmopt.quantize.engines.llm_compressor import LLM_COMPRESSOR

ENGINES = (GPTQMODEL, BITSANDBYTES, LLM_COMPRESSOR, AUTOAWQ, AUTO_GPTQ, LLAMA_CPP)


def find_engine(name: str) -> Engine:
    """Return the engine of a name; `UsageError` lists the names there are."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    names = ", ".join(engine.name for engine in ENGINES)
    raise UsageError(f"there is no engine {name!r}", f"Choose one of {names}.")
