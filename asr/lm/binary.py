"""The compact binary file of an n-gram model, mapped into memory: what the search needs is used where it lies in the file.

All numbers are little-endian, each array stands at a multiple of 64 bytes:

    magic                 8 bytes
    version, header size  uint32 each
    header                JSON: "counts" of the n-grams of each length, "vocabulary_bytes", "info", and of the tree of
                          spellings the "letters" and how many "spellings" it has, its nodes
    log_probs             float32, for the root (unused) and each node
    backoffs              float32, for the root and each other context
    words                 uint16, or uint32 from V = 65537 on: the last word of each n-gram longer than 1
    children              uint32, for the root, each other context, and the end: the first of its children
    suffixes              int32, for each context of 3 words or more
    spelling_children     uint32, of the tree of spellings, see asr.lm.lexicon
    spelling_words        uint16 or uint32, as words
    spelling_best         float32
    spelling_letters      uint8, uint16 or uint32, whichever is enough for the letters
    vocabulary            UTF-8, one word a line

Version 1 has no tree of spellings, so that each process makes its own, and in place of `children` it has

    child_counts          uint32, for each context but the root, whose children are the V unigrams
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import LmError
from asr.files import make_folder, replaced
from asr.lm.lexicon import OUTSIDE, Lexicon, smallest
from asr.lm.model import MAX_NGRAMS, MAX_ORDER, MAX_WORDS, SLACK, SPECIAL_WORDS, NgramModel

MAGIC = b"\x89asr-lm\n"  # no text begins so, and a copy that changes line ends or drops the eighth bit breaks it
_VERSION = 2
_PREAMBLE = struct.Struct("<8sII")  # magic, version, bytes of the header
_ALIGNMENT = 64  # bytes: a cache line
_MAX_HEADER = 1 << 20


def write(model: NgramModel, path: Path) -> None:
    """`NgramModel.save`."""
    lexicon = model.lexicon
    fields = {
        "counts": model.counts,
        "vocabulary_bytes": len(model.vocabulary),
        "letters": lexicon.letters,
        "spellings": len(lexicon),
        "info": model.info,
    }
    try:
        header = json.dumps(fields, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LmError(f"expected an info that JSON can hold, got another ({error})") from None
    if len(header) > _MAX_HEADER:
        raise LmError(f"expected an info of less than {_MAX_HEADER} bytes as JSON, got {len(header)}")
    arrays = {
        "log_probs": model.log_probs,
        "backoffs": model.backoffs,
        "words": model.last_words,
        "children": model.children,
        "suffixes": model.longer_suffixes,
        "spelling_children": lexicon.children,
        "spelling_words": lexicon.word,
        "spelling_best": lexicon.best,
        "spelling_letters": lexicon.letter,
        "vocabulary": np.frombuffer(model.vocabulary, np.uint8),
    }
    make_folder(path.parent)
    with replaced(path) as file:
        file.write(_PREAMBLE.pack(MAGIC, _VERSION, len(header)) + header)
        for section in _sections(_VERSION, len(header), fields):
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


def _sections(version: int, header_bytes: int, header: dict[str, Any]) -> list[_Section]:
    """The arrays of the binary file, as described above; no size is taken from the file but these."""
    counts = header["counts"]
    n_nodes, n_contexts = 1 + sum(counts), 1 + sum(counts[:-1])
    word = "<u2" if counts[0] <= 1 << 16 else "<u4"
    arrays = [
        ("log_probs", "<f4", n_nodes),
        ("backoffs", "<f4", n_contexts),
        ("words", word, n_nodes - 1 - counts[0]),
        ("children", "<u4", n_contexts + 1) if version > 1 else ("child_counts", "<u4", n_contexts - 1),
        ("suffixes", "<i4", sum(counts[2:-1])),
    ]
    if version > 1:
        size = header["spellings"]
        arrays += [
            ("spelling_children", "<u4", size + 1),
            ("spelling_words", word, size),
            ("spelling_best", "<f4", size),
            ("spelling_letters", smallest(len(header["letters"])), size),
        ]
    arrays.append(("vocabulary", "u1", header["vocabulary_bytes"]))
    sections: list[_Section] = []
    end = _PREAMBLE.size + header_bytes
    for name, dtype, count in arrays:
        sections.append(_Section(name, dtype, count, -(-end // _ALIGNMENT) * _ALIGNMENT))
        end = sections[-1].end
    return sections


class _Check:
    """Call it with what must hold and a message: it raises LmError, naming the file, where that does not hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, right: object, message: str) -> None:
        if not right:
            raise LmError(f"{self.path}: {message}; it is damaged, build or copy it again")


