"""Choosing among the texts that the beam search ends with, by a recurrent language model. onnxruntime and NumPy only.

The search has ranked its texts with an n-gram model, which is fast but sees two or three words back. Of the few texts
that are left, a recurrent model reads each from its beginning. Word by word the two are mixed, as neither is always
right:

    p(w | before) = (1 - share) p_ngram(w | before) + share p_neural(w | before)

and a text's score changes by lm_weight (log p - log p_ngram), summed over its words and its end. Of a word that one
of the models does not know, p is what the n-gram model says.

source: Mikolov et al. 2010, "Recurrent neural network based language model", section 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime

from asr import onnxfile
from asr.errors import AsrError
from asr.fusion import Decoding, is_character_model
from asr.lm import BOS, EOS, SPECIAL_WORDS, UNK, NgramModel, Perplexity

SCHEMA = 1  # the newest metadata that this version understands
_WORDS = 2048  # in one pass; each costs as many numbers as there are words in the vocabulary
_BATCH = 1024  # lines of a file that are worked on together


class RescoringError(AsrError):
    """A recurrent language model that is missing, not one of this package's, of a newer version, or cannot serve here."""


class RecurrentLm:
    """A recurrent language model of words, loaded from a file of `asr lm neural`. Safe to share between threads.

    words:  the V words by id; <unk>, <s>, </s> first.
    info:   what the file says about itself.
    raises: RescoringError.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it would log is in its exceptions
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.load_model_format", "ONNX")  # or it would guess
        try:
            data = onnxfile.read(path)
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
            text = onnxfile.metadata(data, "asr")
        except FileNotFoundError:
            raise RescoringError(f"{path}: no such language model; check the path") from None
        except OSError as error:
            raise RescoringError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # onnxruntime has no narrower class for bad files
            raise RescoringError(
                f"{path}: expected a recurrent language model (ONNX), got: {_reason(error)}; train it with asr lm "
                "neural, or get a whole copy"
            ) from None
        self.words, self.info = _read_card(text, path)
        self._ids = {word: number for number, word in enumerate(self.words)}
        # A network that cannot run, or has fewer words, is refused here, not with every text.
        self._run(np.array([[BOS, len(self.words) - 1, EOS]]))

    def __repr__(self) -> str:
        return f"<RecurrentLm: {len(self.words)} words>"

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """The ids (n,) int64 of n words, UNK for those outside the vocabulary."""
        return np.array([self._ids.get(word, UNK) for word in words], np.int64)

    def log_probs(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Natural log p of each word of each text after those before it, and of the text's end: (words + 1,) float64 each.

        raises: RescoringError if the network cannot run.
        """
        rows = [np.concatenate([[BOS], self.ids(text.split()), [EOS]]) for text in texts]
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for batch in _batches([len(row) for row in rows]):
            words = np.full((len(batch), max(len(rows[i]) for i in batch)), EOS)
            for at, i in enumerate(batch):
                words[at, : len(rows[i])] = rows[i]
            for i, log_probs in zip(batch, self._run(words), strict=True):
                found[i] = log_probs[: len(rows[i]) - 1].astype(np.float64)
        return found

    def _run(self, words: np.ndarray) -> np.ndarray:
        try:
            log_probs: np.ndarray = self._session.run(["log_probs"], {"words": words})[0]
        except Exception as error:  # onnxruntime has no narrower class here either
            raise RescoringError(f"{self._path}: the network cannot run: {_reason(error)}; train it again") from None
        expected = (len(words), words.shape[1] - 1)
        if log_probs.shape != expected or not (log_probs < 1e-3).all():
            raise RescoringError(
                f"{self._path}: expected log-probabilities {expected} of the network, got others; train it again"
            )
        return log_probs

    def perplexity(self, lines: Iterable[str]) -> Perplexity:
        """As NgramModel.perplexity: a sentence a line, words between white space; an empty line is a sentence too."""
        words = sentences = oovs = 0
        log_prob = oov_log_prob = 0.0
        lines = iter(lines)
        while batch := list(islice(lines, _BATCH)):
            for line, log_probs in zip(batch, self.log_probs(batch), strict=True):
                unknown = self.ids(line.split()) == UNK
                words += len(unknown)
                oovs += int(unknown.sum())
                log_prob += float(log_probs.sum())
                oov_log_prob += float(log_probs[:-1][unknown].sum())
            sentences += len(batch)
        return Perplexity(words, sentences, oovs, log_prob, oov_log_prob)


class Rescorer:
    """What texts gain in score by mixing a recurrent model into the n-gram model that they were ranked with.

    raises: RescoringError if there is no n-gram model, or one of characters.
    """

    def __init__(self, neural: RecurrentLm, ngram: NgramModel | None, decoding: Decoding) -> None:
        if ngram is None:
            raise RescoringError("expected a language model for the search beside the one that rescores: --lm FILE")
        if is_character_model(ngram):
            raise RescoringError(
                "expected a language model of words beside the one that rescores, got one of characters"
            )
        self._neural, self._ngram, self._decoding = neural, ngram, decoding

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) float64, to be added to the scores of n texts."""
        share = self._decoding.neural_share
        with np.errstate(divide="ignore"):  # log 0, of which nothing is added
            log_shares = np.log([1 - share, share])
        gains = np.zeros(len(texts))
        both = zip(texts, self._ngram.log_probs(texts), self._neural.log_probs(texts), strict=True)
        for row, (text, ngram, neural) in enumerate(both):
            words = [*text.split(), SPECIAL_WORDS[EOS]]
            known = (self._neural.ids(words) != UNK) & (self._ngram.ids(words) != UNK)
            mixed = np.logaddexp(log_shares[0] + ngram, log_shares[1] + neural)
            gains[row] = self._decoding.lm_weight * (mixed - ngram)[known].sum()
        return gains


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of similar length, together so many that a pass has at most _WORDS, padding included."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > _WORDS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _reason(error: Exception) -> str:
    """The last line of an exception's message: in those of onnxruntime, what went wrong after where it did."""
    return str(error).strip().rpartition("\n")[2].rstrip(".") or type(error).__name__


def _read_card(text: str, path: Path) -> tuple[list[str], dict[str, object]]:
    """The words and the description that the training wrote."""
    fault = f"{path}: expected the metadata of a recurrent language model, got {text[:60]!r}; is it a recogniser?"
    try:
        card = json.loads(text)
        schema, words, info = int(card["schema"]), card["words"], card.get("info", {})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise RescoringError(fault) from None
    if schema > SCHEMA:
        raise RescoringError(f"{path}: written with schema {schema}, this version knows {SCHEMA}; update the package")
    if (
        not isinstance(words, list)
        or not isinstance(info, dict)
        or not all(isinstance(word, str) for word in words)
        or tuple(words[:3]) != SPECIAL_WORDS
        or len(set(words)) < len(words)
    ):
        raise RescoringError(fault)
    return words, info
