"""An answer -> every way in which it may be meant, and whether two answers agree. For the `math`
verifier; runs in reward workers, which bound its time.

A text is read as a whole, never by a number out of a formula that could not be parsed. Beside the
whole stand the number without its unit ("20 $cm^{2}$") and the only number in words ("The answer
is 7"). What is no mathematics is the same only as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from cero_rl.rewards import wording

# math-verify's own timeouts are signals and work in the main thread only; the pool kills a late
# worker instead. None turns them off, which its annotations do not know.
_NO_TIMEOUT: Any = None
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")
_BRACELESS = re.compile(r"\s*([^\s${}]+)")
_SEGMENT = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
# what the parser would drop or take for a product: such a text is compared as text
_UNPARSED = re.compile(r"\\[lcv]?dots|\.\.\.|\\equiv|(?<![A-Za-z])mod(?![A-Za-z])")
_SET = re.compile(
    r"\\\{\s*[A-Za-z]\s*(?:\\mid|\\vert|\||:)\s*((?:[^,]*(?:[<>]|\\[lg]eq?(?![A-Za-z]))[^,]*))\\\}"
)
_COMMA = re.compile(r",|\b(?:and|or)\b")
_EQUALS = re.compile(r"(?<![<>!\\])=")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_QED = re.compile(r"\s*(?:\$?\\(?:black)?square\$?|\\qed|∎|□|■)\s*\.?\s*$")
_BOLD = r"\\(?:textbf|mathbf|boldsymbol|bm)\{((?:[^{}]|\{[^{}]*\})*)\}"
_SET_AS_TEXT = re.compile(rf"{_BOLD}|`([^`\n]*)`")
_ANSWER_IS = re.compile(r"answer\s*(?:is|:)[\s:*]*([^\n]+)\s*$", re.IGNORECASE)
_CHINESE_ANSWER = re.compile(r"(?:最终)?答案(?:是|为)?\s*[:\uff1a]?")
_FUNCTION_NAMES = "mod or and sin cos tan cot sec csc ln log exp lim max min gcd lcm"
_NOT_WORDS = frozenset(_FUNCTION_NAMES.split())
_DIGITS = re.compile(r"\d{500,}")  # the library's patterns take seconds for a wall of digits
_SOLUTION_WORDS = 12  # from here on a text with several formulas is a solution, not an answer
_ANSWER_CHARS = 2000  # a longer answer is read only where the data's is of its size


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer, read."""

    text: str  # without layout; equal texts agree
    whole: tuple[Any, ...] = ()  # expressions: what all of the text may say
    number: tuple[Any, ...] = ()  # expressions: its number without unit or words
    unit: tuple[str, ...] = ()
    pieces: int = 1  # parts divided by ";", else by ",", "and" or "or"
    divided: bool = False  # by ";": then the other side must have as many


def agree(gold: Reading, said: Reading) -> bool:
    """Is the answer of a completion the one in the data?"""
    if gold.text and gold.text == said.text:
        return True
    if gold.divided and gold.pieces != said.pieces:
        return False
    return (
        _equal(gold.whole + gold.number, said.whole)
        or _equal(gold.whole, said.number)
        or (wording.same_unit(gold.unit, said.unit) and _equal(gold.number, said.number))
    )


def equals_itself(gold: Reading) -> bool:
    """Is an answer of the data equal to itself, and can it be told from another in finite time?"""
    import sympy

    if not (gold.whole or gold.number):
        return bool(gold.text)
    # what is right is often seen at a glance; a tower of powers takes for ever to tell from 1
    _equal(gold.whole + gold.number, (sympy.Integer(1),))
    return any(_equal((value,), (value,)) for value in gold.whole + gold.number)


def read_gold(answer: str) -> Reading:
    """An answer of the data: an expression, a number in words, a sentence or a worked solution.
    Its box counts where it has one."""
    content = boxed(answer)
    if content is not None:
        return _read(content, _source(content))
    reading = _read(answer, _source(answer))
    if reading.number:
        return reading
    return Reading(
        reading.text,
        reading.whole,
        _last_value(answer),
        pieces=reading.pieces,
        divided=reading.divided,
    )


def read_completion(completion: str, gold_chars: int) -> Reading:
    """What a completion says: its box and nothing else, or the last `<answer>`, or what follows
    "####", or all of a text that is only a formula; else the last value in it, as math-verify
    finds it. `gold_chars`: the length of the data's answer, for what is too long to be it."""
    content = boxed(completion)
    limit = max(_ANSWER_CHARS, 4 * gold_chars)
    if content is not None:
        return _read(content, "said") if len(content) <= limit else Reading("")
    if gold_chars < 500:
        completion = _DIGITS.sub(" ", completion)
    tagged = _TAG.findall(completion)
    marked = completion.rpartition("####")
    text = (tagged[-1] if tagged else marked[2] if marked[1] else completion).strip()
    if len(text) > limit and (tagged or marked[1]):
        return Reading("")
    if tagged or marked[1] or _is_formula(text):
        reading = _read(text, "said")
        if reading.whole or reading.number or _is_formula(text):
            return reading
    return _search(text)


