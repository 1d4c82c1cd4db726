"""The quantized checkpoint on disk: written, then read back and compared.

Knows formats and files; knows nothing of how codes were chosen.
Law: what is reported as written was read again from the disk and is what was intended.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmopt.errors import OutputError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.quantized import StoredWeight
from llmopt.formats.weights import WeightFormat, quantized_weights
from llmopt.quantize.options import ModuleRecord, QuantizedModule, QuantizeOptions
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread

RECORD_FILE = "quantization.json"


class QuantizedOutput:
    """Adds modules to a checkpoint writer and remembers what they must read back as."""

    def __init__(self, writer: CheckpointWriter, weight_format: WeightFormat) -> None:
        self._writer = writer
        self._format = weight_format
        self._digests: dict[str, str] = {}  # of quantized modules
        self._replaced: dict[str, str] = {}  # digests of tensors that differ from the source's
        self._num_weights = 0
        self._num_bytes = 0
        self.records: list[ModuleRecord] = []

    @single_thread()
    def add(self, module: QuantizedModule) -> None:
        """Pack one module. Raises `QuantizationError` if it would dequantize to NaN or infinity."""
        name = module.record.name
        check_finite(f"the quantized {name}", module.weight.dequantize())
        for tensor_name, tensor in self._format.pack(name, module.weight).items():
            self._writer.add(tensor_name, tensor)
            self._num_bytes += tensor.nbytes
        self._num_weights += module.weight.codes.numel()
        self._digests[name] = _digest(module.weight)
        self.records.append(module.record)

    def replace(self, name: str, tensor: torch.Tensor) -> None:
        """Write an unquantized tensor of the source changed, in the dtype of `tensor`, which must
        be finite (`QuantizationError`).
        """
        check_finite(f"the new {name}", tensor)
        self._writer.add(name, tensor)
        self._replaced[name] = _sha256(tensor)

    def copy_rest(self, source: CheckpointReader) -> None:
        """Copy every tensor that was not quantized or replaced, bit for bit, and the tokenizer."""
        for name in self._copied_names(source):
            self._writer.add(name, source.tensor(name))
        self._writer.copy_tokenizer(source.path)

    def write_configs(self, source: CheckpointReader, options: QuantizeOptions) -> None:
        """Write config.json, the format's own config file and the record of this run."""
        config = self._format.config(options.method)
        self._writer.set_config({**source.config, "quantization_config": config})
        if self._format.config_file is not None:
            self._writer.add_json(self._format.config_file, config)
        self._writer.add_json(RECORD_FILE, _run_record(source, options, self.records))

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk of the quantized modules per weight in them."""
        return 8 * self._num_bytes / self._num_weights

    @single_thread()
    def verify(self, written: CheckpointReader, source: CheckpointReader) -> None:
        """Read everything again; raise `OutputError` unless it is what was intended."""
        weights = quantized_weights(written)
        assert weights is not None, "the config was written"
        for name, digest in self._digests.items():
            if _digest(weights.weight(name)) != digest:
                raise _differs(written.path, name)
        for name, digest in self._replaced.items():
            if _sha256(written.tensor(name)) != digest:
                raise _differs(written.path, name)
        for name in self._copied_names(source):
            if not torch.equal(_bits(written.tensor(name)), _bits(source.tensor(name))):
                raise _differs(written.path, name)

    def _copied_names(self, source: CheckpointReader) -> Iterator[str]:
        changed = {f"{name}.weight" for name in self._digests} | self._replaced.keys()
        return (name for name in source.names() if name not in changed)


def hash_files(files: list[Path]) -> str:
    """Return one SHA-256 over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _run_record(
    source: CheckpointReader, options: QuantizeOptions, records: list[ModuleRecord]
) -> Mapping[str, Any]:
    data = options.calibration
    return {
        "method": options.method,
        "scheme": options.spec.label(options.method),
        "format": options.format,
        "source": {"name": source.path.name, "sha256": hash_files(source.files)},
        "spec": asdict(options.spec),
        "gptq": asdict(options.gptq) if options.uses_gptq else None,
        "awq": asdict(options.awq) if options.uses_awq else None,
        "calibration": {
            "text": data.source,
            "text_sha256": data.text_sha256,
            "num_samples": data.num_samples,
            "sample_tokens": data.sample_tokens,
            "seed": data.seed,
        }
        if options.needs_calibration and data is not None
        else None,
        "modules": [asdict(record) for record in records],
    }


def _digest(weight: StoredWeight) -> str:
    return _sha256(weight.dequantize())


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bits(tensor).numpy().tobytes()).hexdigest()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as bytes, so that equal means bit for bit."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _differs(path: Path, name: str) -> OutputError:
    return OutputError(
        f"{path}: {name} does not read back as it was written",
        "The disk or the memory is faulty; remove the directory and quantize again.",
    )
