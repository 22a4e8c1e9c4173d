"""Grammars: the beam search restricted to the sentences of a list, or of a JSGF grammar.

A file whose first line begins with #JSGF is a JSpeech Grammar (`asr.decoding.jsgf`); any other has a sentence a line,
where empty lines and lines that begin with # are skipped.

The way from an expression to a table takes two automata. The first is nondeterministic: its arcs are tokens, or silent.
The second, made of sets of the first one's states, is the table. Every word is spelt with a space before it, and the text
is read as if it began with one: so no word is a special case.

source: Thompson 1968, "Regular Expression Search Algorithm";
        Rabin & Scott 1959, "Finite Automata and Their Decision Problems".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from asr import files
from asr.decoding import jsgf
from asr.decoding import phrases as spelling
from asr.decoding.jsgf import Choice, Expression, Phrase, Reference, Repeat, Sequence
from asr.errors import DecodingError, nearest
from asr.tokens import BLANK, Tokens

_MAX_SIZE = 2_000_000  # arcs of the first automaton and members of the second one's states: 10 s, 1 GB
_MAX_TABLE = 1 << 30  # bytes
_MAX_DEPTH = 300  # expressions within expressions, through references too: Python allows 1000 calls
_DEAD, _START = 0, 1
_HEADER = "'#JSGF V1.0;' at the very start"
_RULE = re.compile(r"^\s*(?:public\s+)?<[^<>\s]+>\s*=", re.MULTILINE)  # of JSGF, which no list of sentences has


class Grammar:
    """A scorer for the beam search (`asr.decoding.ctc.Scorer`) that forbids what does not become a sentence of the grammar.

    A character scores 0 where a sentence can go on with it, -inf elsewhere; the end scores 0 where a sentence may end. There
    is one space between words and none at the ends, as a prefix that does not grow by a space loses nothing. Memory:
    4 V bytes a state, of which a list of sentences has at most one a letter.

    sentences: an expression.  rules: those that it refers to.  where: what errors call the grammar.
    raises:    DecodingError if a rule is missing or refers to itself, no sentence is left, or there are too many states;
               TokenError if a phrase cannot be spelt.
    """

    start = _START

    def __init__(
        self,
        sentences: Expression,
        tokens: Tokens,
        rules: Mapping[str, Expression] | None = None,
        where: str = "grammar",
    ) -> None:
        # Of subwords, see `asr.decoding.subwords`.
        self._next, self._final = _Automaton(sentences, tokens.characters, rules or {}, where).table()

    @classmethod
    def read(cls, path: str | Path, normalise: Callable[[str], str], tokens: Tokens) -> Grammar:
        """The grammar of a file, see above and `parse`.

        raises: DecodingError naming the place if it is missing, not UTF-8 (whatever a JSGF header says), or as `parse`.
        """
        text = "".join(line for _, line in files.lines(path, DecodingError, what="grammar"))
        if Path(path).suffix.lower() == ".jsgf" and not text.startswith("#JSGF"):
            raise DecodingError(f"{path}:1: expected {_HEADER}, got {text.split(chr(10))[0][:40]!r}")
        return cls.parse(text, normalise, tokens, str(path))

    @classmethod
    def parse(cls, text: str, normalise: Callable[[str], str], tokens: Tokens, where: str = "grammar") -> Grammar:
        """The grammar of a text: JSGF if it begins with #JSGF, otherwise a sentence a line.

        normalise: the normaliser of the recogniser's texts (`asr.text`), applied to each sentence, of JSGF to each word.
        where:     what errors call the text.
        raises:    DecodingError naming line and column if the text is not as described above, a word has characters
                   outside the alphabet, or as `Grammar`.
        """

        def spell(written: str, place: str) -> Phrase:
            return Phrase(spelling.spell(written, normalise, tokens, place, DecodingError))

        if text.startswith("#JSGF"):
            sentences, rules = jsgf.parse(text, spell, where)
            return cls(sentences, tokens, rules, where)
        if rule := _RULE.search(text):
            number = text.count("\n", 0, rule.end()) + 1
            raise DecodingError(
                f"{where}:{number}: expected {_HEADER} before rules, got {rule[0].strip()!r} without it"
            )
        lines = ((line.strip(), number) for number, line in enumerate(text.split("\n"), start=1))
        listed = [spell(line, f"{where}:{number}") for line, number in lines if line and not line.startswith("#")]
        if not listed:
            raise DecodingError(f"{where}: expected a sentence a line, or #JSGF at the start, got neither")
        return cls(Choice(tuple(listed)), tokens, where=where)

    @classmethod
    def of(cls, sentences: Iterable[str], normalise: Callable[[str], str], tokens: Tokens) -> Grammar:
        """The grammar of these sentences and no others. raises: DecodingError, as `parse`."""
        listed = [spelling.spell(text, normalise, tokens, "grammar", DecodingError) for text in sentences]
        if not listed:
            raise DecodingError("grammar: expected a sentence, got none")
        return cls(Choice(tuple(map(Phrase, listed))), tokens)

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """0 for each token that a prefix can grow by, -inf for the others. (n,), (K,) -> (n, K) float64."""
        return np.where(self._next[states[:, None], tokens] == _DEAD, -np.inf, 0.0)

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after each prefix grew by its own token. (n,), (n,) -> (n,) int64."""
        following: np.ndarray = self._next[states, tokens].astype(np.int64)
        return following

    def end(self, states: np.ndarray) -> np.ndarray:
        """0 for each prefix that is a sentence, -inf for the others. (n,) -> (n,) float64."""
        return np.where(self._final[states], 0.0, -np.inf)