def read(path: Path, data: mmap.mmap) -> NgramModel:
    """The model of a binary file. Nothing is believed: a wrong number would be an index out of range, or an endless loop.

    raises: LmError.
    """
    check = _Check(path)
    version, header, sections = _read_header(data, check)
    arrays = {
        # Of this machine's own byte order, which is the file's nearly everywhere.
        section.name: _native(np.frombuffer(data, section.dtype, section.count, section.offset))
        for section in sections
    }
    counts = header["counts"]
    n_words = counts[0]
    if version == 1:
        ends = 1 + n_words + np.cumsum(arrays["child_counts"], dtype=np.int64)
        arrays["children"] = np.minimum(np.concatenate([[1, 1 + n_words], ends]), 1 << 31).astype(np.uint32)
    _check_tree(arrays, counts, check)
    vocabulary = arrays["vocabulary"].tobytes()
    _check_vocabulary(vocabulary, n_words, check)
    lexicon = None
    if version > 1:
        spellings = (arrays[f"spelling_{name}"] for name in ("children", "letters", "words", "best"))
        lexicon = Lexicon(header["letters"], *spellings)
        _check_lexicon(lexicon, n_words, check)
    log_probs, backoffs, words, children, suffixes = (
        arrays[name] for name in ("log_probs", "backoffs", "words", "children", "suffixes")
    )
    return NgramModel(
        vocabulary, tuple(counts), log_probs, backoffs, words, children, suffixes, header["info"], lexicon
    )


def _read_header(data: mmap.mmap, check: _Check) -> tuple[int, dict[str, Any], list[_Section]]:
    """Version, header, and where the arrays are."""
    check(len(data) >= _PREAMBLE.size, f"expected a language model, got {len(data)} bytes")
    _, version, header_bytes = _PREAMBLE.unpack_from(data)
    if not 1 <= version <= _VERSION:
        raise LmError(
            f"{check.path}: expected version 1 to {_VERSION} of the file, got {version}: build it again with this program"
        )
    check(header_bytes <= _MAX_HEADER, f"expected a header of at most {_MAX_HEADER} bytes, got {header_bytes}")
    try:
        header: Any = json.loads(data[_PREAMBLE.size : _PREAMBLE.size + header_bytes])
    except (ValueError, RecursionError):
        header = None
    check(isinstance(header, dict), "expected a header of JSON, got something else")
    if version == 1:
        header |= {"letters": "", "spellings": OUTSIDE + 1}
    counts, sizes = header.get("counts"), [header.get(key) for key in ("vocabulary_bytes", "spellings")]
    check(
        isinstance(counts, list)
        and 1 <= len(counts) <= MAX_ORDER
        and all(type(count) is int and 0 <= count <= MAX_NGRAMS for count in [*counts, *sizes])
        and len(SPECIAL_WORDS) <= counts[0] <= MAX_WORDS
        and sum(counts) <= MAX_NGRAMS
        and sizes[1] > OUTSIDE
        and isinstance(header.get("letters"), str)
        and isinstance(header.get("info"), dict),
        f"expected counts of n-grams, sizes of the vocabulary and its spellings and an info in the header, "
        f"got {str(header)[:80]}",
    )
    sections = _sections(version, header_bytes, header)
    for section in sections:  # before any is allocated for: a short file may claim the moon
        check(section.end <= len(data), f"expected {section.end} bytes with its {section.name}, got {len(data)}")
    check(sections[-1].end == len(data), f"expected {sections[-1].end} bytes, got {len(data)}")
    return version, header, sections


def _check_tree(arrays: dict[str, np.ndarray], counts: list[int], check: _Check) -> None:
    # Minima and maxima need no memory, and NaN wins both.
    log_probs, backoffs, children, suffixes = (
        arrays[name] for name in ("log_probs", "backoffs", "children", "suffixes")
    )
    check(np.isfinite(log_probs.min()) and log_probs.max() <= SLACK, "expected log-probabilities, got other numbers")
    check(np.isfinite(backoffs.min()) and np.isfinite(backoffs.max()), "expected finite back-offs, got others")
    check(arrays["words"].max(initial=0) < counts[0], f"expected word ids below {counts[0]}, got one above")
    check((children[1:] >= children[:-1]).all(), "expected the children of n-grams in order, got some out of it")
    check(children[0] == 1, "expected the words as children of the root, got others")
    first = 1 + np.cumsum([0, *counts])  # each level's first node
    for k in range(len(counts)):
        got = int(children[first[k]]) - int(first[k])
        check(got == counts[k], f"expected {counts[k]} {k + 1}-grams, got {got} below the {k}-grams")
    for k in range(3, len(counts)):
        part = suffixes[first[k - 1] - first[2] : first[k] - first[2]]
        check(((part > 0) & (part < first[k - 1])).all(), f"expected the suffixes of {k}-grams to be shorter")


def _check_vocabulary(vocabulary: bytes, n_words: int, check: _Check) -> None:
    n_lines = vocabulary.count(b"\n") + 1
    try:
        vocabulary.decode()
    except UnicodeDecodeError:
        n_lines = 0
    check(n_lines == n_words, f"expected {n_words} words of UTF-8, got {n_lines or 'something else'}")
    start = "\n".join(SPECIAL_WORDS).encode()
    check(
        vocabulary == start or vocabulary.startswith(start + b"\n"),
        f"expected a vocabulary that starts with {' '.join(SPECIAL_WORDS)}",
    )


def _check_lexicon(lexicon: Lexicon, n_words: int, check: _Check) -> None:
    check(
        lexicon.children[0] == OUTSIDE + 1
        and lexicon.children[-1] == len(lexicon)
        and (lexicon.children[1:] >= lexicon.children[:-1]).all()
        and lexicon.letter.max() < max(len(lexicon.letters), 1)
        and lexicon.word.max() < n_words
        and np.isfinite(lexicon.best.min())
        and lexicon.best.max() <= SLACK,
        "expected a tree of spellings, got other numbers",
    )


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)
