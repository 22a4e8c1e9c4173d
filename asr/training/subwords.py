"""Which subwords a network learns to emit: byte-pair encoding, learnt from the training transcripts.

The subwords are SentencePiece's, in the order of their merges; how a text is spelt with them is `asr.tokens`' own work.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from asr import manifest
from asr.errors import ConfigError
from asr.text import normaliser
from asr.tokens import BLANK_SYMBOL, Tokens
from asr.training import config

_SPACE = "\u2581"  # how SentencePiece writes it
_MAX_BYTES = 1 << 20  # of a transcript; SentencePiece leaves out longer ones


def of_settings(settings: config.Data) -> Tokens:
    """The vocabulary that the settings ask for: characters, or subwords of their training transcripts.

    raises: ManifestError, ConfigError.
    """
    if settings.tokens == "characters":
        return Tokens.of(settings.alphabet)
    normalise = normaliser(settings.normaliser)
    texts = (normalise(utterance.text) for utterance in manifest.read(settings.train))
    return learn(texts, settings.alphabet, settings.vocabulary)


def learn(texts: Iterable[str], alphabet: str, size: int) -> Tokens:
    """A vocabulary of `size` tokens: the blank, the alphabet, and the subwords that byte-pair encoding merges first.

    texts:  normalised; those with characters outside the alphabet, which no training can use, are left out.
    raises: ConfigError if the texts have too few subwords.
    """
    import sentencepiece

    characters = Tokens.of(alphabet)
    usable = [text for text in texts if text.strip() and not characters.unknown(text)]
    subwords: list[str] = []
    if usable:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(usable),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,  # of which its "unknown" is one, as the blank is of ours
            hard_vocab_limit=False,  # too few subwords are told below
            character_coverage=1.0,
            required_chars=alphabet.replace(" ", ""),
            normalization_rule_name="identity",
            split_by_unicode_script=False,  # or there would be no subword "n't"
            max_sentence_length=_MAX_BYTES,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # the same subwords every time
            minloglevel=2,
        )
        found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        subwords = [found.id_to_piece(index).replace(_SPACE, " ") for index in range(1, found.vocab_size())]
    tokens = Tokens([BLANK_SYMBOL, *alphabet, *(subword for subword in subwords if len(subword) > 1)])
    if len(tokens) < size:
        less = f"data.vocabulary={len(tokens)} or less, or " if tokens.subwords else ""
        raise ConfigError(
            f"data.vocabulary: expected training transcripts with {size} different pieces, got {len(usable)} usable ones "
            f"with {len(tokens)}: set {less}data.tokens=characters"
        )
    return tokens
