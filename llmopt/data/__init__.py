"""The two public-domain texts that llmopt brings: one to calibrate on, one to evaluate on.

Knows nothing about tokens. The law: the two are different works, by different authors, so that
quality is never measured on a text that was calibrated on. README.md says where they come from.
"""

import hashlib
from importlib import resources
from typing import Literal

TextName = Literal["calibration", "evaluation"]


def read_text(name: TextName) -> str:
    """The whole text; paragraphs are single lines, separated by empty lines."""
    return _read_bytes(name).decode("utf-8")


def text_sha256(name: TextName) -> str:
    """Hash of the text's UTF-8 bytes, which result files carry."""
    return hashlib.sha256(_read_bytes(name)).hexdigest()


def _read_bytes(name: TextName) -> bytes:
    return resources.files(__name__).joinpath(f"{name}.txt").read_bytes()
