"""Transcript normalisation: named functions, one chosen by each recipe.

A normaliser maps a transcript as published to the text a model is trained on and scored against. It never drops what is
spoken but cannot be spelt: what is left outside the alphabet is an error for `asr doctor` to show, not a hole in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from asr.errors import TextError as TextError
from asr.errors import nearest

_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'", "\u00b4": "'"})
_SPOKEN = "'&%@#$€£¥+=°"
_FRACTIONS = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_UNSPOKEN = re.compile(r"[^\w'%@#$€£¥+=°]")


def squeeze(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends; the text is otherwise kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def english(text: str) -> str:
    """Lower case; letters without accents, apostrophes inside words, numbers and the like as words; no punctuation.

    >>> english("“Don’t,” said Zoë, 'half-way' — the '90s!")
    "don't said zoe half way the nineties"
    >>> english("Mr. Smith paid $20 in 1969: 2.5% of it.")
    'mister smith paid twenty dollars in nineteen sixty nine two point five percent of it'
    """
    from asr import spoken

    if not text.isascii():
        text = re.sub(_FRACTIONS, r" \g<0>", text.translate(_APOSTROPHES))  # decomposed, 2½ is 21/2
        text = unicodedata.normalize("NFKD", text).translate(_APOSTROPHES)
        # Accents go, and so do invisible characters such as the soft hyphen, which stand inside words.
        text = "".join(sign for sign in text if not unicodedata.combining(sign) and unicodedata.category(sign) != "Cf")
    # Lower case last: months and titles have capitals, and so has the decomposition of signs such as the trade mark.
    text = re.sub(_UNSPOKEN, " ", spoken.english(text.replace("_", " ").replace("`", "'")).lower())
    # An apostrophe belongs to a word (don't, dogs' is written dogs): at a word's edge it is a quotation mark.
    return " ".join(word for word in (raw.strip("'") for raw in text.split()) if word)


def letters(text: str) -> str:
    """Of any language: lower case; letters with their accents, digits, apostrophes inside words, signs read aloud.

    >>> letters("«Où est-ce?» demanda l’élève; नमस्ते!")
    "où est ce demanda l'élève नमस्ते"
    """
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).lower()
    kinds = ((sign, unicodedata.category(sign)) for sign in text)
    # Marks are vowels in many scripts; invisible characters such as the soft hyphen stand inside words.
    kept = (sign if kind[0] in "LMN" or sign in _SPOKEN else "" if kind == "Cf" else " " for sign, kind in kinds)
    words = unicodedata.normalize("NFC", "".join(kept)).split()
    return " ".join(word for word in (raw.strip("'") for raw in words) if word)


NORMALISERS: dict[str, Callable[[str], str]] = {"none": squeeze, "english": english, "letters": letters}


def normaliser(name: str) -> Callable[[str], str]:
    """The normaliser of that name. raises: TextError naming the nearest known one."""
    if name not in NORMALISERS:
        raise TextError(f"unknown text normaliser '{name}': {nearest(name, NORMALISERS)}")
    return NORMALISERS[name]
