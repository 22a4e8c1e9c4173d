"""Archives from strangers, unpacked whole or not at all: files and folders only, below one folder, within limits."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

from asr.errors import CorpusError

if TYPE_CHECKING:
    from rich.progress import Progress

_BLOCK = 1 << 20  # bytes
_MAX_BYTES = 500 << 30
_MAX_FILES = 5_000_000
_MAX_RATIO = 200  # unpacked to packed bytes; text comes to 10, silence in wav to 100
_RATIO_FROM = 64 << 20  # below this many unpacked bytes any ratio is harmless


class _Member(NamedTuple):
    name: str
    kind: str  # file, folder, or what is refused
    size: int
    content: IO[bytes] | None


def unpack(
    path: Path,
    folder: Path,
    *,
    max_bytes: int = _MAX_BYTES,
    max_files: int = _MAX_FILES,
    progress: Progress | None = None,
) -> None:
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive to a folder, which must not exist; if it does, nothing is done.

    What is unpacked goes to FOLDER.part, which takes the folder's name at the end: a folder that is there is whole.
    raises: CorpusError if a member is not a file or folder, or its name leads elsewhere; beyond max_bytes of content,
            max_files members or 200 times the archive's own size; if the archive is damaged; if the disk is full.
    """
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    with _translate_errors(path):
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        packed = path.stat().st_size
        limit = min(max_bytes, max(_RATIO_FROM, _MAX_RATIO * packed))
        files = unpacked = 0
        task = None if progress is None else progress.add_task(f"unpacking {path.name}", total=packed)
        try:
            with path.open("rb") as raw:
                for member in _members(raw, path):
                    target = part / _check_name(member, path)
                    files += 1
                    if files > max_files:
                        raise CorpusError(f"{path}: expected at most {max_files} files and folders, got more")
                    if member.kind == "folder":
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    if unpacked + member.size > limit:
                        raise CorpusError(_too_large(path, limit, packed))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if member.content is None:
                        raise CorpusError(f"{path}: '{member.name}' has no content; download the archive again")
                    with target.open("xb") as file, member.content as content:
                        left = member.size
                        while block := content.read(_BLOCK):
                            unpacked += len(block)
                            left -= len(block)
                            if unpacked > limit:  # a zip's sizes are only announced
                                raise CorpusError(_too_large(path, limit, packed))
                            file.write(block)
                    if left > 0:
                        raise CorpusError(f"{path}: cut short in '{member.name}'; delete it and download it again")
                    if progress is not None and task is not None:
                        progress.update(task, completed=min(raw.tell(), packed))
            if files == 0:
                raise CorpusError(f"{path}: expected an archive with files in it, got an empty one")
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            if progress is not None and task is not None:
                progress.remove_task(task)


def _members(raw: IO[bytes], path: Path) -> Iterator[_Member]:
    """The members in the archive's order; each is to be read before the next."""
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as archive:
            for info in archive.infolist():
                mode = info.external_attr >> 16
                special = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "folder" if info.is_dir() else "link or device" if special else "file"
                if info.flag_bits & 1:
                    raise CorpusError(f"{path}: '{info.filename}' is encrypted; unpack the archive yourself")
                yield _Member(info.filename, kind, info.file_size, archive.open(info) if kind == "file" else None)
        return
    raw.seek(0)
    # As a stream, in one pass: a step back would decompress everything before it again.
    with tarfile.open(fileobj=raw, mode="r|*") as tar:
        while (member := tar.next()) is not None:
            kind = "folder" if member.isdir() else "file" if member.isreg() else "link or device"
            yield _Member(member.name, kind, member.size, tar.extractfile(member) if kind == "file" else None)
            tar.members.clear()  # type: ignore[attr-defined]  # which would hold all that was seen


def _check_name(member: _Member, path: Path) -> PurePosixPath:
    """The member's name as a path below the folder. raises: CorpusError if it could be anything else."""
    name = PurePosixPath(member.name)
    if member.kind not in ("file", "folder"):
        raise CorpusError(f"{path}: '{member.name}' is a {member.kind}; expected files and folders only")
    if name.is_absolute() or ".." in name.parts or re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", member.name):
        raise CorpusError(f"{path}: expected names below one folder, got {member.name!r}; nothing was unpacked")
    return name


def _too_large(path: Path, limit: int, packed: int) -> str:
    return (
        f"{path}: expected at most {limit / 1e9:.2f} GB unpacked from {packed / 1e9:.3f} GB, got more; "
        "if the archive can be trusted, unpack it yourself"
    )


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """The errors of tarfile, zipfile and the disk within, in our words."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError) as error:
        raise CorpusError(
            f"{path}: expected a whole tar or zip archive, got one that is cut short or damaged ({error}); "
            "delete it and download it again"
        ) from None
    except FileExistsError as error:
        raise CorpusError(f"{path}: holds '{Path(error.filename).name}' twice; unpack it yourself") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise CorpusError(
            f"{path}: cannot be unpacked: {reason}; check the free space, or download the archive again"
        ) from None