def boxed(text: str) -> str | None:
    """What stands in the last box of a text, or in neighbouring ones, joined by commas; "" where
    that box is never closed; None without a box."""
    from latex2sympy2_extended.math_normalization import extract_boxed_content

    # so that a brace that is meant to be seen is not counted
    text = text.replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace ")
    text = _EMPTY_BOX.sub(" ", text)
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :]
    if not rest.lstrip().startswith("{"):
        token = _BRACELESS.match(rest)
        return token[1].rstrip(".,;") if token else ""
    depth = 0
    for char in rest:
        depth += (char == "{") - (char == "}")
        if depth == 0 and char == "}":
            content = extract_boxed_content(text, "last")
            return re.sub(r"\\rbrace ?", r"\\}", content.replace("\\lbrace ", "\\{"))
    return ""


def _source(answer: str) -> wording.Source:
    return "latex" if re.search(r"[$\\]", answer) else "plain"


def _read(answer: str, source: wording.Source) -> Reading:
    """All of a text."""
    text = wording.clean(answer)
    sides = _EQUALS.split(text)
    if len(sides) > 1 and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", sides[0])):
        text = wording.clean(sides[-1])  # 7 + 2 = 9 apples
    divided = ";" in text
    parts = text.split(";") if divided else _COMMA.split(text)
    pieces = sum(bool(part.strip()) for part in parts)
    if wording.is_words(text):
        return Reading(wording.bare(text).casefold())
    phrase = wording.worded(text, source)
    found = phrase or wording.measured(text, source)
    number, unit = (_parse(found[0]), found[1]) if found else ((), ())
    whole: tuple[Any, ...] = ()
    if phrase is None and not _UNPARSED.search(text):
        inequality = _SET.fullmatch(text)
        whole = _parse(text) + (_parse(inequality[1]) if inequality else ())
    return Reading(wording.bare(text), whole, number, unit, pieces, divided)


def _last_value(answer: str) -> tuple[Any, ...]:
    """The formula in a sentence of the data, the last value of a worked solution."""
    segments = _SEGMENT.findall(answer)
    outside = re.sub(r"\\[A-Za-z]+", " ", _SEGMENT.sub(" ", answer))
    words = [w for w in re.findall(r"[^\W\d_]{2,}", outside) if w not in ("and", "or")]
    if len(words) >= _SOLUTION_WORDS:
        return _search(answer).whole
    if words and len(segments) == 1 and not re.search(r"\d", outside):
        return _parse(wording.clean("".join(segments[0])))
    return ()


def is_text(answer: str) -> bool:
    """Is an answer words, which are compared as text on purpose?"""
    return wording.is_words(wording.clean(answer))


def _is_formula(text: str) -> bool:
    """Is it one short line without words?"""
    if len(text) > 200 or "\n" in text:
        return False
    spoken = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?", " ", text)
    return all(w in _NOT_WORDS for w in re.findall(r"[^\W\d_]{2,}", spoken))


def _search(text: str) -> Reading:
    """The last value of a text in which words and mathematics alternate."""
    text = _SET_AS_TEXT.sub(lambda m: m[1] or m[2] or "", _QED.sub("", text))
    text = _CHINESE_ANSWER.sub(" The answer is ", text).replace("\\$", "")
    named = _ANSWER_IS.search(text)
    if named and _is_formula(named[1]):
        reading = _read(named[1], "said")
        if reading.whole or reading.number:
            return reading
    found = _library().parse(
        text,
        extraction_config=_library().anywhere,
        extraction_mode="first_match",
        parsing_timeout=_NO_TIMEOUT,
    )
    values = tuple(value for value in found if not isinstance(value, str))
    texts = [value for value in found if isinstance(value, str)]
    if not texts:
        return Reading("", values)
    reading = _read(texts[-1], "said")
    return Reading(
        reading.text,
        values or reading.whole,
        reading.number,
        reading.unit,
        reading.pieces,
        reading.divided,
    )


def _parse(text: str) -> tuple[Any, ...]:
    """All of a LaTeX text as an expression; none where it is no mathematics."""
    if not text.strip():
        return ()
    found = _library().parse(
        f"\\boxed{{{text}}}",
        extraction_config=_library().all_of_it,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=_NO_TIMEOUT,
    )
    return tuple(found)


def _equal(gold: tuple[Any, ...], said: tuple[Any, ...]) -> bool:
    if not gold or not said:
        return False
    return _library().verify(list(gold), list(said), timeout_seconds=_NO_TIMEOUT)


@dataclass(frozen=True)
class _Library:
    parse: Any
    verify: Any
    all_of_it: Any  # for one box; units are left in: `wording` knows which are none
    anywhere: Any


@cache
def _library() -> _Library:
    """math-verify, imported by workers only."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    normal = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
    )
    return _Library(
        parse,
        verify,
        (LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal),),
        (LatexExtractionConfig(boxed_match_priority=-1), ExprExtractionConfig()),
    )
