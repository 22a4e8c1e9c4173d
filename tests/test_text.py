import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.text import NORMALISERS, TextError, english, letters, normaliser, squeeze


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("MARK IS GOING", "mark is going"),
        ("“Don’t,” said Zoë, 'half-way' — the '90s!", "don't said zoe half way the nineties"),
        ("dogs' tails", "dogs tails"),
        ("rock 'n' roll", "rock n roll"),
        ("don＇t don`t donʼt", "don't don't don't"),
        ("Rock & roll", "rock and roll"),
        ("a $ * § sign", "a $ sign"),  # read aloud: kept, so that the alphabet's check shows it
        ("co\u00adoperate \ufeffnow", "cooperate now"),
        ("snake_case e-mail/web", "snake case e mail web"),
        ("İstanbul Å ﬁne", "istanbul a fine"),
        ("Straße", "straße"),  # no accent: left for the alphabet's check
        ("\u212a \u2122", "k tm"),  # Kelvin and trade mark sign decompose to capitals
        ("a\u00a0b\u2028c\td\n", "a b c d"),
        ("", ""),
        ("?! '…'", ""),
    ],
)
def test_english(published: str, expected: str) -> None:
    assert english(published) == expected


@pytest.mark.parametrize(
    ("published", "expected"),
    [("  A  b\t\nc ", "A b c"), ("e\u0301", "é"), ("Don’t, 5!", "Don’t, 5!"), ("", "")],
)
def test_squeeze(published: str, expected: str) -> None:
    assert squeeze(published) == expected


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("«Où est-ce?» demanda l’élève;", "où est ce demanda l'élève"),
        ("„Straße“, 'Öl' & 5 %", "straße öl & 5 %"),
        ("नमस्ते, दुनिया!", "नमस्ते दुनिया"),  # its vowels are marks
        ("Что? Ёлка…", "что ёлка"),
        ("今日は、世界。", "今日は 世界"),
        ("co\u00adoperate e\u200c\u0301 snake_case", "cooperate é snake case"),
        ("", ""),
    ],
)
def test_letters(published: str, expected: str) -> None:
    assert letters(published) == expected


@pytest.mark.parametrize("name", NORMALISERS)
@given(text=st.text())
def test_normalising_twice_changes_nothing(name: str, text: str) -> None:
    once = normaliser(name)(text)
    assert normaliser(name)(once) == once


@given(st.text())
def test_english_is_lower_case_and_single_spaced(text: str) -> None:
    out = english(text)
    assert out == out.lower()
    assert out.split() == ([] if out == "" else out.split(" "))


def test_unknown_normaliser_names_the_nearest() -> None:
    with pytest.raises(TextError, match=r"'englsh': did you mean 'english'\?"):
        normaliser("englsh")
