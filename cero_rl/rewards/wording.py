r"""What stands around an answer and is no part of it: layout, units, words.

In: text of the data or of a model. Out: the same answer in plain LaTeX (`clean`), its number and
its unit (`measured`), its only number where the rest is words (`worded`), its layout-free form
(`bare`). Nothing here takes a number out of a formula.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

# Where a text is from. "latex": the data, as a formula, where a letter alone is a variable and
# words are set as text. "plain": the data, without a formula. "said": a completion.
Source = Literal["latex", "plain", "said"]

_FOREIGN_SIGNS = "、。−–—‘’“”⁄′\u00a0\u2009\u202f"  # noqa: RUF001
_ASCII = str.maketrans(_FOREIGN_SIGNS, ",.---''\"\"/'   ", "€£¥￥₹\u200b")
_COMMAND_SIGNS = "×÷·⋅≤≥⩽⩾≠∞∪∩∈∅≡≈πθαβ±°º…ℝ"  # noqa: RUF001
_COMMAND_NAMES = (
    r"\times \div \cdot \cdot \leq \geq \leq \geq \neq \infty \cup \cap \in \emptyset \equiv "
    r"\approx \pi \theta \alpha \beta \pm ^\circ ^\circ \ldots \mathbb{R}"
)
_COMMANDS = dict(zip(_COMMAND_SIGNS, _COMMAND_NAMES.split()))
_RAISED = re.compile("[⁰¹²³⁴-⁹⁻⁺]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√\s*(\d+|[A-Za-z]|\([^()]*\))")
_MARKS = re.compile(r"\\\$|\$+|\\[()]|(?<!\\)\\[\[\]]|(?<![\w)\]}])\*\*|\*\*(?![\w(\\-])|`")
_ABOUT = re.compile(
    r"^\s*(?:\\approx(?![A-Za-z])|\\sim(?:eq)?(?![A-Za-z])|~|=|\\therefore|about\b|"
    r"approximately\b|\\text\s*\{\s*(?:about|approximately)\s*\})\s*",
    re.I,
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;!: ]|\{,\}|~)\s*(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?: \d{3})+")
_COMMA_THOUSANDS = re.compile(r"(?:[A-Za-z]\w*\s*=\s*)?-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_MIXED = re.compile(r"(?<![\d.,/^])(\d+)[ ~](\d+)/(\d+)(?![\d/.])")
_CELSIUS = re.compile(r"\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CFK])\s*\}?$")
_EXPONENT = re.compile(r"(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
_CHINESE = (("或", " or "), ("和", " and "), ("且", " and "))

_QUOTE = r"\\(?:text|mathrm|mbox|textrm|textbf|textit)\s*\{"
_SEPARATOR = r"(?:[\s~/*]|\\[ ,;!]|\\cdot|\\quad)"
_POWER = r"(?:\s*\^\s*(?:\d|\{\s*-?\d\s*\}))?"
_QUOTED = rf"{_QUOTE}[^{{}}]*\}}{_POWER}"
_WORD = rf"[A-Za-zµμΩ]+\.?{_POWER}"
_UNIT = re.compile(
    rf"{_SEPARATOR}*\(?((?:{_QUOTED}|{_WORD})(?:{_SEPARATOR}*{_QUOTED}|{_SEPARATOR}+{_WORD})*)\)?$"
)
_NUMBER = re.compile(
    r"(?<![\w.,/^:\\}-])-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?"
    r"(?:\s*\\?%)?(?![\w/^:-]|[.,]\d)"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NUMERIC_COMMANDS = re.compile(
    r"\\(?:[dtc]?frac|sqrt|times|cdot|pi|left|right|div|pm|circ)(?![A-Za-z])"
)
_ASSIGNED = re.compile(r"^\s*[A-Za-z](?:_\{?\w+\}?)?\s*=")
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|q?quad)(?![A-Za-z])|\\[ ,;!:]|(?<!\d)[\s~]+|[\s~]+(?!\d)"
)
_TEXT = re.compile(rf"{_QUOTE}([^{{}}]*)\}}")
_GROUP_OF_ONE = re.compile(r"(?<!\\)\{(\w)\}")  # \frac{1}{2} is \frac12, \frac{12}{3} is not
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\(leq|geq|neq)(?:slant)?(?![A-Za-z])"), lambda m: "\\" + m[1][:-1]),
    (re.compile(r"\\(?:mid|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\pmod(?![A-Za-z])\s*\{?(\w+)\}?"), r"(mod \1)"),
    (re.compile(r"\\[lcv]dots|\.\.\."), r"\\dots"),
)

# words that make another number of the one beside them
_ALTERING_WORDS = (
    "not no none never without than least most over under above below more less between to from "
    "or and plus minus negative times half dozen third quarter twice double triple squared cubed "
    "root mod modulo pi factorial power except infinity"
)
_ALTERING = frozenset(_ALTERING_WORDS.split())
_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
}  # powers of ten
# one name for each unit of measurement; what is not here is a word, as "apples"
_UNITS = {}
for _names in (
    """
