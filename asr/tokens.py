"""Text <-> token ids. Token 0 is the CTC blank; every other token is a piece of text, here one character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from asr.errors import AsrError

BLANK = 0
BLANK_SYMBOL = "<blank>"


class TokenError(AsrError):
    """Text that the vocabulary cannot spell, or a vocabulary that is malformed."""


class Tokens:
    """A vocabulary of V tokens: the blank first, then single characters.

    symbols: the V symbols in the order of the network's outputs.
    raises:  TokenError if the first is not the blank, one occurs twice, or one is not a single character.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        if not self.symbols or self.symbols[0] != BLANK_SYMBOL:
            raise TokenError(f"expected a vocabulary that starts with '{BLANK_SYMBOL}', got {list(self.symbols[:3])}")
        wrong = [symbol for symbol in self.symbols[1:] if len(symbol) != 1]
        if len(self.symbols) < 2:
            raise TokenError("expected at least one character after the blank, got an empty alphabet")
        if wrong:
            raise TokenError(f"expected single characters after '{BLANK_SYMBOL}', got {wrong[:5]}")
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        if len(self._ids) != len(self.symbols):
            raise TokenError("expected each token once; remove the repeated ones from the alphabet")

    @classmethod
    def of(cls, alphabet: Iterable[str]) -> Tokens:
        """The vocabulary of an alphabet: the blank, then its characters in the order given."""
        return cls([BLANK_SYMBOL, *alphabet])

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def space(self) -> int:
        """The token between words; the blank where the vocabulary has none, and a text is one word."""
        return self._ids.get(" ", BLANK)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def __repr__(self) -> str:
        return f"Tokens.of({''.join(self.symbols[1:])!r})"

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of the text that the vocabulary lacks, in order of appearance."""
        return [character for character in dict.fromkeys(text) if character not in self._ids]

    def encode(self, text: str) -> list[int]:
        """Token ids (U,) of a text. raises: TokenError naming the first character outside the alphabet."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise TokenError(
                f"character {character!r} at position {text.index(character)} of {text!r} is not in the alphabet "
                f"{''.join(self.symbols[1:])!r}: normalise the text, or add it to the alphabet"
            ) from None

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of token ids; blanks are dropped, repeats are kept (collapsing is `asr.ctc`'s work).

        raises: TokenError if an id is not in [0, V).
        """
        token_ids = list(token_ids)
        wrong = [token_id for token_id in token_ids if not 0 <= token_id < len(self.symbols)]
        if wrong:  # a negative id would silently name a token from the end
            raise TokenError(f"expected token ids from 0 to {len(self.symbols) - 1}, got {wrong[:5]}")
        return "".join(self.symbols[token_id] for token_id in token_ids if token_id != BLANK)


def min_frames(token_ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can emit these tokens: one each, and a blank between equal neighbours."""
    return len(token_ids) + sum(int(left == right) for left, right in pairwise(token_ids))
