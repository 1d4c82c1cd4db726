"""What is wrong with the calibration data, said before hours are spent on it.

Brings the linter, the tokenizer and the evaluation text together; judges nothing itself.
"""

from rich.console import Console

from llmopt.data import read_text
from llmopt.models.tokenizer import Tokenizer
from llmopt.quantize.calibration import CalibrationData, leading_bos
from llmopt.quantize.calibration_lint import CalibrationReport, lint_calibration


def check_calibration_data(data: CalibrationData, tokenizer: Tokenizer) -> CalibrationReport:
    """Judge calibration windows; the evaluation text is the one that llmopt brings."""
    return lint_calibration(
        data,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=leading_bos(tokenizer),
        has_chat_template=tokenizer.has_chat_template,
        evaluation_tokens=tokenizer.encode(read_text("evaluation"), add_special_tokens=False),
    )


def print_report(report: CalibrationReport) -> None:
    """Print the counts and the findings on standard error."""
    console = Console(stderr=True)
    for line in report.lines():
        style = "yellow" if line.startswith("warning: ") else "dim"
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def finding_lines(report: CalibrationReport) -> tuple[str, ...]:
    """The findings alone, a line each."""
    return tuple(f"{finding.level}: {finding.message}" for finding in report.findings)
