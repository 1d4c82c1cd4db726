"""The profiles by the names that users know."""

from llmopt.backends.profiles.llama_server import LLAMA_SERVER
from llmopt.backends.profiles.lmdeploy import LMDEPLOY
from llmopt.backends.profiles.ollama import OLLAMA
from llmopt.backends.profiles.openai import OPENAI, OPENAI_STRICT
from llmopt.backends.profiles.openvino import OPENVINO
from llmopt.backends.profiles.profile import ServerProfile
from llmopt.backends.profiles.sglang import SGLANG
from llmopt.backends.profiles.tgi import TGI
from llmopt.backends.profiles.trtllm import TRTLLM
from llmopt.backends.profiles.vllm import VLLM
from llmopt.errors import UsageError

PROFILES = {
    profile.name: profile
    for profile in (
        VLLM,
        SGLANG,
        LLAMA_SERVER,
        OLLAMA,
        TGI,
        TRTLLM,
        LMDEPLOY,
        OPENVINO,
        OPENAI,
        OPENAI_STRICT,
    )
}


def find_profile(name: str) -> ServerProfile:
    """Return the profile of a name; UsageError lists the names there are."""
    if name not in PROFILES:
        raise UsageError(f"there is no server {name!r}", f"Choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]
