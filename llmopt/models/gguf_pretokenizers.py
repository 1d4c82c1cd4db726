"""The pre-tokenizers that GGUF files name: how a text is cut before byte pairs are merged.

GGUF stores a name only, and a wrong one silently ruins a model. Knows nothing of files. The law: a
name is given to a tokenizer only when it cuts a set of difficult texts exactly as the tokenizer
does.

Sources: the patterns are those of the models' own tokenizer.json; llama.cpp's vocabulary loader for
the names, which of them share a pattern, and their defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*",
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one name cuts.

    patterns:      what is matched is a piece of its own, and so is what lies between; each pattern
                   cuts the pieces that the one before it left
    ignore_merges: a piece that is a token as a whole is not merged from bytes
    adds_bos:      a text begins with BOS where the file does not say
    composes:      texts are brought into Unicode's normal form C first (llama.cpp does not)
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    composes: bool = False

    def build(self) -> Any:
        """The `tokenizers` object: the cuts, then bytes as printable characters."""
        from tokenizers import Regex, pre_tokenizers

        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, to_bytes])


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "gpt-2": PreTokenizer((_GPT2,)),
        "smollm": PreTokenizer((r"\p{N}", _GPT2)),
        "llama-bpe": PreTokenizer(
            (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",),
            ignore_merges=True,
            adds_bos=True,
        ),
        "smaug-bpe": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)),
        "qwen2": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",), composes=True),
        "tekken": PreTokenizer(
            (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST_AND_SLASHES}",),
            ignore_merges=True,
            adds_bos=True,
        ),
        "gpt-4o": PreTokenizer(
            (
                rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
                rf"|{_REST_AND_SLASHES}",
            )
        ),
        "deepseek-coder": PreTokenizer(
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
        ),
        "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    }
)
_SAME_AS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "mellum", "a.x-4.0"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
    "smaug-bpe": ("dbrx",),
    "qwen2": ("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"),
    "gpt-4o": ("llama4", "kanana2"),
    "default": ("",),
}
_NAME_OF = {alias: name for name, aliases in _SAME_AS.items() for alias in aliases}
PROBES = (
    "Hello world, it's  3 o'clock; we'LL see 12, 345, 6789 and 1234567.89 at 10:30!",
    "I'VE TOLD you: don't, WON'T, he'd, she'D, you'Re... JSONParser HTTPServer2x camelCaseWord",
    " leading, trailing and   inner   spaces \n\n\n a\tb\t\tc\r\n  \n   d \n",
    "x += y**2; // path/to/file\n/* a != b && c <= d */ #tag @name $5 ^~|<=>\n!\n?//\n",
    "Ümläute, naïve façade, ½ ² ③ Ⅳ, нещо на Български, Ελληνικά, עברית, हिन्दी, ភាសាខ្មែរ",
    "我想在apple工作1314151天～ 日本語テキスト 한국어 🚀 (normal) 😶\u200d🌫️ ✅🦙🦙",
    "''''''``````\"\"\"\"...... ------======= (((a[0]))) {{b}}; 3.3 3..3 3...3 $1,000.00",
)


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """What a name, or another name for the same, stands for; None if it is not known here."""
    return PRE_TOKENIZERS.get(_NAME_OF.get(name, name))


def name_pre_tokenizer(pre_tokenizer: Any, *, ignore_merges: bool) -> str | None:
    """GGUF's name for a `tokenizers` pre-tokenizer, or None if it cuts like none that is known."""
    if pre_tokenizer is None:
        return None
    wanted = _cuts(pre_tokenizer)
    for name, known in PRE_TOKENIZERS.items():
        if known.ignore_merges == ignore_merges and _cuts(known.build()) == wanted:
            return name
    return None


def _cuts(pre_tokenizer: Any) -> list[list[str]]:
    return [[piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] for text in PROBES]
