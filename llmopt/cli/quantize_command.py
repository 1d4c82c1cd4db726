"""What `llmopt quantize` does: from its options to jobs, through the quantizers, to what it prints.

The law: whatever cannot be done is refused before the model is fetched or read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from llmopt.cli.calibration_check import check_calibration_data, finding_lines, print_report
from llmopt.cli.output import print_json
from llmopt.cli.plan_view import print_plan
from llmopt.cli.progress import StageProgress
from llmopt.cli.proof_view import print_proofs, with_proof
from llmopt.cli.quantize_engine import engine_job, quantize_with
from llmopt.cli.quantize_proof import Proof, Prover
from llmopt.cli.quantize_view import QuantizeView, summary_table
from llmopt.cli.reproduction import OWN_ENGINE, Origin
from llmopt.errors import QuantizationError, UsageError
from llmopt.formats.checkpoint import read_json
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.staging import check_writable
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import Tokenizer, load_tokenizer
from llmopt.quantize.calibration import CalibrationData, pack_corpus, pack_samples
from llmopt.quantize.calibration_source import SELF, open_corpus
from llmopt.quantize.gptq import GPTQOptions
from llmopt.quantize.journal import journal_path
from llmopt.quantize.options import FileFormat, Job, QuantizeSummary, RunOptions
from llmopt.quantize.override import parse_override
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.plan import plan_config, plan_jobs
from llmopt.quantize.scheme import UNIFORM_METHODS, Method, Scheme, parse_schemes
from llmopt.quantize.statistics_cache import statistics_directory
from llmopt.quantize.storage import check_format, default_format

_DEFAULT_BITS, _DEFAULT_GROUP = 4, 64
_PER_ROW = -1  # what --group-size says for one group per row


@dataclass(frozen=True, slots=True)
class Choice:
    """The schemes as the command line names them: one in parts, or several as a list.

    bits, group_size: None where they were not given
    """

    method: Method
    bits: int | None
    group_size: int | None
    symmetric: bool
    double_quant: bool
    mix: str | None
    methods: str | None

    def schemes(self) -> tuple[Scheme, ...]:
        """Return the schemes. Raises `QuantizationError` for options that contradict each other."""
        uniform = self.method in UNIFORM_METHODS
        numbers = (self.bits, self.group_size) != (None, None) or not self.symmetric
        if self.methods is not None:
            if numbers or self.double_quant or self.mix is not None:
                raise QuantizationError(
                    "--methods was given together with options of a single method",
                    "Say it in the names, such as gptq-w4g64-asym or nf4-dq.",
                )
            return parse_schemes(self.methods)
        if numbers and not uniform:
            raise QuantizationError(
                f"{self.method} has no choice of bits, groups or symmetry",
                "Leave these options out, or choose rtn, gptq or awq.",
            )
        if self.double_quant and self.method not in ("nf4", "fp4"):
            raise QuantizationError(
                f"{self.method} has no scales to quantize again", "Use --double-quant with nf4."
            )
        if (self.mix is not None) != (self.method == "gguf"):
            raise QuantizationError(
                "--mix and --method gguf belong together", "Write --method gguf --mix q4_k_m."
            )
        return (
            Scheme(self.method, self._spec() if uniform else None, self.double_quant, self.mix),
        )

    def _spec(self) -> QuantSpec:
        group = _DEFAULT_GROUP if self.group_size is None else self.group_size
        bits = _DEFAULT_BITS if self.bits is None else self.bits
        return QuantSpec(bits, None if group == _PER_ROW else group, self.symmetric)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration data as the command line names it."""

    source: str
    num_samples: int
    sample_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Command:
    """All options of `llmopt quantize`."""

    model: str
    out: Path
    choice: Choice
    format: FileFormat | None
    overrides: tuple[str, ...]
    lm_head: bool
    gguf_pre: str | None
    propagate: bool
    damping: float
    calibration: Calibration
    device: str
    engine: str
    cache: bool
    restart: bool
    plan: bool
    json: bool

    def outputs(self) -> dict[Path, Job]:
        """Return the directory of each job."""
        jobs = [self._job(scheme) for scheme in self.choice.schemes()]
        if self.choice.methods is None:
            return {self.out: jobs[0]}
        return {self.out / job.label: job for job in jobs}

    def _job(self, scheme: Scheme) -> Job:
        if self.engine != OWN_ENGINE:
            return self._engine_job(scheme)
        job = Job(
            scheme,
            self.format if self.format and scheme.spec else default_format(scheme),
            gptq=GPTQOptions(damping=self.damping),
            propagate=self.propagate,
            overrides=tuple(parse_override(text) for text in self.overrides),
            gguf_pre=self.gguf_pre,
            lm_head=self.lm_head and scheme.mix is None,
        )
        check_format(job)
        return job

    def _engine_job(self, scheme: Scheme) -> Job:
        ours = {
            "--plan": self.plan,
            "--override": self.overrides,
            "--lm-head": self.lm_head,
            "--no-propagate": not self.propagate,
        }
        refused = [option for option, given in ours.items() if given]
        if refused:
            raise UsageError(
                f"{refused[0]} was given together with --engine {self.engine}",
                "Leave it out: it is for llmopt's own quantizers.",
            )
        job = engine_job(self.engine, scheme, self.gguf_pre)
        if self.format is not None and self.format != job.format:
            raise UsageError(
                f"{self.engine} writes {job.format} checkpoints, not {self.format}",
                "Leave --format out.",
            )
        return job

    def origin(self, calibration: CalibrationData | None) -> Origin:
        """What the cards say of where checkpoints come from."""
        return Origin(self.model, calibration, self.overrides, self.device, self.engine)

    @property
    def num_tokens(self) -> int:
        """Of the calibration data."""
        return self.calibration.num_samples * self.calibration.sample_tokens


