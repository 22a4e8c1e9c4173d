"""The compact binary file of an n-gram model, mapped into memory; half the size of memory, as keys follow from the rest.

All numbers are little-endian, each array stands at a multiple of 64 bytes:

    magic                 8 bytes
    version, header size  uint32 each
    header                JSON: "counts" of the n-grams of each length, "vocabulary_bytes", and "info"
    log_probs             float32, for the root (unused) and each node
    backoffs              float32, for the root and each other context
    words                 uint16, or uint32 from V = 65537 on: the last word of each n-gram longer than 1
    child_counts          uint32, for each context but the root, whose children are the V unigrams
    suffixes              int32, for each context of 3 words or more
    vocabulary            UTF-8, one word a line
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.files import make_folder, replaced
from asr.lm.model import (
    HIGHEST,
    LOWEST,
    MAX_NGRAMS,
    MAX_ORDER,
    MAX_WORDS,
    SLACK,
    SPECIAL_WORDS,
    LmError,
    NgramModel,
    encoded,
)

MAGIC = b"\x89asr-lm\n"  # no text begins so, and a copy that changes line ends or drops the eighth bit breaks it
_VERSION = 1
_PREAMBLE = struct.Struct("<8sII")  # magic, version, bytes of the header
_ALIGNMENT = 64  # bytes: a cache line
_MAX_HEADER = 1 << 20


def write(model: NgramModel, path: Path) -> None:
    """`NgramModel.save`."""
    vocabulary = encoded(model.words)
    fields = {"counts": model.counts, "vocabulary_bytes": len(vocabulary), "info": model.info}
    try:
        header = json.dumps(fields, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LmError(f"expected an info that JSON can hold, got another ({error})") from None
    if len(header) > _MAX_HEADER:
        raise LmError(f"expected an info of less than {_MAX_HEADER} bytes as JSON, got {len(header)}")
    parents, words = np.divmod(model.keys[1 + model.counts[0] : -1], model.counts[0])
    arrays = {
        "log_probs": model.log_probs,
        "backoffs": model.backoffs,
        "words": words,
        "child_counts": np.bincount(parents, minlength=len(model.backoffs))[1:],
        "suffixes": model.suffixes[1 + sum(model.counts[:2]) :],
        "vocabulary": np.frombuffer(vocabulary, np.uint8),
    }
    make_folder(path.parent)
    with replaced(path) as file:
        file.write(_PREAMBLE.pack(MAGIC, _VERSION, len(header)) + header)
        for section in _sections(model.counts, len(header), len(vocabulary)):
            file.write(bytes(section.offset - file.tell()))
            file.write(arrays[section.name].astype(section.dtype, copy=False).data)


@dataclass(frozen=True, slots=True)
class _Section:
    """Where an array of the binary file stands. offset: bytes."""

    name: str
    dtype: str
    count: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.count * np.dtype(self.dtype).itemsize


def _sections(counts: Sequence[int], header_bytes: int, vocabulary_bytes: int) -> list[_Section]:
    """The arrays of the binary file, as described above; no size is taken from the file but these."""
    n_nodes, n_contexts = 1 + sum(counts), 1 + sum(counts[:-1])
    sections: list[_Section] = []
    end = _PREAMBLE.size + header_bytes
    for name, dtype, count in (
        ("log_probs", "<f4", n_nodes),
        ("backoffs", "<f4", n_contexts),
        ("words", "<u2" if counts[0] <= 1 << 16 else "<u4", n_nodes - 1 - counts[0]),
        ("child_counts", "<u4", n_contexts - 1),
        ("suffixes", "<i4", sum(counts[2:-1])),
        ("vocabulary", "u1", vocabulary_bytes),
    ):
        sections.append(_Section(name, dtype, count, -(-end // _ALIGNMENT) * _ALIGNMENT))
        end = sections[-1].end
    return sections


def read(path: Path, data: mmap.mmap) -> NgramModel:
    """The model of a binary file. Nothing is believed: a wrong number would be an index out of range, or an endless loop.

    raises: LmError.
    """

    def check(right: object, message: str) -> None:
        if not right:
            raise LmError(f"{path}: {message}; it is damaged, build or copy it again")

    check(len(data) >= _PREAMBLE.size, f"expected a language model, got {len(data)} bytes")
    _, version, header_bytes = _PREAMBLE.unpack_from(data)
    if version != _VERSION:
        raise LmError(
            f"{path}: expected version {_VERSION} of the file, got {version}: build it again with this program"
        )
    check(header_bytes <= _MAX_HEADER, f"expected a header of at most {_MAX_HEADER} bytes, got {header_bytes}")
    try:
        header: Any = json.loads(data[_PREAMBLE.size : _PREAMBLE.size + header_bytes])
    except (ValueError, RecursionError):
        header = None
    check(isinstance(header, dict), "expected a header of JSON, got something else")
    counts, vocabulary_bytes, info = (header.get(key) for key in ("counts", "vocabulary_bytes", "info"))
    check(
        isinstance(counts, list)
        and 1 <= len(counts) <= MAX_ORDER
        and all(type(count) is int and 0 <= count <= MAX_NGRAMS for count in [*counts, vocabulary_bytes])
        and len(SPECIAL_WORDS) <= counts[0] <= MAX_WORDS
        and sum(counts) <= MAX_NGRAMS
        and isinstance(info, dict),
        f"expected counts of n-grams, the size of the vocabulary and an info in the header, got {str(header)[:80]}",
    )
    sections = _sections(counts, header_bytes, vocabulary_bytes)
    for section in sections:  # before any is allocated for: a short file may claim the moon
        check(section.end <= len(data), f"expected {section.end} bytes with its {section.name}, got {len(data)}")
    check(sections[-1].end == len(data), f"expected {sections[-1].end} bytes, got {len(data)}")
    log_probs, backoffs, last_words, child_counts, stored_suffixes, vocabulary = (
        np.frombuffer(data, section.dtype, section.count, section.offset) for section in sections
    )
    n_words, n_contexts = counts[0], len(backoffs)

    check(np.isfinite(log_probs).all() and log_probs.max() <= SLACK, "expected log-probabilities, got other numbers")
    check(np.isfinite(backoffs).all(), "expected finite back-offs, got others")
    first = 1 + np.cumsum([0, *counts])  # each level's first node
    for k in range(1, len(counts)):
        children = child_counts[first[k - 1] - 1 : first[k] - 1].sum(dtype=np.int64)
        check(children == counts[k], f"expected {counts[k]} {k + 1}-grams, got {children} below the {k}-grams")
        suffixes = stored_suffixes[first[k - 1] - first[2] : first[k] - first[2]] if k > 2 else stored_suffixes[:0]
        check(((suffixes > 0) & (suffixes < first[k - 1])).all(), f"expected the suffixes of {k}-grams to be shorter")
    check((last_words < n_words).all(), f"expected word ids below {n_words}, got one above")
    keys = np.empty(len(log_probs) + 1, np.int64)
    keys[0], keys[-1] = LOWEST, HIGHEST
    keys[1 : 1 + n_words] = np.arange(n_words)
    keys[1 + n_words : -1] = np.repeat(np.arange(1, n_contexts) * n_words, child_counts) + last_words
    check((keys[1:] > keys[:-1]).all(), "expected the n-grams in order, got some out of it")
    # A word's suffix is the root and that of two words the last one; those at the end are of no context at low orders.
    derived = [np.zeros(1 + n_words, np.int32), 1 + last_words[: sum(counts[1:2])].astype(np.int32)]
    suffixes = np.concatenate([*derived, stored_suffixes])[:n_contexts]

    try:
        words = vocabulary.tobytes().decode().split("\n")
    except UnicodeDecodeError:
        words = []
    check(len(words) == n_words, f"expected {n_words} words of UTF-8, got {len(words) or 'something else'}")
    check(tuple(words[:3]) == SPECIAL_WORDS, f"expected a vocabulary that starts with {' '.join(SPECIAL_WORDS)}")
    model = NgramModel(words, tuple(counts), keys, log_probs, backoffs, suffixes, info)
    check(len(model._ids) == n_words, "expected each word once in the vocabulary")
    return model
