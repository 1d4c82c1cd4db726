"""The GPTQ checkpoint layout, versions 1 and 2.

Per linear layer with K inputs, O outputs and G groups (AutoGPTQ; read by transformers, vLLM,
SGLang, TGI, exllama):

    qweight  int32   [K * bits / 32, O]   codes packed along K
    qzeros   int32   [G, O * bits / 32]   zero points packed along O
    scales   float16 [G, O]
    g_idx    int32   [K]                  the group of each input

Version 1 stores each zero point minus one and so cannot hold a zero point of 0; version 2 stores
the zero point itself. Symmetric weights are written as version 1, which every reader takes,
asymmetric ones as version 2. Reading looks at the data as well as at the config, because files
exist that claim version 1 and hold version 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.groups import check_groups, group_index
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight


@dataclass(frozen=True, slots=True)
class GptqFormat:
    """How a GPTQ checkpoint stores its quantized layers (`WeightFormat`)."""

    spec: QuantSpec
    version: int

    limits: ClassVar[str] = "2-, 3-, 4- and 8-bit weights"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    marker: ClassVar[str] = "qweight"
    config_file: ClassVar[str | None] = "quantize_config.json"

    @classmethod
    def for_spec(cls, spec: QuantSpec) -> "GptqFormat | None":
        """The format that writes this spec."""
        return cls(spec, 1 if spec.symmetric else 2)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GptqFormat":
        """From a `quantization_config`; CheckpointError if it is unusable."""
        spec = spec_of_config(config, symmetric=bool(config.get("sym", True)))
        if config.get("dynamic"):
            raise CheckpointError(
                "quantization_config sets 'dynamic' per-layer overrides, which are not supported",
                "Use a checkpoint with one setting for all layers.",
            )
        return cls(spec, 2 if config.get("checkpoint_format") == "gptq_v2" else 1)

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""
        return self.spec.label(method)

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that transformers, vLLM and SGLang read."""
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "bits": self.spec.bits,
            "group_size": self.spec.group_size if self.spec.group_size is not None else -1,
            "sym": self.spec.symmetric,
            "desc_act": False,
            "true_sequential": True,
            "lm_head": False,
            "dynamic": {},
            "meta": {"quantizer": ["llmopt"], "method": method},
        }

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.qweight` and so on."""
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        assert weight.spec == self.spec, "one checkpoint, one spec"
        assert self.spec.symmetric or self.version == 2, "version 1 cannot hold a zero point of 0"
        columns = weight.shape[1]
        zeros = weight.zero_points()
        stored = zeros if self.version == 2 else zeros - 1
        g_idx = weight.g_idx
        if g_idx is None:
            g_idx = torch.arange(columns, dtype=torch.int32) // self.spec.columns_per_group(columns)
        return {
            f"{module}.qweight": pack_words(weight.codes.T, self.spec.bits).contiguous(),
            f"{module}.qzeros": pack_words(stored, self.spec.bits).T.contiguous(),
            f"{module}.scales": weight.scales.T.contiguous(),
            f"{module}.g_idx": g_idx.to(torch.int32),
        }

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> QuantizedWeight:
        """Read one layer. Raises CheckpointError on inconsistent shapes."""
        codes = unpack_words(tensor(f"{module}.qweight"), self.spec.bits).T.contiguous()
        scales = tensor(f"{module}.scales").T.contiguous()
        stored = unpack_words(tensor(f"{module}.qzeros").T.contiguous(), self.spec.bits)
        check_groups(module, codes, scales, stored, self.spec)
        zeros = self._zero_points(stored)
        if self.spec.symmetric and not bool((zeros == self.spec.midpoint).all()):
            raise CheckpointError(
                f"layer {module} is declared symmetric but has zero points other than "
                f"{self.spec.midpoint}",
                "Set sym to false in its quantization_config, or make the checkpoint again.",
            )
        return QuantizedWeight(
            codes=codes,
            scales=scales,
            zeros=None if self.spec.symmetric else zeros,
            g_idx=group_index(module, tensor(f"{module}.g_idx"), self.spec, codes.shape[1]),
            spec=self.spec,
        )

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes in the header."""
        words, rows = shape(f"{module}.qweight")
        return words * 32 // self.spec.bits * rows

    def _zero_points(self, stored: torch.Tensor) -> torch.Tensor:
        """Undo version 1's minus one; symmetric data says by itself whether it was applied."""
        version = self.version
        if self.spec.symmetric and bool((stored == stored.flatten()[0]).all()):
            version = 2 if int(stored.flatten()[0]) == self.spec.midpoint else 1
        if version == 2:
            return stored
        return ((stored.to(torch.int16) + 1) % self.spec.levels).to(torch.uint8)


def spec_of_config(config: Mapping[str, Any], *, symmetric: bool) -> QuantSpec:
    """The spec in the keys `bits` and `group_size` (-1: one group per output row), which GPTQ and
    AWQ share. Raises CheckpointError.
    """
    try:
        bits, group_size = int(config["bits"]), int(config["group_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config has no usable 'bits' and 'group_size' ({error})",
            "Fetch the checkpoint again, or restore quantize_config.json's values in config.json.",
        ) from error
    return QuantSpec(bits, group_size if group_size > 0 else None, symmetric)