def run(command: Command) -> None:
    """Quantize and print what was made. Raises the errors of what it calls."""
    outputs = command.outputs()
    if command.plan and _has_only_a_config(Path(command.model)):
        config = read_json(Path(command.model) / "config.json")
        plan = plan_config(config, list(outputs.values()), command.num_tokens)
        print_plan(plan, json=command.json)
        return
    journal = journal_path(command.out)
    for out in outputs:
        if not journal.exists() and not command.plan:
            check_writable(out, expected_bytes=0)
    source, calibration, findings = _inputs(command, list(outputs.values()))
    run_options = RunOptions(
        calibration,
        command.device,
        statistics_directory() if command.cache else None,
        command.restart,
    )
    with QuantizeView(command.damping) as view:
        if command.plan:
            print_plan(plan_jobs(source, outputs, run_options, view), json=command.json)
            return
        prover = Prover(command.origin(calibration), view, findings)
        if command.engine == OWN_ENGINE:
            summaries = quantize_jobs(source, outputs, journal, run_options, view, prover)
        else:
            summaries = quantize_with(
                command.engine, source, outputs, calibration, command.device, view, prover
            )
    _print(command, summaries, prover.proofs)


def _inputs(
    command: Command, jobs: list[Job]
) -> tuple[Path, CalibrationData | None, tuple[str, ...]]:
    """The model, and calibration data with what the linter found, where a method looks at data."""
    with StageProgress() as progress:
        with progress.stage(f"find {command.model}") as advance:
            source = resolve_model(command.model, advance)
        if not any(job.scheme.needs_calibration for job in jobs):
            return source, None, ()
        tokenizer = load_tokenizer(source)
        calibration = _load_calibration(source, tokenizer, command.calibration, progress)
        with progress.stage("check the calibration text"):
            report = check_calibration_data(calibration, tokenizer)
    print_report(report)
    return source, calibration, finding_lines(report)


def _has_only_a_config(path: Path) -> bool:
    return (path / "config.json").is_file() and not any(path.glob("*.safetensors"))


def _load_calibration(
    source: Path, tokenizer: Tokenizer, calibration: Calibration, progress: StageProgress
) -> CalibrationData:
    sizes = {
        "num_samples": calibration.num_samples,
        "sample_tokens": calibration.sample_tokens,
        "seed": calibration.seed,
    }
    if calibration.source != SELF:
        with progress.stage("read the calibration text"):
            return pack_corpus(tokenizer, open_corpus(calibration.source), **sizes)
    from llmopt.cli.self_calibration import sample_from_model
    from llmopt.engine.llm import LLM

    with progress.stage("sample calibration text from the model") as advance:
        samples = sample_from_model(
            LLM(source),
            num_tokens=calibration.num_samples * calibration.sample_tokens,
            sample_tokens=calibration.sample_tokens,
            seed=calibration.seed,
            on_progress=lambda done, total: advance("tokens", done / total),
        )
        return pack_samples(tokenizer, samples, **sizes)


def _print(
    command: Command, summaries: tuple[QuantizeSummary, ...], proofs: Mapping[str, Proof]
) -> None:
    several = command.choice.methods is not None
    if command.json:
        contents = [with_proof(summary, proofs.get(summary.scheme)) for summary in summaries]
        print_json(contents if several else contents[0])
        return
    console = Console()
    if several:
        console.print(summary_table(summaries))
    else:
        typer.echo(_sentence(summaries[0]))
    print_proofs(proofs, console)


def _sentence(summary: QuantizeSummary) -> str:
    seconds = summary.seconds + summary.shared_seconds
    return (
        f"{summary.out}: {summary.scheme}, {len(summary.modules)} layers at "
        f"{summary.bits_per_weight:.3f} bits per weight, {summary.file_bytes / 1e6:.1f} MB, "
        f"{seconds:.0f} s"
    )
