from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from grammars import accepts
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc, grammar
from asr.decoding.grammar import Grammar
from asr.decoding.jsgf import NULL, VOID, Choice, Expression, Phrase, Reference, Repeat, Sequence
from asr.errors import DecodingError
from asr.text import english, squeeze
from asr.tokens import TokenError, Tokens

SMALL = Tokens.of("ab ")
LETTERS = Tokens.of(" abcdefghijklmnopqrstuvwxyz'")
TEXTS = ["".join(letters) for length in range(7) for letters in itertools.product("ab ", repeat=length)]


def jsgf(rules: str) -> str:
    return f"#JSGF V1.0;\ngrammar test;\n{rules}"


def read(rules: str, tokens: Tokens = LETTERS) -> Grammar:
    return Grammar.parse(jsgf(rules), english, tokens)


# The same expression thrice: for us, as JSGF, and as a regular expression over words, each followed by a space.
Thrice = tuple[Expression, str, str]


def word(text: str) -> Thrice:
    return Phrase(text), f'"{text}"' if " " in text else text, f"(?:{text} )"


def grown(smaller: st.SearchStrategy[Thrice]) -> st.SearchStrategy[Thrice]:
    some = st.lists(smaller, min_size=1, max_size=3)
    return st.one_of(
        some.map(
            lambda parts: (
                Sequence(tuple(part[0] for part in parts)),
                f"({' '.join(part[1] for part in parts)})",
                "".join(part[2] for part in parts),
            )
        ),
        some.map(
            lambda parts: (
                Choice(tuple(part[0] for part in parts)),
                f"({' | '.join(part[1] for part in parts)})",
                f"(?:{'|'.join(part[2] for part in parts)})",
            )
        ),
        smaller.map(lambda part: (Repeat(part[0]), f"({part[1]})+", f"(?:{part[2]})+")),
        smaller.map(lambda part: (Choice((Repeat(part[0]), NULL)), f"{part[1]}* {{tag}}", f"(?:{part[2]})*")),
        smaller.map(lambda part: (Choice((part[0], NULL)), f"[{part[1]}]", f"(?:{part[2]})?")),
    )


leaves = st.sampled_from(
    [*map(word, ("a", "b", "ab", "ba", "a b")), (NULL, "<NULL>", ""), (VOID, "<VOID>", "(?!)")]  # (?!) never matches
)
expressions = st.recursive(leaves, grown, max_leaves=6)


@given(expressions)
@settings(max_examples=150)
def test_accepts_what_the_regular_expression_does(expression: Thrice) -> None:
    # A sentence of its own, lest there be none at all.
    ours, written, regular = (
        Choice((expression[0], Phrase("bb b"))),
        f"{expression[1]} | bb b",
        f"{expression[2]}|bb b ",
    )
    expected = {
        text
        for text in TEXTS
        if text == " ".join(text.split()) and re.fullmatch(regular, "".join(w + " " for w in text.split()))
    }
    for found in (Grammar(ours, SMALL), read(f"public <s> = {written};", SMALL)):
        assert {text for text in TEXTS if accepts(found, SMALL, text)} == expected
        assert_lively(found, SMALL)


def assert_lively(found: Grammar, tokens: Tokens) -> None:
    """Every state that can be reached without -inf can reach the end of a sentence."""
    all_tokens = np.arange(1, len(tokens))
    before: dict[int, set[int]] = {}
    reached, waiting = {found.start}, [found.start]
    while waiting:
        state = waiting.pop()
        allowed = all_tokens[found.scores(np.array([state]), all_tokens)[0] == 0]
        for following in found.advance(np.full(len(allowed), state), allowed).tolist():
            before.setdefault(following, set()).add(state)
            if following not in reached:
                reached.add(following)
                waiting.append(following)
    states = np.array(sorted(reached))
    lively = set(states[found.end(states) == 0].tolist())
    waiting = list(lively)
    while waiting:
        new = before.get(waiting.pop(), set()) - lively
        lively |= new
        waiting += new
    assert lively == reached


@given(
    st.lists(
        st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=6
    )
)
@settings(max_examples=50)
def test_a_list_accepts_its_sentences(listed: list[str]) -> None:
    found = Grammar.parse("\n".join(listed), squeeze, SMALL)
    assert {text for text in TEXTS if accepts(found, SMALL, text)} == {text for text in listed if len(text) < 7}
    assert all(accepts(found, SMALL, text) for text in listed)
    assert_lively(found, SMALL)


