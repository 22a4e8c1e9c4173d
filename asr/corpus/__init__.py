"""Corpora as manifests: what recipes share, other toolkits' formats, downloads, archives, and checks before training.

The names that a recipe's prepare.py wants are here: `from asr import corpus`.
"""

from asr.corpus.recipe import Archive, Recording, Splits, Table, find, hold_out, openslr, parser, prepare
from asr.errors import CorpusError

__all__ = [
    "Archive",
    "CorpusError",
    "Recording",
    "Splits",
    "Table",
    "find",
    "hold_out",
    "openslr",
    "parser",
    "prepare",
]
