"""The report as LaTeX: one table a section, for a document with `booktabs`, notes below.

Knows nothing about where the numbers come from. The law: whatever is in a name or a reason, it is
printed and never becomes a command.
"""

from llmopt.report.columns import MISSING
from llmopt.report.markdown import joined_header
from llmopt.report.report import Report, Section

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "≥": r"$\geq$",
        "×": r"$\times$",
        MISSING: "--",
    }
)


def to_latex(report: Report) -> str:
    """Return the tables and notes as LaTeX. The preamble needs \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}", *(_section(section) for section in report.sections)]
    notes = [*report.notes, *report.mark_notes]
    if notes:
        items = "\n".join(f"  \\item {latex_text(note)}" for note in notes)
        parts.append(f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
    return "\n\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Return a text in one line, with all that LaTeX would read as a command escaped."""
    return " ".join(text.split()).translate(_SPECIAL)


def _section(section: Section) -> str:
    alignment = "".join("r" if column.is_number else "l" for column in section.columns)
    header = " & ".join(latex_text(joined_header(column.header)) for column in section.columns)
    lines = [
        "\\begin{table}",
        f"\\caption{{{latex_text(section.title)}}}",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        f"{header} \\\\",
        "\\midrule",
    ]
    for index, row in enumerate(section.rows):
        cells = []
        for column in section.columns:
            text = latex_text(column.text(row))
            cells.append(f"\\textbf{{{text}}}" if section.is_best(index, column) else text)
        lines.append(f"{' & '.join(cells)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"])
