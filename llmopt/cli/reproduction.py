"""The command that makes a checkpoint again, for its model card.

Knows the options of `llmopt quantize`; runs nothing. The law: the command makes this one checkpoint
whatever others were made beside it, and names no directory of this machine.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.models.package_model import PACKAGE_MODELS
from llmopt.models.resolve import HUB_ID
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.calibration_source import BUNDLED
from llmopt.quantize.options import Job
from llmopt.quantize.scheme import Scheme

OWN_ENGINE = "llmopt"


@dataclass(frozen=True, slots=True)
class Origin:
    """What was typed, besides the scheme.

    model, overrides: as given; calibration: None where no method looks at data
    """

    model: str
    calibration: CalibrationData | None = None
    overrides: Sequence[str] = ()
    device: str = "cpu"
    engine: str = OWN_ENGINE

    @property
    def base_model(self) -> str:
        """The hub id or alias of the source, or the name of its directory."""
        return self.model if _is_public(self.model) else Path(self.model).absolute().name

    def command(self, job: Job, name: str) -> str:
        """The command that makes the checkpoint of `job` in a directory `name`."""
        model = self.base_model if _is_public(self.model) else f"./{self.base_model}"
        words = ["llmopt", "quantize", model, "--out", name]
        words += _scheme_words(job.scheme)
        if self.engine != OWN_ENGINE:
            words += ["--engine", self.engine]
        elif job.scheme.spec is not None:
            words += ["--format", job.format]
        words += [word for override in self.overrides for word in ("--override", override)]
        if self.engine == OWN_ENGINE:
            words += _method_words(job)
        if job.gguf_pre is not None:
            words += ["--gguf-pre", job.gguf_pre]
        if job.scheme.needs_calibration and self.calibration is not None:
            words += _calibration_words(self.calibration)
        if self.device != "cpu":
            words += ["--device", self.device]
        return shlex.join(words)


def _is_public(model: str) -> bool:
    if model in PACKAGE_MODELS:
        return True
    return HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _scheme_words(scheme: Scheme) -> list[str]:
    words = ["--method", scheme.method]
    if scheme.spec is not None:
        size = scheme.spec.group_size
        words += [
            "--bits",
            str(scheme.spec.bits),
            "--group-size",
            str(-1 if size is None else size),
        ]
        words += ["--asymmetric"] * (not scheme.spec.symmetric)
    if scheme.mix is not None:
        words += ["--mix", scheme.mix]
    return words + ["--double-quant"] * scheme.double_quant


def _method_words(job: Job) -> list[str]:
    words = []
    if job.scheme.uses_gptq:
        words += ["--damping", f"{job.gptq.damping:g}"]
    if job.scheme.uses_gptq or job.scheme.uses_awq:
        words += ["--no-propagate"] * (not job.propagate)
    words += ["--lm-head"] * job.lm_head
    return words


def _calibration_words(data: CalibrationData) -> list[str]:
    source = BUNDLED if data.source.startswith(f"{BUNDLED}:") else data.source
    words = ["--calibration", source, "--samples", str(data.num_samples)]
    return [*words, "--sample-tokens", str(data.sample_tokens), "--seed", str(data.seed)]
