"""The proof of a checkpoint before it gets its name: it runs, and it is known who else takes it.

Knows the runtime, the portability rules and the model card; knows nothing of how weights were
quantized. The law: a checkpoint that does not generate in our own runtime is not published, and
what could not be tried is said.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

from llmopt import __version__
from llmopt.cli.reproduction import Origin
from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import CheckpointError, EngineError, QuantizationError, UsageError
from llmopt.formats.checkpoint import read_json
from llmopt.formats.portability import Verdict, check_portability
from llmopt.formats.staging import output_errors, sync
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.inspection import WrittenCheckpoint
from llmopt.quantize.model_card import (
    CalibrationFacts,
    CardFacts,
    SmokeTest,
    model_card,
    source_license,
)
from llmopt.quantize.options import QuantizeObserver
from llmopt.quantize.output import RECORD_FILE

CARD_FILE = "README.md"
PROMPT = "The first thing to know about the sea is"
_TOKENS = 24
_CACHE_BLOCKS = 16  # of 16 tokens: prompt and answer, whatever the tokenizer
_MEMORY_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. smoke: None where it could not run; notes: what could not be done, and why"""

    verdicts: tuple[Verdict, ...]
    smoke: SmokeTest | None
    notes: tuple[str, ...] = ()


class Prover:
    """Tries checkpoints, writes their model cards, and keeps the proofs by scheme (`Inspector`).

    findings: of the linter of the calibration data, for the cards
    """

    def __init__(
        self, origin: Origin, observer: QuantizeObserver, findings: tuple[str, ...] = ()
    ) -> None:
        self.proofs: dict[str, Proof] = {}
        self._origin = origin
        self._observer = observer
        self._findings = findings

    def __call__(self, written: WrittenCheckpoint, /) -> None:
        """Raise `QuantizationError` if the checkpoint does not generate."""
        label = written.summary.scheme
        self._observer.stage_started(f"try {label}")
        notes: list[str] = []
        smoke = _try_smoke(written, notes)
        verdicts = _try_portability(written, notes)
        proof = Proof(verdicts, smoke, tuple(notes))
        card = written.directory / CARD_FILE
        with output_errors(card):
            card.write_text(model_card(self._facts(written, proof)), encoding="utf-8")
            sync(card)
        for note in notes:
            self._observer.note(f"{label}: {note}")
        self.proofs[label] = proof

    def _facts(self, written: WrittenCheckpoint, proof: Proof) -> CardFacts:
        job, summary, name = written.job, written.summary, written.summary.out.name
        by_ours = written.made_with is None
        return CardFacts(
            name=name if job.format != "gguf" else resolve_model(str(written.directory)).name,
            base_model=self._origin.base_model,
            method=job.scheme.method,
            scheme=summary.scheme,
            format=job.format,
            bits_per_weight=summary.bits_per_weight,
            source_bytes=written.source_bytes,
            file_bytes=summary.file_bytes,
            source_sha256=written.source_sha256,
            command=self._origin.command(job, name),
            version=__version__ if by_ours else f"{__version__}, {written.made_with}",
            modules=summary.modules,
            verdicts=proof.verdicts,
            calibration=self._calibration() if _was_calibrated(written) else None,
            damping=job.gptq.damping if by_ours and job.scheme.uses_gptq else None,
            smoke=proof.smoke,
            license=source_license(written.source),
        )

    def _calibration(self) -> CalibrationFacts | None:
        data = self._origin.calibration
        if data is None:
            return None
        return CalibrationFacts(
            data.source,
            data.text_sha256,
            data.num_samples,
            data.sample_tokens,
            data.seed,
            self._findings,
        )


def generate(path: Path) -> SmokeTest:
    """Continue the prompt greedily with the model of a directory or GGUF file, on the CPU.

    Raises `QuantizationError` if logits are not finite or nothing is generated, `CheckpointError`
    and `ModelError` if it does not load, and `UsageError` where the tokenizer is not the model's.
    """
    llm = LLM(path, num_blocks=_CACHE_BLOCKS, max_num_seqs=1)
    params = SamplingParams(max_tokens=_TOKENS, min_tokens=1)
    try:
        (output,) = llm.generate([PROMPT], params)
    except EngineError as error:
        raise QuantizationError(
            f"the written checkpoint does not run: {error.message}",
            "Nothing was published. Use more bits, smaller groups or another method.",
        ) from error
    if not output.token_ids:
        raise QuantizationError(
            "the written checkpoint generates nothing",
            "Nothing was published. Use more bits, smaller groups or another method.",
        )
    return SmokeTest(PROMPT, output.text)


def _was_calibrated(written: WrittenCheckpoint) -> bool:
    return read_json(written.directory / RECORD_FILE)["calibration"] is not None


def _try_smoke(written: WrittenCheckpoint, notes: list[str]) -> SmokeTest | None:
    path = resolve_model(str(written.directory))
    free = psutil.virtual_memory().available
    needed = max(written.summary.file_bytes, written.source_bytes)
    if needed > _MEMORY_SHARE * free:
        notes.append(
            f"no smoke generation: the weights may need {needed / 1e9:.1f} GB when they are "
            f"unpacked, and {free / 1e9:.1f} GB are free"
        )
        return None
    try:
        load_tokenizer(path)
    except CheckpointError as error:
        notes.append(f"no smoke generation: {error.message}")
        return None
    try:
        return generate(path)
    except UsageError as error:
        notes.append(f"no smoke generation: {error.message}")
        return None


def _try_portability(written: WrittenCheckpoint, notes: list[str]) -> tuple[Verdict, ...]:
    of_source = written.job.format == "gguf"
    config = read_json((written.source if of_source else written.directory) / "config.json")
    try:
        return check_portability(config, written.shapes, written.job.format)
    except CheckpointError as error:
        notes.append(f"portability was not checked: {error.message}")
        return ()
