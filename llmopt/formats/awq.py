"""The AWQ checkpoint layout "GEMM" (AutoAWQ; read by transformers, vLLM, SGLang, TGI).

Per linear layer with K inputs, O outputs and G groups, 4 bits only:

    qweight  int32   [K, O / 8]   codes packed along O
    qzeros   int32   [G, O / 8]   zero points as they are, packed the same way
    scales   float16 [G, O]

Word c holds the outputs 8c .. 8c + 7, its nibble i (lowest first) output 8c + ORDER[i]. There is no
g_idx: input k is in group k // group_size. Symmetric weights are stored with the zero point 8,
because readers differ in what they make of a file without zero points. All quantized layers have
one setting; those that are left alone are named in the config's `modules_to_not_convert`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.dynamic import WeightSpec
from llmopt.formats.gptq import spec_of_config
from llmopt.formats.groups import check_groups, read_matrix
from llmopt.formats.overrides import ALL_ALIKE, LM_HEAD, Layers, unquantized
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD = len(ORDER)  # outputs in a word


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """How an AWQ checkpoint stores its quantized layers (`WeightFormat`).

    skipped: the modules that are left alone, for the config; which ones really are is read from
        the tensors
    """

    spec: QuantSpec
    skipped: tuple[str, ...] = (LM_HEAD,)

    limits: ClassVar[str] = "4-bit weights in groups of one size, and no output head"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    marker: ClassVar[str] = "qweight"
    config_file: ClassVar[str | None] = None

    @classmethod
    def for_spec(cls, spec: WeightSpec, layers: Layers = ALL_ALIKE) -> "AwqFormat | None":
        """The format that writes this spec for all of `layers` but skipped ones; None if AWQ
        cannot.
        """
        if not isinstance(spec, QuantSpec) or spec.bits != BITS or spec.group_size is None:
            return None
        if any(setting not in (None, spec) for setting in layers.values()):
            return None
        return None if layers.get(LM_HEAD) is not None else cls(spec, tuple(unquantized(layers)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AwqFormat":
        """From a `quantization_config`; CheckpointError if it is unusable.

        Whether a layer is symmetric is decided by its zero points: `sym` only says where to expect
        it, since files exist that set it without meaning it.
        """
        version = str(config.get("version", config.get("format", "gemm"))).lower()
        names = {"w_bit": "bits", "q_group_size": "group_size"}  # of the older quant_config.json
        renamed = {names.get(key, key): value for key, value in config.items()}
        spec = spec_of_config(renamed, symmetric=config.get("sym") is True)
        if version != "gemm" or spec.bits != BITS or config.get("zero_point", True) is not True:
            raise CheckpointError(
                f"AWQ checkpoints of version {version} with {spec.bits} bits and zero_point "
                f"{config.get('zero_point', True)} are not supported",
                "Use one of version gemm with 4 bits and zero points.",
            )
        return cls(spec, tuple(map(str, config.get("modules_to_not_convert") or ())))

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""
        return self.spec.label(method)

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that AutoAWQ, transformers and vLLM read."""
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": self.spec.group_size if self.spec.group_size is not None else -1,
            "zero_point": True,
            "sym": self.spec.symmetric,
            "modules_to_not_convert": list(self.skipped),
            "meta": {"quantizer": ["llmopt"], "method": method},
        }

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.qweight` and so on."""
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        assert weight.spec == self.spec, "one checkpoint, one spec"
        assert weight.g_idx is None, "the layout has no g_idx"
        return {
            f"{module}.qweight": pack_words(_shuffle(weight.codes), BITS).T.contiguous(),
            f"{module}.qzeros": pack_words(_shuffle(weight.zero_points()), BITS).T.contiguous(),
            f"{module}.scales": weight.scales.T.contiguous(),
        }

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> QuantizedWeight:
        """Read one layer. Raises CheckpointError on inconsistent shapes."""
        codes, zeros = (
            _unshuffle(unpack_words(read_matrix(module, part, tensor).T.contiguous(), BITS))
            for part in ("qweight", "qzeros")
        )
        scales = read_matrix(module, "scales", tensor).T.contiguous()
        check_groups(module, codes, scales, zeros, self.spec)
        symmetric = self.spec.symmetric and bool((zeros == self.spec.midpoint).all())
        spec = QuantSpec(BITS, self.spec.group_size, symmetric)
        return QuantizedWeight(codes, scales, None if symmetric else zeros, None, spec)

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes in the header."""
        columns, words = shape(f"{module}.qweight")
        return columns * words * _WORD


def _shuffle(rows: torch.Tensor) -> torch.Tensor:
    """Bring each run of 8 rows of [O, X] into the order in which a word holds them."""
    return rows.view(-1, _WORD, rows.shape[1])[:, list(ORDER)].reshape(rows.shape)


def _unshuffle(rows: torch.Tensor) -> torch.Tensor:
    """Invert `_shuffle`."""
    inverse = [ORDER.index(i) for i in range(_WORD)]
    return rows.view(-1, _WORD, rows.shape[1])[:, inverse].reshape(rows.shape)
