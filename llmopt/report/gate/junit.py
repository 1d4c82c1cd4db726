"""The verdict as JUnit XML, which CI services show as tests.

One test case per comparison: REGRESSED is a failure, INCONCLUSIVE is skipped with its reason, as
the format knows nothing between. The law: the file is well-formed XML 1.0 whatever the names hold.
"""

import re
from xml.etree import ElementTree

from llmopt.report.gate.verdict import GateReport, Row
from llmopt.report.gate.wording import change_text, headline, reason_text, tolerance_text

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: GateReport) -> str:
    """Return the document, with its declaration."""
    attributes = {
        "name": "llmopt gate",
        "tests": str(len(report.rows)),
        "failures": str(report.count("REGRESSED")),
        "errors": "0",
        "skipped": str(report.count("INCONCLUSIVE")),
    }
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for row in report.rows:
        suite.append(_case(row))
    output = ElementTree.SubElement(suite, "system-out")
    output.text = _clean("\n".join([headline(report), *report.notes]))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(row: Row) -> ElementTree.Element:
    name = _clean(row.metric)
    case = ElementTree.Element("testcase", classname=_clean(row.cell_id), name=name, time="0")
    message = f"{change_text(row)}, allowed {tolerance_text(row)}; {reason_text(row)}"
    if row.verdict == "REGRESSED":
        failure = ElementTree.SubElement(
            case, "failure", message=_clean(message), type="regression"
        )
        failure.text = _clean(message)
    elif row.verdict == "INCONCLUSIVE":
        ElementTree.SubElement(case, "skipped", message=_clean(message))
    return case


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
