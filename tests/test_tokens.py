from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.tokens import BLANK, BLANK_SYMBOL, TokenError, Tokens, min_frames

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"
TOKENS = Tokens.of(ALPHABET)


@given(st.text(ALPHABET))
def test_decode_undoes_encode(text: str) -> None:
    assert TOKENS.decode(TOKENS.encode(text)) == text


def test_blank_is_first_and_spells_nothing() -> None:
    assert TOKENS.symbols[BLANK] == BLANK_SYMBOL
    assert len(TOKENS) == len(ALPHABET) + 1
    assert BLANK not in TOKENS.encode(ALPHABET)
    assert TOKENS.decode(np.array([BLANK, 3, BLANK, 3, 4])) == "aab"


def test_equal_vocabularies_are_equal() -> None:
    assert Tokens.of("ab") == Tokens([BLANK_SYMBOL, "a", "b"])
    assert Tokens.of("ab") != Tokens.of("ba")
    assert hash(Tokens.of("ab")) == hash(Tokens.of("ab"))
    assert repr(Tokens.of("ab")) == "Tokens.of('ab')"


def test_unknown_lists_each_character_once_in_order() -> None:
    assert Tokens.of("abc").unknown("xaybxz") == ["x", "y", "z"]
    assert Tokens.of("abc").unknown("cab") == []


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([], "starts with"),
        (["a", "b"], "starts with"),
        ([BLANK_SYMBOL], "empty alphabet"),
        ([BLANK_SYMBOL, "ab"], "single characters"),
        ([BLANK_SYMBOL, *" ab", "ac"], r"single characters .* got \['ac'\]"),
        ([BLANK_SYMBOL, *" ab", "a b"], "only begins pieces"),
        ([BLANK_SYMBOL, *" ab", "  "], "only begins pieces"),
        ([BLANK_SYMBOL, *"ab", "ab"], "no space"),
        ([BLANK_SYMBOL, *" a", "a" * 65], "1 to 64 characters"),
        ([BLANK_SYMBOL, " ", ["a", "b"]], "1 to 64 characters"),
        ([BLANK_SYMBOL, ""], "1 to 64 characters"),
        ([BLANK_SYMBOL, "a", "a"], "once"),
    ],
)
def test_malformed_vocabulary(symbols: list[str], message: str) -> None:
    with pytest.raises(TokenError, match=message):
        Tokens(symbols)


SUBWORDS = Tokens([BLANK_SYMBOL, *" abc", "ab", " c", " cab", "bc", "abc"])


def test_subwords_are_merged_in_their_order() -> None:
    def pieces(text: str) -> list[str]:
        return [SUBWORDS.symbols[token_id] for token_id in SUBWORDS.encode(text)]

    assert pieces("") == []
    assert pieces("ab") == [" ", "ab"]
    assert pieces("cab cab") == [" cab", " cab"]  # " c" + "ab"
    assert pieces("abc bc") == [" ", "abc", " ", "bc"]
    assert pieces("aab  c ") == [" ", "a", "ab", " ", " c", " "]
    assert pieces("cbc") == [" c", "bc"]


@given(st.text(" abc", min_size=1))
def test_subwords_decode_to_the_text_after_a_space(text: str) -> None:
    assert SUBWORDS.decode(SUBWORDS.encode(text)) == " " + text


def test_what_subwords_are_made_of() -> None:
    assert (SUBWORDS.subwords, SUBWORDS.alphabet, SUBWORDS.characters) == (True, " abc", Tokens.of(" abc"))
    assert (SUBWORDS.space, SUBWORDS.separator, SUBWORDS.word_starts) == (1, (), frozenset({1, 6, 7}))
    assert (TOKENS.subwords, TOKENS.alphabet, TOKENS.characters) == (False, ALPHABET, TOKENS)
    assert (TOKENS.space, TOKENS.separator, TOKENS.word_starts) == (1, (1,), frozenset({1}))
    assert (Tokens.of("ab").space, Tokens.of("ab").separator, Tokens.of("ab").word_starts) == (BLANK, (), frozenset())
    assert SUBWORDS.unknown("ab d") == ["d"]
    assert eval(repr(SUBWORDS)) == SUBWORDS
    with pytest.raises(TokenError, match="'d' at position 3 of 'ab d'"):
        SUBWORDS.encode("ab d")


def test_encode_names_the_character_and_its_place() -> None:
    with pytest.raises(TokenError, match="'5' at position 2 of 'a 5'"):
        TOKENS.encode("a 5")


@pytest.mark.parametrize("token_id", [-1, len(TOKENS)])
def test_decode_refuses_ids_outside_the_vocabulary(token_id: int) -> None:
    with pytest.raises(TokenError, match="token ids from 0"):
        TOKENS.decode([3, token_id])


@pytest.mark.parametrize("text", ["", "a", "ab", "aa", "aab", "abba", "aaa"])
def test_min_frames_is_the_shortest_alignment(text: str) -> None:
    """Against every path of blank, a and b: the first length at which one collapses to the text."""
    token_ids = Tokens.of("ab").encode(text)

    def collapses(path: tuple[int, ...]) -> bool:
        kept = [token for at, token in enumerate(path) if at == 0 or token != path[at - 1]]
        return [token for token in kept if token != BLANK] == token_ids

    shortest = next(length for length in range(9) if any(map(collapses, product(range(3), repeat=length))))
    assert min_frames(token_ids) == shortest
