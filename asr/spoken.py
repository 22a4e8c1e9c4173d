"""Written English as it is read aloud: numbers, years, dates, times, money, units, abbreviations.

Rules, each one regular expression, in an order in which the earlier takes what a later one would misread. Where people
say it in several ways, the most usual American one: 105 is "one hundred five", 1905 "nineteen oh five", $2.50 "two dollars
and fifty cents". What the rules do not know (a date of three numbers, a score) is read number by number.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = [(10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")]
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}
_PARTS = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 8: "eighth"}
_PLURALS = {"penny": "pence", "foot": "feet", "mile per hour": "miles per hour"}
_PLURALS |= {same: same for same in ("yen", "hertz", "kilohertz")}
_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "")}
_LARGE = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion"}
_UNITS = {
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "kg": "kilogram",
    "mph": "mile per hour",
    "ft": "foot",
}
_UNITS |= {"lb": "pound", "lbs": "pound", "hz": "hertz", "khz": "kilohertz", "mb": "megabyte", "gb": "gigabyte"}
_SIGNS = {"%": "percent", "&": "and", "@": "at", "+": "plus", "=": "equals", "°": "degrees"}
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "jr": "junior", "etc": "et cetera", "vs": "versus"}
# Words of their own, or names, without their full stop.
_SHORT = {
    "Prof": "professor",
    "Sr": "senior",
    "Lt": "lieutenant",
    "Col": "colonel",
    "Gen": "general",
    "Capt": "captain",
}
_SHORT |= {"Sgt": "sergeant", "Gov": "governor", "Sen": "senator", "Rev": "reverend", "Hon": "honorable", "Mt": "mount"}
_SHORT |= {"Ave": "avenue", "Rd": "road"}
_TOP_LEVEL = ["com", "org", "net", "io", "edu", "gov"]
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_ROMAN = {"II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XI": 11, "XII": 12}
_ROMAN |= {"XIII": 13, "XIV": 14, "XV": 15, "XVI": 16}
_NUMBERED = "War|Part|Phase|Division|Grade|Title|Type|Class|Book|Volume|Chapter|Section|Act|Level|Mk|Plate"
_RULERS = "Alexander|Benedict|Catherine|Charles|Edward|Elizabeth|Ferdinand|Francis|Frederick|George|Gustav|Henry"
_RULERS += "|James|John|Leopold|Louis|Napoleon|Nicholas|Paul|Philip|Pius|Ptolemy|Richard|Urban|Wilhelm|William"


def cardinal(number: int) -> str:
    """A whole number of 0 to 15 digits, in words.

    >>> cardinal(380284)
    'three hundred eighty thousand two hundred eighty four'
    """
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    scale, name = next(each for each in _SCALES if number >= each[0])
    rest = number % scale
    return f"{cardinal(number // scale)} {name}" + (f" {cardinal(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """
    >>> ordinal(21), ordinal(30)
    ('twenty first', 'thirtieth')
    """
    *before, last = cardinal(number).split()
    return " ".join([*before, _ORDINALS.get(last) or re.sub("y$", "ie", last) + "th"])


def year(number: int) -> str:
    """A number of four digits as years are read, and most other numbers of 1010 to 1999 too.

    >>> year(1969), year(1805), year(1900), year(2004), year(2015)
    ('nineteen sixty nine', 'eighteen oh five', 'nineteen hundred', 'two thousand four', 'twenty fifteen')
    """
    century, rest = divmod(number, 100)
    if not (1010 <= number < 2000 or 2010 <= number < 2100):
        return cardinal(number)
    return f"{cardinal(century)} {'hundred' if not rest else ('oh ' if rest < 10 else '') + cardinal(rest)}"


def _digits(written: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in written)


def _number(written: str) -> str:
    """Digits, perhaps with commas and a point: a year, another number, or, as codes and telephone numbers, by digits."""
    whole, point, decimals = written.partition(".")
    if point:
        return f"{_number(whole) if whole else ''} point {_digits(decimals)}"
    plain = whole.replace(",", "")
    code = len(plain) > 6 and not plain.endswith("000") and plain == whole
    if code or len(plain) > 15 or (plain[0] == "0" and len(plain) > 1):
        return _digits(plain)
    return year(int(plain)) if len(plain) == 4 and plain == whole else cardinal(int(plain))


def _plural(word: str) -> str:
    """The plural of a number's last word, or of a unit."""
    return _PLURALS.get(word) or (re.sub("y$", "ie", word) + ("es" if word.endswith("x") else "s"))


def _count(written: str, noun: str) -> str:
    return f"{_number(written)} {noun if written == '1' else _plural(noun)}"


def _money(match: re.Match[str]) -> str:
    sign, amount, large = match.groups()
    (coin, small), (whole, _, cents) = _MONEY[sign], amount.partition(".")
    if large:
        return f" {_number(amount)} {_LARGE.get(large.lower(), large)} {_plural(coin)} "
    if len(cents) != 2 or not small:
        return f" {_count(amount, coin)} "
    parts = [
        _count(str(int(part)), name) for part, name in ((whole.replace(",", ""), coin), (cents, small)) if int(part)
    ]
    return f" {' and '.join(parts) or _count('0', coin)} "


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match[1]), int(match[2]), match[3]
    said = cardinal(minute) if minute >= 10 else f"oh {cardinal(minute)}"
    if not minute:
        said = "" if half else "o'clock" if 0 < hour <= 12 else "hundred"
    return f" {cardinal(hour)} {said} {' '.join(half).lower() if half else ''} ".replace(".", "")


