"""What an engine of others can do, as data, and the check of a request against it.

Knows nothing of processes or files. The law: what an engine cannot do is refused before anything
is started, in words that say what it can.
"""

from dataclasses import dataclass

from llmopt.errors import QuantizationError, UsageError
from llmopt.quantize.engines.request import EngineMethod, EngineRequest
from llmopt.quantize.options import FileFormat


@dataclass(frozen=True, slots=True)
class Capability:
    """One method of an engine, and the settings that it takes.

    format: the checkpoint format that comes out
    bits, symmetric: the choices there are; none for a method that has no such setting
    group_sizes: likewise; the choice None is one group per output channel
    gguf_types: for "gguf"
    needs_calibration: whether it looks at data
    """

    method: EngineMethod
    format: FileFormat
    bits: tuple[int, ...] = ()
    group_sizes: tuple[int | None, ...] = ()
    symmetric: tuple[bool, ...] = ()
    gguf_types: tuple[str, ...] = ()
    double_quant: bool = False
    needs_calibration: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """A quantizer of others.

    environment: name of the environment that it runs in
    worker: file name of the script that drives it, in `workers/`
    packages: distributions whose versions are recorded
    needs_cuda: whether it refuses to work without
    """

    name: str
    environment: str
    worker: str
    packages: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    needs_cuda: bool = False

    @property
    def methods(self) -> tuple[EngineMethod, ...]:
        """The methods that it offers."""
        return tuple(capability.method for capability in self.capabilities)

    def capability(self, method: str) -> Capability:
        """Return what is known of one method; `QuantizationError` lists those there are."""
        for capability in self.capabilities:
            if capability.method == method:
                return capability
        raise QuantizationError(
            f"{self.name} has no method {method}", f"It offers {', '.join(self.methods)}."
        )

    def check(self, request: EngineRequest) -> None:
        """Raise `QuantizationError` or `UsageError` unless the engine can do what is asked."""
        capability = self.capability(request.method)
        self._check_spec(capability, request)
        if capability.gguf_types and request.gguf_type not in capability.gguf_types:
            raise QuantizationError(
                f"{self.name} makes no GGUF file of the type {request.gguf_type}",
                f"Choose one of {', '.join(capability.gguf_types)}.",
            )
        if request.double_quant and not capability.double_quant:
            raise QuantizationError(
                f"{request.method} of {self.name} has no scales to quantize a second time",
                "Leave double quantization out.",
            )
        if capability.needs_calibration and request.calibration is None:
            raise UsageError(
                f"{request.method} of {self.name} needs calibration tokens",
                "Give calibration data.",
            )

    def _check_spec(self, capability: Capability, request: EngineRequest) -> None:
        spec, method = request.spec, f"{request.method} of {self.name}"
        if not capability.bits:
            return
        if spec is None:
            raise UsageError(f"{method} needs a number of bits", "Give bits and a group size.")
        if spec.bits not in capability.bits:
            raise QuantizationError(
                f"{method} makes no {spec.bits}-bit weights", f"Choose {_either(capability.bits)}."
            )
        if spec.group_size not in capability.group_sizes:
            given = "one group per channel" if spec.group_size is None else str(spec.group_size)
            raise QuantizationError(
                f"{method} takes no group size of {given}",
                f"Choose {_either(_groups(capability.group_sizes))}.",
            )
        if spec.symmetric not in capability.symmetric:
            kind = "symmetric" if spec.symmetric else "asymmetric"
            raise QuantizationError(
                f"{method} makes no {kind} weights",
                f"Ask for {'asymmetric' if spec.symmetric else 'symmetric'} ones.",
            )


def _groups(sizes: tuple[int | None, ...]) -> tuple[str, ...]:
    return tuple("one group per channel" if size is None else str(size) for size in sizes)


def _either(choices: tuple[object, ...]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}" if first else last