def test_scores() -> None:
    found = Grammar.parse("ab\nab a", squeeze, SMALL)
    a, b, space = 1, 2, 3
    states = np.array([found.start] * 3)
    np.testing.assert_array_equal(found.scores(states, np.array([a, b, space])), [[0, -np.inf, -np.inf]] * 3)
    states = found.advance(found.advance(states, np.array([a, a, b])), np.array([b, a, b]))
    assert states.dtype == np.int64
    # "ab", and two texts that the grammar forbids: they stay forbidden.
    np.testing.assert_array_equal(found.end(states), [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(
        found.scores(states, np.array([a, space])), [[-np.inf, 0], [-np.inf, -np.inf], [-np.inf, -np.inf]]
    )


def test_the_search_finds_the_best_sentence() -> None:
    found = Grammar.parse("ab a\nb", squeeze, SMALL)
    for seed in range(10):
        logits = np.random.default_rng(seed).normal(size=(5, 4)) * 2
        log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
        everything = ctc.beam(log_probs, 1000, 1000)
        expected = [one for one in everything if accepts(found, SMALL, SMALL.decode(one.token_ids))]
        assert {SMALL.decode(one.token_ids) for one in expected} == {"ab a", "b"}
        steered = ctc.beam(log_probs, 1000, 1000, [found])
        assert [one.token_ids for one in steered] == [one.token_ids for one in expected]
        np.testing.assert_allclose([one.score for one in steered], [one.score for one in expected], atol=1e-9)


def test_an_alphabet_without_a_space_spells_one_word() -> None:
    tokens = Tokens.of("ab")
    found = Grammar(Choice((Phrase("ab"), Phrase("b"))), tokens)
    assert [text for text in ("ab", "a", "b", "bb", "a b") if accepts(found, tokens, text)] == ["ab", "b"]
    with pytest.raises(DecodingError, match="expected sentences of one word, as the alphabet 'ab' has no space"):
        Grammar(Repeat(Phrase("a")), tokens)


# Files


def test_read_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff# commands\r\n\r\n  Turn  ON\r\nturn off!\r\n".encode())
    found = Grammar.read(path, english, LETTERS)
    assert accepts(found, LETTERS, "turn on")
    assert accepts(found, LETTERS, "turn off")
    assert not accepts(found, LETTERS, "turn")
    assert not accepts(found, LETTERS, "turn on ")
    assert not accepts(found, LETTERS, "Turn on")


def test_read_jsgf(tmp_path: Path) -> None:
    path = tmp_path / "lights.gram"
    path.write_text(
        """#JSGF V1.0 UTF-8 en;
grammar com.example.lights;  // a name may have dots
/* A comment
   of two lines; with <signs> = */
public <command> = [please] turn <state> the (light | "reading lamp")+ {do(\\} it)} ;
<state> = /10/ on {ON} | /2.5e-1/ off {OFF};  // weights and tags count for nothing
public <bye> = good* bye;
""",
        encoding="utf-8",
    )
    found = Grammar.read(path, english, LETTERS)
    for text in ("please turn on the light", "turn off the reading lamp light", "bye", "good good bye"):
        assert accepts(found, LETTERS, text)
    for text in ("turn the light", "turn on the reading", "turn on the", "good", "", "do it", "please bye"):
        assert not accepts(found, LETTERS, text)
    assert_lively(found, LETTERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^grammar: expected a sentence a line, or #JSGF at the start, got neither"),
        ("# nothing\n", "^grammar: expected a sentence a line"),
        ("turn on\nroom ж", r"^grammar:2: 'room ж' has 'ж' outside the alphabet"),
        ("turn on\n?", r"^grammar:2: expected words, got '\?'"),
    ],
)
def test_other_texts_that_are_no_grammar(text: str, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        Grammar.parse(text, english, LETTERS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "g.gram"
    with pytest.raises(DecodingError, match=r"g\.gram: no such grammar; check the path"):
        Grammar.read(path, english, LETTERS)
    path.write_bytes(b"ok\nna\xefve\n")
    with pytest.raises(DecodingError, match=r"g\.gram:2: expected UTF-8, got byte 0xef; save"):
        Grammar.read(path, english, LETTERS)
    with pytest.raises(DecodingError, match="cannot be read"):
        Grammar.read(tmp_path, english, LETTERS)
    path.write_text(jsgf("public <s> = <t>;"), encoding="utf-8")
    with pytest.raises(DecodingError, match=r"g\.gram:3:14: there is no rule <t>"):
        Grammar.read(path, english, LETTERS)


def test_expressions_of_python_are_checked() -> None:
    with pytest.raises(TokenError, match="character 'c'"):
        Grammar(Phrase("abc"), SMALL)
    with pytest.raises(DecodingError, match="there is no rule <x>"):
        Grammar(Reference("x"), SMALL)


# Size


def test_long_chains_of_rules_are_refused_not_overflowed() -> None:
    def chain(length: int) -> str:
        return (
            "public <r0> = <r1>;" + "".join(f"<r{i}> = a [<r{i + 1}>];" for i in range(1, length)) + f"<r{length}> = b;"
        )

    assert accepts(read(chain(70)), LETTERS, "a " * 69 + "b")
    with pytest.raises(
        DecodingError, match=r"expected at most 300 expressions within one another, through <r\d+>, got more"
    ):
        read(chain(1000))


@pytest.mark.parametrize("base", ["a", "<NULL>", "<VOID>"])
@pytest.mark.parametrize("both", ["<{0}> <{0}>", "<{0}> | <{0}>"])
def test_rules_that_grow_without_bound(base: str, both: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_MAX_SIZE", 20_000)
    doubled = "".join(f"<r{i}> = {both.format(f'r{i + 1}')};" for i in range(60))
    with pytest.raises(DecodingError, match="expected a grammar of at most 20000 states with all its references"):
        read(f"public <s> = <r0>; {doubled} <r60> = {base};")


def test_determinising_that_grows_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # To know whether the 40th word from the end is "a", one must remember the last 40 words.
    monkeypatch.setattr(grammar, "_MAX_SIZE", 20_000)
    with pytest.raises(DecodingError, match="at most 20000 states"):
        read(f"public <s> = (a | b)* a {'(a | b) ' * 40};")


def test_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_MAX_TABLE", 1 << 20)
    with pytest.raises(DecodingError, match=r"at most 1 MB, got 20002 states of 29 tokens, 2 MB: use fewer"):
        Grammar(Phrase("a" * 20_000), LETTERS)


def test_thousands_of_sentences() -> None:
    rng = np.random.default_rng(0)
    listed = sorted({" ".join("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(3)) for _ in range(3000)})
    begun = time.perf_counter()
    found = Grammar.parse("\n".join(listed), squeeze, LETTERS)
    assert time.perf_counter() - begun < 20  # a fraction of a second
    assert all(accepts(found, LETTERS, text) for text in listed)
    assert not accepts(found, LETTERS, listed[0] + "a")
