"""Text <-> token ids. Token 0 is the CTC blank; any other is a character, or a subword: several characters of a word.

A vocabulary of characters spells a text as it stands. One that has longer tokens too is of subwords: a word's first one
holds the space before it (" the", "ing"), and a text is read as if it began with a space, so that a word is spelt alike
wherever it stands. Decoding is concatenation all the same. Single characters are always among the tokens, so that there
is no text of the alphabet that cannot be spelt.

source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (byte-pair encoding);
        Kudo & Richardson 2018, "SentencePiece" (the space as a part of the subwords).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from asr.errors import TokenError as TokenError

BLANK = 0
BLANK_SYMBOL = "<blank>"
MAX_PIECE = 64  # characters; a longer one would be noise in the text, and cost the decoder memory
_WORDS = re.compile(" [^ ]*")  # of a text that begins with a space, each with the space before it


@dataclass(frozen=True, slots=True)
class Span:
    """The frames [start, end) in which one token is emitted. score: its mean posterior probability there, 0 to 1."""

    start: int
    end: int
    score: float


class Tokens:
    """A vocabulary of V tokens: the blank first, then single characters, and perhaps subwords.

    symbols:  the V symbols in the order of the network's outputs; of the subwords the earlier are merged first.
    subwords: whether there are any.
    alphabet: the single characters.
    raises:   TokenError if the first is not the blank, one occurs twice, or one cannot be a token: empty, with a space that
              is not its beginning, with a character that is no token of its own, or of over MAX_PIECE characters.

    >>> tokens = Tokens.of(" abc")
    >>> tokens.encode("a cab")
    [2, 1, 4, 2, 3]
    >>> tokens.text([4, 2, 3])
    'cab'
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        if not self.symbols or self.symbols[0] != BLANK_SYMBOL:
            raise TokenError(f"expected a vocabulary that starts with '{BLANK_SYMBOL}', got {list(self.symbols[:3])}")
        if len(self.symbols) < 2:
            raise TokenError("expected at least one character after the blank, got an empty alphabet")
        pieces = self.symbols[1:]
        wrong = [piece for piece in pieces if not isinstance(piece, str) or not 0 < len(piece) <= MAX_PIECE]
        if wrong:
            raise TokenError(f"expected pieces of 1 to {MAX_PIECE} characters after '{BLANK_SYMBOL}', got {wrong[:5]}")
        self.alphabet = "".join(piece for piece in pieces if len(piece) == 1)
        longer = [piece for piece in pieces if len(piece) > 1]
        self.subwords = bool(longer)
        characters = set(self.alphabet)
        wrong = [piece for piece in longer if piece.rfind(" ") > 0 or not characters.issuperset(piece)]
        if wrong or (longer and " " not in characters):
            raise TokenError(
                f"expected the single characters of all pieces after '{BLANK_SYMBOL}', and a space among them that only "
                f"begins pieces, got {wrong[:5] or 'no space'}"
            )
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        if len(self._ids) != len(self.symbols):
            raise TokenError("expected each token once; remove the repeated ones from the alphabet")
        self._words: dict[str, list[int]] = {}  # what has been split into subwords

    @classmethod
    def of(cls, alphabet: Iterable[str]) -> Tokens:
        """The vocabulary of an alphabet: the blank, then its characters in the order given."""
        return cls([BLANK_SYMBOL, *alphabet])

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def characters(self) -> Tokens:
        """The vocabulary without subwords."""
        return Tokens.of(self.alphabet) if self.subwords else self

    @property
    def space(self) -> int:
        """The token of the space alone; the blank where the vocabulary has none, and a text is one word."""
        return self._ids.get(" ", BLANK)

    @property
    def word_starts(self) -> frozenset[int]:
        """The tokens that end the word before them: the space, and the subwords that begin with it."""
        return frozenset(index for index, symbol in enumerate(self.symbols) if symbol.startswith(" "))

    @property
    def separator(self) -> tuple[int, ...]:
        """The tokens between those of two texts that become one: a space, unless every text begins with one."""
        return () if self.subwords or self.space == BLANK else (self.space,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def __repr__(self) -> str:
        return f"Tokens({self.symbols!r})" if self.subwords else f"Tokens.of({self.alphabet!r})"

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of the text that the vocabulary lacks, in order of appearance."""
        return [character for character in dict.fromkeys(text) if character not in self._ids]

    def encode(self, text: str) -> list[int]:
        """Token ids (U,) of a text. raises: TokenError naming the first character outside the alphabet."""
        try:
            if self.subwords and text:
                return [token_id for word in _WORDS.findall(" " + text) for token_id in self._split(word)]
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise TokenError(
                f"character {character!r} at position {text.index(character)} of {text!r} is not in the alphabet "
                f"{self.alphabet!r}: normalise the text, or add it to the alphabet"
            ) from None

    def _split(self, word: str) -> list[int]:
        """A word as subwords, by byte-pair encoding: of all neighbours that make one together, the earliest merge first."""
        if word not in self._words:
            pieces = list(word)
            while True:
                merged = [self._ids.get(left + right, len(self)) for left, right in pairwise(pieces)]
                first = min(merged, default=len(self))
                if first == len(self):
                    break
                at = merged.index(first)
                pieces[at : at + 2] = [self.symbols[first]]
            self._words[word] = [self._ids[piece] for piece in pieces]
        return self._words[word]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of token ids; blanks are dropped, repeats are kept (collapsing is `asr.decoding.ctc`'s work).

        Of subwords, the text begins with the space of its first word.
        raises: TokenError if an id is not in [0, V).
        """
        token_ids = list(token_ids)
        wrong = [token_id for token_id in token_ids if not 0 <= token_id < len(self.symbols)]
        if wrong:  # a negative id would silently name a token from the end
            raise TokenError(f"expected token ids from 0 to {len(self.symbols) - 1}, got {wrong[:5]}")
        return "".join(self.symbols[token_id] for token_id in token_ids if token_id != BLANK)

    def text(self, token_ids: Iterable[int]) -> str:
        """As `decode`, with single spaces between words and none around them."""
        return " ".join(self.decode(token_ids).split())

    def words(self, token_ids: Iterable[int]) -> list[range]:
        """Which of the tokens spell each word, as indices; a space ends a word, and any number of them makes none."""
        words: list[range] = []
        within = False
        for index, token_id in enumerate(token_ids):
            symbol = self.symbols[token_id]
            within = within and not symbol.startswith(" ")
            if symbol != " ":
                start = words.pop().start if within else index
                words.append(range(start, index + 1))
                within = True
        return words


def min_frames(token_ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can emit these tokens: one each, and a blank between equal neighbours."""
    return len(token_ids) + sum(int(left == right) for left, right in pairwise(token_ids))
