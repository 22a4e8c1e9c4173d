"""A recurrent language model of words, read from the file that `asr lm train --neural` writes. onnxruntime and NumPy only.

An n-gram model sees two or three words back; a recurrent one has all of the sentence in its state. It is too slow to ask
inside the beam search, but not to choose among the texts that the search ends with (`asr.decoding.rescoring`).

The network is one step: a word and a state -> what each word's probability is next, and the next state. Texts that begin
alike, as those of one recording do, share the steps of what they have in common.

source: Mikolov et al. 2010, "Recurrent neural network based language model".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from asr.errors import LmError, ModelError
from asr.lm.model import BOS, EOS, SPECIAL_WORDS, UNK, Perplexity, measure
from asr.models.runtime import open_session, run_session

_LINES = 256  # of a text that are worked on together; each takes as many numbers as there are words
KIND, SCHEMA = "neural language model", 1  # of the metadata; a newer schema is refused


class NeuralLm:
    """A recurrent language model. Safe to share between threads.

    words:  the V words by id; <unk>, <s>, </s> first.  info: what the file says about itself.
    raises: LmError if the file is missing, damaged, something else or of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._session, card = open_session(self.path, 1)
        except ModelError as error:
            raise LmError(str(error)) from None
        self.words, self.info = _read_card(card, self.path)
        self._ids = {word: number for number, word in enumerate(self.words)}
        sizes = [one.shape for one in self._session.get_inputs() if one.name == "state"]
        if len(sizes) != 1 or len(sizes[0]) != 3 or not isinstance(sizes[0][2], int):
            raise LmError(f"{self.path}: expected the state of a recurrent network, got {sizes}; train it again")
        self._start = np.zeros((2, 1, sizes[0][2]), np.float32)
        self._step(np.array([BOS]), self._start)  # a network that cannot run is refused here, not with every text

    def __repr__(self) -> str:
        return f"<NeuralLm: {len(self.words)} words>"

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """The ids (n,) int64 of n words, UNK for those outside the vocabulary."""
        return np.array([self._ids.get(word, UNK) for word in words], np.int64)

    def log_probs(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Natural log p of each word of each text after those before it, and of its end: (words + 1,) float64 each.

        raises: LmError if the network cannot run.
        """
        rows = [np.append(self.ids(text.split()), EOS) for text in texts]
        found = [np.zeros(len(row)) for row in rows]
        at = np.zeros(len(rows), np.int64)  # where among the states is that of each text's words so far
        log_probs, states = self._step(np.array([BOS]), self._start)
        lengths = np.array([len(row) for row in rows], np.int64)
        for position in range(lengths.max(initial=0)):
            going_on = np.flatnonzero(position < lengths)
            words = np.array([rows[number][position] for number in going_on])
            for number, log_prob in zip(going_on, log_probs[at[going_on], words], strict=True):
                found[number][position] = log_prob
            longer = position + 1 < lengths[going_on]  # what follows the end of a text is not asked for
            if not longer.any():
                break
            going_on, words = going_on[longer], words[longer]
            pairs, at[going_on] = np.unique(at[going_on] * len(self.words) + words, return_inverse=True)
            before, words = np.divmod(pairs, len(self.words))
            log_probs, states = self._step(words, states[:, before])
        return found

    def perplexity(self, lines: Iterable[str]) -> Perplexity:
        """As `asr.lm.model.NgramModel.perplexity`."""
        return measure(lines, self.ids, self.log_probs, _LINES)

    def _step(self, words: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ids and (2, n, H) states -> (n, V) natural log p of the next word, and the states after these."""
        try:
            log_probs, after = run_session(
                self._session, self.path, ["log_probs", "next_state"], {"word": words, "state": states}
            )
        except ModelError as error:
            raise LmError(str(error)) from None
        if (
            log_probs.shape != (len(words), len(self.words))
            or after.shape != states.shape
            or not (log_probs < 1e-3).all()
        ):
            raise LmError(
                f"{self.path}: expected log-probabilities of {len(self.words)} words, got others; train it again"
            )
        return log_probs, after


def _read_card(text: str, path: Path) -> tuple[list[str], dict[str, object]]:
    """The words and the description that the training wrote."""
    fault = f"{path}: expected a language model of asr lm train --neural, got a file that says {text[:60]!r}"
    try:
        card = json.loads(text)
        kind, schema, words, info = card["kind"], int(card["schema"]), card["words"], card["info"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LmError(fault) from None
    if kind == KIND and schema > SCHEMA:
        raise LmError(f"{path}: written with schema {schema}, this version knows {SCHEMA}; update the package")
    if (
        kind != KIND
        or not isinstance(words, list)
        or not isinstance(info, dict)
        or not all(isinstance(word, str) for word in words)
        or tuple(words[:3]) != SPECIAL_WORDS
        or len(set(words)) < len(words)
    ):
        raise LmError(fault)
    return words, info
