"""JSGF texts -> expressions, which say what the sentences of a grammar are made of.

    #JSGF V1.0;
    grammar lights;
    public <command> = [please] turn <state> the (light | lamp)+ ;   // a rule that a sentence may follow
    <state> = /10/ on {ON} | off {OFF};

All of JSGF is read but `import` and recursion; weights and {tags} are read and ignored. The sentences are those of all
public rules.

source: Hunt 2000, "JSpeech Grammar Format", W3C Note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from asr.errors import DecodingError

_MAX_NESTING = 64  # brackets within brackets


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words with single spaces between, normalised as the recogniser's texts."""

    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after the other; of no parts, the empty sentence."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of the options; of no options, no sentence at all."""

    options: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The part, once or more."""

    part: Expression


@dataclass(frozen=True, slots=True)
class Reference:
    """What the rule of that name stands for. where: what errors call the place."""

    name: str
    where: str = "grammar"


Expression = Phrase | Sequence | Choice | Repeat | Reference
NULL: Expression = Sequence(())
VOID: Expression = Choice(())


def parse(
    text: str, spell: Callable[[str, str], Phrase], where: str = "grammar"
) -> tuple[Expression, dict[str, Expression]]:
    """The union of a text's public rules, and all its rules by name; whether they refer to rules that exist is not checked.

    spell:  what makes a phrase of a word and its place, or raises.  where: what errors call the text.
    raises: DecodingError naming line and column.
    """
    return _Parser(text, spell, where).text()


class _Token(NamedTuple):
    """A piece of a JSGF text. kind: a group of `_TOKEN`, the sign itself, or "end"."""

    kind: str
    text: str
    where: str


_TOKEN = re.compile(
    r"""
    (?P<gap>    \s+ | //[^\n]* | /\*.*?\*/ )
  | (?P<header> \A\#JSGF\ +V[\d.]+(?:\ +[\w.-]+){0,2}\ *; )
  | (?P<tag>    \{(?:[^\\}]|\\.)*\} )
  | (?P<quoted> "(?:[^"\\\n]|\\.)*" )
  | (?P<rule>   <[^<>\s]+> )
  | (?P<weight> /\s*[\d.]+(?:[eE][+-]?\d+)?\s*/ )
  | (?P<sign>   [()\[\]|*+;=] )
  | (?P<word>   [^\s()\[\]|*+;=<>{}"/]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Parser:
    """Reads a text by recursive descent, one method a line:

    text     = header "grammar" name ";" rule*
    rule     = ["public"] <name> "=" choice ";"
    choice   = sequence ("|" sequence)*
    sequence = [weight] item+
    item     = (word | <name> | "(" choice ")" | "[" choice "]") ("*" | "+" | tag)*
    """

    def __init__(self, text: str, spell: Callable[[str, str], Phrase], where: str) -> None:
        self._spell = spell
        self._where = where
        self._nesting = 0
        self._tokens = self._split(text)
        self._token = next(self._tokens)

    def text(self) -> tuple[Expression, dict[str, Expression]]:
        self._expect("header", "'#JSGF V1.0;'")
        if not self._take_word("grammar"):
            self._fail("'grammar NAME;' after the header")
        self._expect("word", "the grammar's name")
        self._expect(";", "';' after the grammar's name")
        rules: dict[str, Expression] = {}
        public: list[Expression] = []
        while self._token.kind != "end":
            self._rule(rules, public)
        if not public:
            raise DecodingError(
                f"{self._where}: expected a public rule, got none: write 'public' before each rule that is a sentence"
            )
        return Choice(tuple(public)), rules

    def _rule(self, rules: dict[str, Expression], public: list[Expression]) -> None:
        where = self._token.where
        if self._take_word("import"):
            raise DecodingError(f"{where}: expected a rule, got an import, which is not supported: copy the rules")
        is_public = self._take_word("public")
        where = self._token.where
        name = self._expect("rule", "a rule such as 'public <name> = yes | no;'").text[1:-1]
        if name in rules or name in ("NULL", "VOID"):
            raise DecodingError(f"{where}: expected each rule once, got <{name}> again: rename one")
        if is_public:
            public.append(Reference(name, where))
        self._expect("=", f"'=' after <{name}>")
        rules[name] = self._choice()
        self._expect(";", f"';' at the end of <{name}>")

    def _choice(self) -> Expression:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Expression:
        self._take("weight")
        parts = [self._item()]
        while self._token.kind in ("word", "quoted", "rule", "(", "["):
            parts.append(self._item())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self) -> Expression:
        token = self._take("word", "quoted", "rule", "(", "[")
        item: Expression
        match token:
            case None:
                self._fail("a word, a <rule>, '(' or '[' (<NULL> stands for nothing)")
            case _Token("word", text, where):
                item = self._spell(text, where)
            case _Token("quoted", text, where):
                item = self._spell(re.sub(r"\\(.)", r"\1", text[1:-1]), where)
            case _Token("rule", text, where):
                item = {"<NULL>": NULL, "<VOID>": VOID}.get(text) or Reference(text[1:-1], where)
            case _Token(opened, _, where):
                self._nesting += 1
                if self._nesting > _MAX_NESTING:
                    raise DecodingError(
                        f"{where}: expected at most {_MAX_NESTING} brackets within one another, got more"
                    )
                item = self._choice()
                closing = {"(": ")", "[": "]"}[opened]
                self._expect(closing, f"'{closing}' for the '{opened}' at {where}")
                self._nesting -= 1
                if opened == "[":
                    item = Choice((item, NULL))
        while suffix := self._take("*", "+", "tag"):
            if suffix.kind != "tag":
                item = Repeat(item)
            if suffix.kind == "*":
                item = Choice((item, NULL))
        return item

    def _take(self, *kinds: str) -> _Token | None:
        """The next token, if it is of one of the kinds."""
        token = self._token
        if token.kind not in kinds:
            return None
        self._token = next(self._tokens)
        return token

    def _take_word(self, word: str) -> bool:
        return self._token.text == word and self._take("word") is not None

    def _expect(self, kind: str, what: str) -> _Token:
        return self._take(kind) or self._fail(what)

    def _fail(self, expected: str) -> NoReturn:
        got = "the end of the text" if self._token.kind == "end" else repr(self._token.text[:60])
        raise DecodingError(f"{self._token.where}: expected {expected}, got {got}")

    def _split(self, text: str) -> Iterator[_Token]:
        """The tokens of the text, less gaps and comments; the last is of kind "end"."""
        at, line, line_start = 0, 1, 0
        while at < len(text):
            where = f"{self._where}:{line}:{at - line_start + 1}"
            found = _TOKEN.match(text, at)
            if not found:
                raise DecodingError(
                    f"{where}: expected a word or a sign of JSGF, got {text[at : at + 20]!r}: "
                    "close what is opened there, or put words with signs in double quotes"
                )
            kind = str(found.lastgroup)
            if kind != "gap":
                yield _Token(found.group() if kind == "sign" else kind, found.group(), where)
            line += found.group().count("\n")
            line_start = max(line_start, text.rfind("\n", at, found.end()) + 1)
            at = found.end()
        yield _Token("end", "", f"{self._where}:{line}:{at - line_start + 1}")
