"""JSGF, through the grammar that is made of it: what a text means, and where it is wrong."""

from __future__ import annotations

import pytest
from grammars import accepts

from asr.decoding.grammar import Grammar
from asr.errors import DecodingError
from asr.text import english
from asr.tokens import Tokens

LETTERS = Tokens.of(" abcdefghijklmnopqrstuvwxyz'")


def read(rules: str) -> Grammar:
    return Grammar.parse(f"#JSGF V1.0;\ngrammar test;\n{rules}", english, LETTERS)


def sentences(rules: str, texts: list[str]) -> list[str]:
    found = read(rules)
    return [text for text in texts if accepts(found, LETTERS, text)]


def test_words_are_normalised() -> None:
    assert sentences('public <s> = Don’t | "R & B" | Zoë;', ["don't", "r and b", "zoe"]) == ["don't", "r and b", "zoe"]


def test_null_and_void() -> None:
    texts = ["", "a", "b", "a b"]
    assert sentences("public <s> = a (b | <NULL>);", texts) == ["a", "a b"]
    assert sentences("public <s> = a (b | <VOID>);", texts) == ["a b"]
    assert sentences("public <s> = a <VOID> | b;", texts) == ["b"]
    assert sentences("public <s> = [a];", texts) == ["", "a"]
    with pytest.raises(DecodingError, match="expected a grammar with a sentence, got none"):
        read("public <s> = a <VOID>;")


def test_operators_bind_to_the_item_before_them() -> None:
    texts = ["a", "a b", "a b b", "a a b", "a b a b", "b", "c"]
    assert sentences("public <s> = a b+ | c;", texts) == ["a b", "a b b", "c"]
    assert sentences("public <s> = (a b)+;", texts) == ["a b", "a b a b"]
    assert sentences("public <s> = [a] {x}* b {y};", texts) == ["a b", "a a b", "b"]


def test_equal_rules_may_be_used_twice() -> None:
    assert sentences("public <s> = <n> <n>; <n> = a | b;", ["a", "a b", "b b", "a b a"]) == ["a b", "b b"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("public <s> = a <typo>;\n<type> = b;", r"^grammar:3:16: there is no rule <typo>; did you mean 'type'\?"),
        ("public <s> = <a>;\n<a> = x <b>;\n<b> = [<a>];", ":5:8: expected rules .* got <a> -> <b> -> <a>: repeat with"),
        ("public <s> = a <s>;", ":3:16: expected rules that do not contain themselves, got <s> -> <s>"),
        ("public <s> = (a (b);", r":3:20: expected '\)' for the '\(' at grammar:3:14, got ';'"),
        ("public <s> = [a;", r":3:16: expected '\]' for the '\[' at grammar:3:14, got ';'"),
        ("public <s> = (a];", r"expected '\)' for the '\(' at grammar:3:14, got '\]'"),
        ("public <s> = a);", r":3:15: expected ';' at the end of <s>, got '\)'"),
        ("public <s> = a\n<t> = b;", ":4:5: expected ';' at the end of <s>, got '='"),
        ("public <s> = a", ":3:15: expected ';' at the end of <s>, got the end of the text"),
        ("public <s> = a | ;", r":3:18: expected a word, .*\(<NULL> stands for nothing\), got ';'"),
        ("public <s> = ();", r":3:15: expected a word, .* got '\)'"),
        ("public <s> = * a;", r":3:14: expected a word, .* got '\*'"),
        ("public <s> = a /2/ b;", "expected ';' at the end of <s>, got '/2/'"),
        ("public s = a;", ":3:8: expected a rule such as .*, got 's'"),
        ("public <s> a;", ":3:12: expected '=' after <s>, got 'a'"),
        ("public <s> = a; <s> = b;", ":3:17: expected each rule once, got <s> again"),
        ("public <NULL> = a;", "expected each rule once, got <NULL> again"),
        ("<s> = a;", "expected a public rule, got none: write 'public'"),
        ("", "expected a public rule"),
        ("import <other.*>;", ":3:1: expected a rule, got an import, which is not supported: copy"),
        ("public <s> = go ж it;", r""":3:17: 'ж' has 'ж' outside the alphabet " abc.*": write it as"""),
        ('public <s> = go "?!";', r":3:17: expected words, got '\?!', of which normalising leaves nothing"),
        ('public <s> = "go;\n', r""":3:14: expected a word or a sign of JSGF, got '"go;\\n': close"""),
        ("public <s> = a {tag;", r":3:16: .* got '\{tag;': close"),
        ("public <s> = a /* b;", r":3:16: .* got '/\* b;': close"),
        ("public <s> = and/or;", ":3:17: .* got '/or;': .*put words with signs in double quotes"),
        ("public <s> = " + "(" * 65 + "a" + ")" * 65 + ";", ":3:78: expected at most 64 brackets within one another"),
        ("public <s> = a" + "+" * 1000 + ";", "expected at most 300 expressions within one another"),
    ],
)
def test_errors_name_line_and_column(rules: str, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        read(rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#JSGF;\n", "^grammar:1:1: expected '#JSGF V1.0;', got '#JSGF'"),
        ("#JSGF V1.0\ngrammar a;", ":1:1: expected '#JSGF V1.0;'"),
        ("#JSGF V1.0;\npublic <a> = b;", ":2:1: expected 'grammar NAME;' after the header, got 'public'"),
        ("#JSGF V1.0;\ngrammar ;", ":2:9: expected the grammar's name, got ';'"),
        ("#JSGF V1.0;\ngrammar a\npublic <a> = b;", ":3:1: expected ';' after the grammar's name"),
    ],
)
def test_texts_without_a_whole_header(text: str, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        Grammar.parse(text, english, LETTERS)
