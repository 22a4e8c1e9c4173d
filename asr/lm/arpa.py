"""ARPA files: the text format of n-gram models that every toolkit reads and writes.

source: Stolcke 2002, "SRILM - An Extensible Language Modeling Toolkit", ngram-format(5).
"""

from __future__ import annotations

import gzip
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from asr.errors import LmError
from asr.files import make_folder, replaced
from asr.lm.model import (
    BATCH,
    BOS,
    EOS,
    LN10,
    MAX_NGRAMS,
    MAX_ORDER,
    MAX_WORDS,
    NO_UNK,
    SPECIAL_WORDS,
    UNK,
    Level,
    NgramModel,
    build,
)

_MAX_LINE = 1 << 20  # bytes of an ARPA file
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DATA, _END = [b"\\data\\"], [b"\\end\\"]  # rows of an ARPA file, as its reader yields them


def read(path: Path, file: IO[bytes]) -> NgramModel:
    """The model of an ARPA file that is open. raises: LmError naming the line."""
    return _Reader(path, file).model()


def write(model: NgramModel, path: Path) -> None:
    """`NgramModel.write_arpa`."""
    make_folder(path.parent)
    with replaced(path) as file:
        if path.suffix == ".gz":  # no name and no time inside: equal models make equal files
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                packed.writelines(text.encode() for text in _pieces(model))
        else:
            file.writelines(text.encode() for text in _pieces(model))


def _pieces(model: NgramModel) -> Iterator[str]:
    """The text of the ARPA file, in pieces of a few thousand lines. Nine digits tell all float32 apart."""
    yield "\\data\\\n" + "".join(f"ngram {k}={count}\n" for k, count in enumerate(model.counts, 1))
    end = 1
    for k, count in enumerate(model.counts, start=1):
        yield f"\n\\{k}-grams:\n"
        start, end = end, end + count
        for first in range(start, end, BATCH):
            nodes = np.arange(first, min(first + BATCH, end))
            columns = [
                [f"{x:.9g}" for x in (model.log_probs[nodes].astype(np.float64) / LN10).tolist()],
                [" ".join([model.words[i] for i in row]) for row in model.word_ids(nodes, k).tolist()],
            ]
            if k < model.order:
                columns.append([f"{x:.9g}" for x in (model.backoffs[nodes].astype(np.float64) / LN10).tolist()])
            yield "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    yield "\n\\end\\\n"