m metre meter|km kilometre kilometer|cm centimetre centimeter|mm millimetre millimeter|nm nanometer
um µm micrometer|ft foot feet|in inch inche|yd yard|mi mile|g gm gram|kg kilogram kilo|mg milligram
lb pound|oz ounce|t ton tonne|s sec second|ms millisecond|min minute|h hr hour|d day|week wk|month
yr year|l litre liter|ml millilitre milliliter|gal gallon|pt pint|qt quart|mph|kmph|hz|khz|mhz|ghz
n newton|j joule|kj|w watt|kw|kwh|v volt|a ampere amp|pa pascal|kpa|mpa|atm|k kelvin|c celsius
f fahrenheit|deg degree|rad radian|mol mole|ev|kev|mev|gev|ohm ω|usd dollar|cent|r rupee|ha hectare
acre|unit|sq square|cu cubic|per
""".strip()
    .replace("\n", "|")
    .split("|")
):
    _UNITS.update(dict.fromkeys(_names.split(), _names.split()[0]))
_SILENT = ("per", "sq", "cu")  # say how units combine


def clean(text: str) -> str:
    """The text in plain LaTeX: without math delimiters and emphasis, an "approximately" before
    it and a stop behind it; Unicode's signs as commands, mixed numbers as sums."""
    text = _VULGAR.sub(_fraction, text)
    text = _RAISED.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1].strip('()')}}}", text)
    text = "".join(f" {_COMMANDS[c]} " if c in _COMMANDS else c for c in text)
    text = unicodedata.normalize("NFKC", text.translate(_ASCII)).translate(_ASCII)
    for word, english in _CHINESE:
        text = text.replace(word, english)
    text = _MARKS.sub(" ", text).strip()
    text = _ABOUT.sub("", text)
    if not text.endswith("..."):
        text = text.rstrip(" .,;:")
    text = _CELSIUS.sub(r" \\mathrm{\1}", _THOUSANDS.sub("", text))
    text = re.sub(r"\\text\s*\{\s*infinity\s*\}", r"\\infty", text)
    number = _EXPONENT.fullmatch(text)
    if number:
        return rf"{number[1]} \times 10^{{{int(number[2])}}}"
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    if _COMMA_THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)


def _fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def bare(text: str) -> str:
    """A cleaned text without spacing and other spellings of the same command: where two of
    these are equal, so are the texts."""
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    text = _LAYOUT.sub("", _TEXT.sub(r"\1", text))
    return _GROUP_OF_ONE.sub(r"\1", text).rstrip(".,;:")


def is_words(text: str) -> bool:
    """Is a cleaned text words alone, at least one of five letters or more or set as text?"""
    spoken = re.sub(_QUOTE, "", text)
    if re.search(r"[^A-Za-z\s.,'{}()-]", spoken) or bare(text).casefold() in ("infinity", "alpha"):
        return False
    return max(map(len, _LETTERS.findall(spoken)), default=0) >= 5