def _decade(match: re.Match[str]) -> str:
    *before, last = _number(match[1]).split()
    return f" {' '.join([*before, _plural(last)])} "


def _place(match: re.Match[str]) -> str:
    return f" {ordinal(int(match[1].replace(',', '')))} "


def _fraction(match: re.Match[str]) -> str:
    whole, upper, lower = match[1], int(match[2]), int(match[3])
    part = f"{cardinal(upper)} {_PARTS[lower] if upper == 1 else _plural(_PARTS[lower])}"
    return f" {_number(whole)} and {part} " if whole else f" {part} "


_N = r"(?<![\d.,])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?!\d)"
_RULES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), said)
    for pattern, said in (
        (rf"(?i)\b({'|'.join(_TITLES)})\b\.?", lambda m: _TITLES[m[1].lower()]),
        (rf"\b({'|'.join(_SHORT)})\.(?!\w)", lambda m: _SHORT[m[1]]),
        (r"&c\b\.?", lambda _: "et cetera"),
        (r"\bSt\.? (?=[A-Z])", lambda _: "saint "),
        (r"\bSt\.(?!\w)", lambda _: "street"),
        (r"(?:\b[Nn]o\. ?|#)(?=\d)", lambda _: "number "),
        (rf"\b({_NUMBERED}) ({'|'.join(_ROMAN)})\b", lambda m: f"{m[1]} {cardinal(_ROMAN[m[2]])}"),
        (rf"\b({_RULERS}) ({'|'.join(_ROMAN)})\b", lambda m: f"{m[1]} the {ordinal(_ROMAN[m[2]])}"),
        (rf"(?i)\.(?=(?:{'|'.join(_TOP_LEVEL)})\b)", lambda _: " dot "),
        (_N + r" ?([$£€¥])(?! ?\d)", lambda m: f"{m[2]}{m[1]}"),
        (r"(?i)([$£€¥]) ?" + _N + r"(?:[ -]?(hundred|thousand|million|billion|trillion|k|m|bn?)\b)?", _money),
        (r"(?i)(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])(?: ?([ap]\.?m)\b\.?)?", _time),
        (r"(?i)(?<![\d:.])(\d\d?) ?([ap])\.?m\b\.?", lambda m: f" {cardinal(int(m[1]))} {m[2].lower()} m "),
        (r"(?<!\d)(\d{3})-(?:(\d{3})-)?(\d{4})(?!\d)", lambda m: f" {_digits(''.join(m.groups('')))} "),
        (r"(?<![\d/])(?:(\d+)[ -])?([1-7])[/\u2044]([23458])(?![\d/])", _fraction),
        (rf"\b({_MONTHS}) ([1-9]|[123]\d)(?![\d:.,]?\d|%|st|nd|rd|th)", lambda m: f"{m[1]} {ordinal(int(m[2]))} "),
        (r"(?i)(?<![\d.,])(\d{1,3}(?:,\d{3}){1,3}|\d{1,15})(?:st|nd|rd|th)\b", _place),
        (r"(?<![\d.,])((?:\d\d)?[2-9]0|\d\d00)'?s\b", _decade),
        (r"(?i)" + _N + rf" ?({'|'.join(_UNITS)})\b", lambda m: f" {_count(m[1], _UNITS[m[2].lower()])} "),
        (r"° ?([CF])\b", lambda m: " degrees celsius" if m[1] == "C" else " degrees fahrenheit"),
        (r"(?<![\d-])(\d+) ?[-\u2013] ?(\d+)(?![\d-])", lambda m: f"{m[1]} to {m[2]}"),
        (r"(?<![\w.)%-])[-\u2212](?=\.?\d)", lambda _: "minus "),
        (r"(?<![\d.,])(\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d*\.\d+|\d+)", lambda m: f" {_number(m[1])} "),
        (r"(\.?)(\d+)", lambda m: f" {'point ' if m[1] else ''}{_number(m[2])} "),
        (r"[%&@+=°]", lambda m: f" {_SIGNS[m[0]]} "),
    )
]
# Most lines have none of these, and need no rules.
_SIGN = re.compile(r"[\d%&@+=°]")
_WORD = re.compile(r"[a-z]+")
_WORDS = {*_TITLES, "st", *_TOP_LEVEL, *(each.lower() for each in [*_SHORT, *_ROMAN])}


def english(text: str) -> str:
    """The text with what is written shorter than it is said written out; its other words and signs stay.

    text: without accents on what is to be read (`asr.text.english` sees to that).

    >>> english("Dr. Smith of St. John's").split()
    ['doctor', 'Smith', 'of', 'saint', "John's"]
    """
    if _SIGN.search(text) or not _WORDS.isdisjoint(_WORD.findall(text.lower())):
        for pattern, said in _RULES:
            text = pattern.sub(said, text)
    return text