class _Automaton:
    """The nondeterministic automaton of an expression: from each state arcs by token, and silent ones.

    An expression is laid between two states such that none of its arcs leads to the first or away from the last one.
    Hence options may share both, and parts may follow one another.
    """

    def __init__(self, sentences: Expression, tokens: Tokens, rules: Mapping[str, Expression], where: str) -> None:
        self._tokens = tokens
        # Without a space in the alphabet a sentence is one word. The blank, which scorers are never asked for, stands in.
        self._space = tokens.space
        self._rules = rules
        self._where = where
        self._size = 0
        self._arcs: list[list[tuple[int, int]]] = []  # of each state: token and state
        self._silent: list[list[int]] = []
        self._first, self._last = self._state(), self._state()
        self._lay(sentences, self._first, self._last, (), 0)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """The deterministic automaton: (S, V) int32, the state after each token; (S,) bool, whether a sentence ends.

        Its states are the sets of states that the first automaton may be in after the same text, the empty set being
        the dead end.
        """
        useful = self._useful()
        begun = self._settle({self._first}, useful)
        start = self._settle(self._moves(begun).get(self._space, set()), useful) | (begun & {self._last})
        if not start:
            raise DecodingError(
                f"{self._where}: expected a grammar with a sentence, got none: every way leads to <VOID>"
            )
        dead: frozenset[int] = frozenset()
        numbers = {dead: _DEAD, start: _START}
        sets = [dead, start]
        edges = []
        for state, members in enumerate(sets):  # which grows meanwhile
            for token, reached in self._moves(members).items():
                if token == BLANK:
                    raise DecodingError(
                        f"{self._where}: expected sentences of one word, as the alphabet "
                        f"{self._tokens.alphabet[:60]!r} has no space, got longer ones"
                    )
                following = self._settle(reached, useful)
                number = numbers.setdefault(following, len(sets))
                if number == len(sets):
                    sets.append(following)
                edges.append((state, token, number))
        size = len(sets) * len(self._tokens) * 4
        if size > _MAX_TABLE:
            raise DecodingError(
                f"{self._where}: expected a grammar that needs at most {_MAX_TABLE >> 20} MB, got {len(sets)} states of "
                f"{len(self._tokens)} tokens, {size >> 20} MB: use fewer sentences"
            )
        table = np.zeros((len(sets), len(self._tokens)), np.int32)
        if edges:
            states, token_ids, following_states = np.array(edges).T
            table[states, token_ids] = following_states
        return table, np.array([self._last in members for members in sets])

    def _state(self) -> int:
        self._arcs.append([])
        self._silent.append([])
        return len(self._arcs) - 1

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > _MAX_SIZE:
            raise DecodingError(
                f"{self._where}: expected a grammar of at most {_MAX_SIZE} states with all its references and choices "
                "written out, got a larger one: use fewer, or a language model"
            )

    def _lay(self, expression: Expression, first: int, last: int, above: tuple[str, ...], depth: int) -> None:
        """Lay an expression between two states. above: the rules that it is part of."""
        self._grow(1)
        if depth > _MAX_DEPTH:
            through = "".join(f", through <{name}>" for name in above[-1:])
            raise DecodingError(
                f"{self._where}: expected at most {_MAX_DEPTH} expressions within one another{through}, got more: "
                "use fewer brackets, and shorter chains of rules"
            )
        match expression:
            case Phrase(text):
                token_ids = [self._space, *self._tokens.encode(text)]
                self._grow(len(token_ids))
                for token in token_ids:
                    begin, first = first, self._state()
                    self._arcs[begin].append((token, first))
                self._silent[first].append(last)
            case Sequence(parts):
                for part in parts:
                    begin, first = first, self._state()
                    self._lay(part, begin, first, above, depth + 1)
                self._silent[first].append(last)
            case Choice(options):
                for option in options:
                    self._lay(option, first, last, above, depth + 1)
            case Repeat(part):
                begin, end = self._state(), self._state()
                self._silent[first].append(begin)
                self._lay(part, begin, end, above, depth + 1)
                self._silent[end] += [begin, last]
            case Reference(name, where):
                if name in above:
                    chain = " -> ".join(f"<{rule}>" for rule in (*above[above.index(name) :], name))
                    raise DecodingError(
                        f"{where}: expected rules that do not contain themselves, got {chain}: repeat with * or + instead"
                    )
                if name not in self._rules:
                    raise DecodingError(f"{where}: there is no rule <{name}>; {nearest(name, self._rules)}")
                self._lay(self._rules[name], first, last, (*above, name), depth + 1)

    def _useful(self) -> set[int]:
        """The states that the last one can be reached from: all, but for <VOID>."""
        before: list[list[int]] = [[] for _ in self._arcs]
        for state, (arcs, silent) in enumerate(zip(self._arcs, self._silent, strict=True)):
            for target in (*silent, *(target for _, target in arcs)):
                before[target].append(state)
        return _closure({self._last}, before)

    def _settle(self, states: set[int], useful: set[int]) -> frozenset[int]:
        """What silent arcs reach from the states; of that, all that makes a difference to what can follow."""
        reached = _closure(states, self._silent)
        self._grow(len(reached))
        return frozenset(state for state in reached if state in useful and (self._arcs[state] or state == self._last))

    def _moves(self, states: frozenset[int]) -> dict[int, set[int]]:
        """Token -> the states that it leads to."""
        moves: dict[int, set[int]] = {}
        for state in states:
            for token, target in self._arcs[state]:
                moves.setdefault(token, set()).add(target)
        return moves


def _closure(states: set[int], edges: list[list[int]]) -> set[int]:
    """The states, and all that can be reached from them."""
    reached, waiting = set(states), list(states)
    while waiting:
        new = [state for state in edges[waiting.pop()] if state not in reached]
        reached.update(new)
        waiting += new
    return reached
