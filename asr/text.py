"""Transcript normalisation: named functions, one chosen by each recipe.

A normaliser maps a transcript as published to the text a model is trained on and scored against. It never drops what is
spoken but cannot be spelt (digits stay digits): what is left outside the alphabet is an error for `asr doctor` to show,
not a hole in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from asr.errors import AsrError, nearest

_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'", "\u00b4": "'"})
_SPOKEN = "'&%@#$€£¥+=°"
_UNSPOKEN = re.compile(r"[^\w'%@#$€£¥+=°]|_")


class TextError(AsrError):
    """A transcript or a normaliser's name that cannot be used."""


def squeeze(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends; the text is otherwise kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def english(text: str) -> str:
    """Lower case; letters without accents, digits, apostrophes inside words, signs that are read aloud; no punctuation.

    >>> english("“Don’t,” said Zoë, 'half-way' — the '90s!")
    "don't said zoe half way the 90s"
    >>> english("Rock & roll: 5%")
    'rock and roll 5%'
    """
    # Lower case last: the decomposition of signs such as the Kelvin or trade mark sign holds capitals.
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).translate(_APOSTROPHES).lower()
    # Accents go, and so do invisible characters such as the soft hyphen, which stand inside words.
    text = "".join(sign for sign in text if not unicodedata.combining(sign) and unicodedata.category(sign) != "Cf")
    text = re.sub(_UNSPOKEN, " ", text.replace("&", " and "))
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
