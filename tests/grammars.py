"""What a grammar holds, asked as the beam search asks."""

from __future__ import annotations

import numpy as np

from asr.decoding.grammar import Grammar
from asr.tokens import Tokens


def accepts(grammar: Grammar, tokens: Tokens, text: str) -> bool:
    """Whether a text, normalised, is a sentence of the grammar."""
    if tokens.unknown(text):
        return False
    states = np.array([grammar.start])
    for token_id in tokens.encode(text):
        token = np.array([token_id])
        if np.isneginf(grammar.scores(states, token)).any():
            return False
        states = grammar.advance(states, token)
    return bool(grammar.end(states)[0] == 0)