def unit_of(words: str) -> tuple[str, ...]:
    """The names in a unit, one for each unit of measurement, without plural and power."""
    words = words.replace("kmph", "km/h").replace("kmh", "km/h").replace("mph", "mi/h")
    names = [
        _UNITS.get(name, name)
        for name in (w.casefold().removesuffix("s") or "s" for w in _LETTERS.findall(words))
        if name not in ("text", "mathrm", "mbox", "textrm", "textbf", "textit", "cdot", "quad")
    ]
    return tuple(name for name in names if name not in _SILENT)


def same_unit(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """May two numbers be compared? A unit that is not given is any; of words, some suffice."""
    if not one or not other or one == other:
        return True
    known = set(_UNITS.values())
    if known.issuperset(one) and known.issuperset(other):
        return False
    return set(one) <= set(other) or set(other) <= set(one)


def measured(text: str, source: Source) -> tuple[str, tuple[str, ...]] | None:
    """A cleaned text as (number, unit): what is left of a unit, or of words set as text, at its
    end."""
    found = _UNIT.search(text) if len(text) <= 300 else None
    number = text[: found.start()].strip() if found else ""
    if found is None or not re.search(r"\d|\\pi", number) or re.search(r"[-+*/^_=<>(\\]$", number):
        return None
    words = found[1]
    quoted = bool(re.match(_QUOTE, words))
    spaced = bool(re.match(_SEPARATOR + r"|\(", text[found.start() :]))
    names = _LETTERS.findall(re.sub(_QUOTE, "", words))
    scale = 0
    if names and names[0].casefold() in _SCALES:
        scale = _SCALES[names[0].casefold()]
    spaced = spaced or len(names) > 1
    if not quoted and not all(_may_be_unit(n, source, spaced) for n in names):
        return None
    if _ALTERING.intersection(n.casefold() for n in names):
        return None
    value = _ASSIGNED.sub("", number)
    if not quoted and _LETTERS.search(_NUMERIC_COMMANDS.sub("", value)):
        return None
    if scale:
        return rf"({number}) \times 10^{{{scale}}}", unit_of(words)[1:]
    return number, unit_of(words)


def _may_be_unit(name: str, source: Source, spaced: bool) -> bool:
    known = name.casefold() in _UNITS or name.casefold().removesuffix("s") in _UNITS
    if len(name) == 1:
        return known and (source == "said" or (source == "plain" and spaced))
    word = spaced and len(name) >= 3 and bool(re.search("[aeiou]", name, re.I))
    return known or (word and source != "latex")


def worded(text: str, source: Source) -> tuple[str, tuple[str, ...]] | None:
    """A cleaned text as (number, unit) where it is words around one number: "The answer is 7"."""
    text = _TEXT.sub(r" \1 ", text)
    if len(text) > 300 or _COMMAND.search(text) or re.search(r"[^\w\s.,:;!?()'\"/%\\-]|_", text):
        return None
    found = _NUMBER.search(text)
    if found is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    words = _LETTERS.findall(f"{before} {after}")
    if re.search(r"\d", before + after) or not words:
        return None
    if re.search(r"(?<![^\W\d_])[-/]|[-/](?![^\W\d_])", before + after):
        return None
    named = not before.strip() and re.fullmatch(r"\s*\([^()]*\)", after)  # 5 (times)
    for word in words:
        if named and word.casefold() not in _SCALES:
            continue
        if word.casefold() in _ALTERING or word.casefold() in _SCALES:
            return None
        letter = len(word) == 1 and word not in "aAI"
        if letter and (source == "latex" or word.casefold() not in _UNITS):
            return None
    return found[0].replace("%", r"\%").replace(r"\\%", r"\%"), unit_of(after)