class _Reader:
    r"""An ARPA file, read once from its first line to \end\. All its errors name the line.

    Lines stay bytes: their white space is ASCII's, words may hold any other; and only the unigrams need decoding.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._line = 0
        self._rows = self._read_rows()
        self._ids = {word.encode(): number for number, word in enumerate(SPECIAL_WORDS)}

    def model(self) -> NgramModel:
        while next(self._rows) != _DATA:  # anything may stand before
            pass
        counts, heading = self._counts()
        levels, lines = [], []
        for k, count in enumerate(counts, start=1):
            if heading != [rb"\%d-grams:" % k]:
                self._fail(rf"expected \{k}-grams:, got {_shown(heading)}")
            level, level_lines, heading = self._level(k, count)
            levels.append(level)
            lines.append(level_lines)
        if heading != _END:
            self._fail(rf"expected \end\, got {_shown(heading)}")
        words = [word.decode() for word in self._ids]
        return build(words, levels, lambda k, index: f"{self._path}:{lines[k - 1][index]}", {})

    def _counts(self) -> tuple[list[int], list[bytes]]:
        """The lines `ngram 1=64000` and so on, and the row that ends them."""
        counts: list[int] = []
        for row in self._rows:
            if row[0].startswith(b"\\"):
                break
            match = re.fullmatch(rb"ngram(-?\d{1,9})=(\d{1,18})", b"".join(row))
            if not match:
                self._fail(f"expected a count such as 'ngram 1=64000', got {_shown(row)}")
            k, count = int(match[1]), int(match[2])
            if k != len(counts) + 1 or k > MAX_ORDER:
                self._fail(
                    f"expected the count of {len(counts) + 1}-grams, at most {MAX_ORDER}-grams, got {_shown(row)}"
                )
            counts.append(count)
            if counts[0] > MAX_WORDS or sum(counts) > MAX_NGRAMS:
                self._fail(f"expected at most {MAX_WORDS} words and {MAX_NGRAMS} n-grams, got {_shown(row)}")
        if not counts:
            self._fail(f"expected a count such as 'ngram 1=64000', got {_shown(row)}")
        return counts, row

    def _level(self, k: int, count: int) -> tuple[Level, array[int], list[bytes]]:
        """A section's n-grams, the line of each, and the row that ends it."""
        ids, log_probs, backoffs, lines = array("i"), array("d"), array("d"), array("q")
        for row in self._rows:
            if row[0].startswith(b"\\"):
                break
            if len(lines) == count:
                self._fail(rf"expected {count} {k}-grams as \data\ says, got another")
            if not k + 1 <= len(row) <= k + 2:
                self._fail(f"expected a log-probability, {k} words and at most a back-off, got {_shown(row)}")
            if k == 1:
                self._learn(row[1])
            try:
                log_probs.append(float(row[0]) * LN10)
                backoffs.append(float(row[k + 1]) * LN10 if len(row) == k + 2 else 0.0)
                ids.extend([self._ids[word] for word in row[1 : k + 1]])
            except ValueError:
                self._fail(f"expected a number before and after {k} words, got {_shown(row)}")
            except KeyError as error:
                self._check_text(error.args[0])
                self._fail(f"expected the words of a {k}-gram to be 1-grams, {_shown(error.args)} is none")
            lines.append(self._line)
        if len(lines) != count:
            self._fail(rf"expected {count} {k}-grams as \data\ says, got {len(lines)}")
        if k == 1:
            for word in (BOS, EOS):
                if word not in ids:
                    self._fail(
                        f"expected {SPECIAL_WORDS[word]} among the 1-grams; estimate the model with sentence ends"
                    )
            if UNK not in ids:
                ids.append(UNK)
                log_probs.append(NO_UNK)
                backoffs.append(0.0)
                lines.append(self._line)
        return Level(np.array(ids).reshape(-1, k), np.array(log_probs), np.array(backoffs)), lines, row

    def _learn(self, word: bytes) -> None:
        if word not in self._ids:
            self._check_text(word)
            self._ids[word] = len(self._ids)

    def _read_rows(self) -> Iterator[list[bytes]]:
        """The fields of each line that is not empty. The end of the file is an error: the model ends before it."""
        data_seen = False
        while line := self._file.readline(_MAX_LINE + 1):
            self._line += 1
            if len(line) > _MAX_LINE:
                self._fail(f"expected lines of at most {_MAX_LINE} bytes, got a longer one")
            if self._line == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            # Some toolkits write <UNK>, which KenLM also takes for <unk>.
            if row := line.replace(b"<UNK>", b"<unk>").split():
                data_seen |= row == _DATA
                yield row
        if data_seen:
            self._fail(r"expected \end\, got the end of the file: it is cut short, copy it again")
        self._fail(r"expected a language model, ARPA or binary, got a file without a line \data\; check the path")

    def _check_text(self, word: bytes) -> None:
        try:
            word.decode()
        except UnicodeDecodeError as error:
            self._fail(
                f"expected UTF-8, got byte 0x{error.object[error.start]:02x} in {_shown([word])}; convert the file"
            )

    def _fail(self, message: str) -> NoReturn:
        raise LmError(f"{self._path}:{max(self._line, 1)}: {message}")


def _shown(row: Iterable[bytes]) -> str:
    return repr(b" ".join(row)[:60].decode("utf-8", "backslashreplace"))
