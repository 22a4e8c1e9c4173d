"""Files: whole or not at all; lines with errors that name the line."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asr.errors import AsrError, OutputError
from asr.files import lines, replaced, write

TEXT = "käse\u2028brot\r\n\nlast"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_one_file_with_unix_line_ends_and_usual_permissions(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "käse\nbrot\n")
    assert (tmp_path / "a.txt").read_bytes() == "käse\nbrot\n".encode()
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        write(path, "new")
    assert path.read_text() == "old"
    write(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path = tmp_path / "a.txt"
    if overwrite:
        path.write_text("old")
    before = names(tmp_path)
    seen: list[list[str]] = []

    def full(_: int) -> None:
        seen.append(names(tmp_path))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("asr.files.os.fsync", full)
    with pytest.raises(AsrError, match=r"a\.txt: cannot be written: No space left on device") as caught:
        write(path, "new", overwrite)
    assert "\n" not in str(caught.value)
    assert len(seen[0]) == len(before) + 1  # the partial file was in this folder, and is gone
    assert names(tmp_path) == before
    assert not overwrite or path.read_text() == "old"


def test_interrupt_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path(), Path(os.devnull)):
        with pytest.raises(OutputError, match="got a folder or device"):
            write(path, "text", overwrite=True)
    assert names(tmp_path) == []


def test_missing_folder_or_file_in_place_of_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / folder / "a.txt", "text")
    assert names(tmp_path) == ["file"]


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:  # chmod would not stop root
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "a.txt", "text")
    assert names(tmp_path) == []


def test_one_writer_alone_takes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_text("half")
    with replaced(tmp_path / "a", alone=True) as file:
        file.write(b"whole")
        assert names(tmp_path) == ["a.part"]
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_lines_of_plain_and_compressed_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(pack(b"\xef\xbb\xbf" + TEXT.encode()))
    assert list(lines(path, AsrError)) == [
        (f"{path}:1", "käse\u2028brot\r\n"),
        (f"{path}:2", "\n"),
        (f"{path}:3", "last"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a: no such song; sing it"),
        ("one\ntwo é".encode("latin1"), "a:2: expected UTF-8, got byte 0xe9"),
        (b"x" * 11, "a:1: expected lines of at most 10 bytes"),
        (gzip.compress(b"one\n" * 99, mtime=0)[:-9], "a: damaged or cut short after line 99"),
        (gzip.compress(b"\n" * (2 << 20), mtime=0), "unpacks to more than 200 times its size"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    class SongError(AsrError):
        pass

    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(SongError, match=message):
        list(lines(tmp_path / "a", SongError, what="song", missing="sing it", max_line=10))
