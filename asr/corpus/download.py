"""Files from the web, whole or not at all: resumed after a cut, tried at several mirrors, checked against a checksum."""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from asr.errors import CorpusError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BLOCK = 1 << 20  # bytes
_TIMEOUT_S = 60.0  # without a byte
_ATTEMPTS = 6  # at one mirror, in a row without a new byte
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP states that another attempt may not meet
_MAX_BYTES = 200 << 30


class _CutError(Exception):
    """The connection ended too soon: go on from here. version: the file's at this server, if it says."""

    def __init__(self, reason: str, version: str | None) -> None:
        super().__init__(reason)
        self.version = version


class _RefusedError(Exception):
    """This mirror will not do: try the next."""


def fetch(
    urls: Sequence[str],
    path: Path,
    checksum: str | None,
    *,
    max_bytes: int = _MAX_BYTES,
    progress: Progress | None = None,
    backoff_s: float = 1.0,
) -> None:
    """Download to `path` from the first of the URLs (http or https) that gives what the checksum says.

    checksum:  "sha256:HEX" or "md5:HEX". None, where none is published: the SHA-256 of what came is written to
               NAME.sha256 beside the file, and counts from then on.
    backoff_s: the wait before the second attempt; it doubles with each.
    A file that is there and right is not downloaded; NAME.part is where an interrupted one goes on.
    raises: CorpusError if no URL works, the file is larger than max_bytes, or the disk is full.
    """
    record = path.with_name(path.name + ".sha256")
    part = path.with_name(path.name + ".part")
    with _on_disk(path):
        if checksum is None and record.exists():
            checksum = "sha256:" + (record.read_text(encoding="utf-8").split() or [""])[0]
        if path.exists():
            if checksum is None:
                _record(path, record, progress)
            elif (got := _digest(path, checksum, progress)) != checksum:
                raise CorpusError(f"{path}: expected {checksum}, got {got}; delete it and run again")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        reasons = []
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise CorpusError(f"{url}: expected an address that starts with http:// or https://")
            try:
                _fetch_one(url, part, checksum, max_bytes, progress, backoff_s)
            except _RefusedError as reason:
                reasons.append(f"{url}: {reason}")
                continue
            if checksum is None:
                _record(part, record, progress, path.name)
            part.replace(path)
            return
    raise CorpusError(
        f"{path.name}: cannot be downloaded: {'; '.join(reasons)}; check the connection and run again, name another "
        f"mirror, or put the file at {path} yourself"
    )


def _fetch_one(
    url: str, part: Path, checksum: str | None, max_bytes: int, progress: Progress | None, backoff_s: float
) -> None:
    """One mirror, to a complete and checked .part. raises: _RefusedError, CorpusError."""
    version: str | None = None
    if checksum is None:  # nothing would tell whether what is left of another run belongs to the same file
        part.unlink(missing_ok=True)
    attempt, wait_s = 0, backoff_s
    resumed = part.exists()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, before, version, max_bytes, progress)
        except _CutError as reason:
            attempt += 1
            version = reason.version
            if part.exists() and part.stat().st_size > before:
                attempt, wait_s = 1, backoff_s
            if attempt >= _ATTEMPTS:
                raise _RefusedError(f"{reason}, {_ATTEMPTS} times in a row") from None
            if checksum is None and version is None:
                part.unlink(missing_ok=True)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 60.0)
            continue
        if checksum is None or (got := _digest(part, checksum, progress)) == checksum:
            return
        part.unlink()
        if not resumed:
            raise _RefusedError(f"expected {checksum}, got {got}")
        resumed = False  # the older part may have been of another file: once from the start


def _transfer(url: str, part: Path, start: int, version: str | None, max_bytes: int, progress: Progress | None) -> None:
    """Append to the .part what it lacks, if the file is still of that version; if not, all of it.

    raises: _CutError, _RefusedError, CorpusError.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "asr", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        with _opener().open(request, timeout=_TIMEOUT_S) as response:
            headers = response.headers
            version = headers.get("ETag")
            if version is None or version.startswith("W/"):  # a weak one allows other bytes
                version = headers.get("Last-Modified")
            if response.status != 206 or not str(headers.get("Content-Range")).startswith(f"bytes {start}-"):
                if response.status == 206:
                    raise _RefusedError(f"was asked for bytes {start}-, sent {headers.get('Content-Range')}")
                start = 0  # this server sends the whole, always
            length = headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            if (total or 0) > max_bytes:
                raise _RefusedError(f"expected at most {max_bytes} bytes, the server has {total}")
            free = shutil.disk_usage(part.parent).free
            if total is not None and total - start > free + (part.stat().st_size if part.exists() and not start else 0):
                raise CorpusError(
                    f"{part.parent}: {(total - start) / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; "
                    "make room, or name another folder"
                )
            got = start
            task = _task(progress, f"downloading {part.stem}", total, start)
            with part.open("ab" if start else "wb") as file:
                try:
                    while block := response.read1(_BLOCK):  # as it comes: a cut then loses nothing that had come
                        got += len(block)
                        if got > max_bytes:
                            raise _RefusedError(f"expected at most {max_bytes} bytes, got more")
                        file.write(block)
                        _advance(progress, task, len(block))
                finally:
                    _remove(progress, task)
            if total is not None and got < total:
                raise _CutError(f"the connection ended after {got} of {total} bytes", version)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # complete already, or longer than the server's: from the start
                part.unlink()
                raise _CutError(f"there is nothing after byte {start}", version) from None
            if error.code in _PASSING:
                raise _CutError(f"HTTP {error.code} {error.reason}", version) from None
            raise _RefusedError(f"HTTP {error.code} {error.reason}") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _CutError(str(error) or type(error).__name__, version) from None
    except urllib.error.URLError as error:
        refused = isinstance(error.reason, ConnectionRefusedError)  # nobody is there, and waiting would not help
        if isinstance(error.reason, (TimeoutError, ConnectionError)) and not refused:
            raise _CutError(str(error.reason), version) from None
        raise _RefusedError(str(error.reason)) from None


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of file:, ftp: and data:, to which a server might otherwise redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _digest(path: Path, like: str, progress: Progress | None) -> str:
    """The file's checksum in the form of another. raises: CorpusError if that has none of the forms known."""
    kind, _, value = like.partition(":")
    if kind not in ("sha256", "md5") or len(value) != {"sha256": 64, "md5": 32}[kind]:
        raise CorpusError(f"{path.name}: expected a checksum such as sha256:HEX or md5:HEX, got '{like}'")
    digest: Any = hashlib.new(kind, usedforsecurity=False)
    task = _task(progress, f"checking {path.name}", path.stat().st_size, 0)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            _advance(progress, task, len(block))
    _remove(progress, task)
    return f"{kind}:{digest.hexdigest()}"


def _record(file: Path, record: Path, progress: Progress | None, name: str | None = None) -> None:
    """NAME.sha256, as `sha256sum --check` reads it."""
    digest = _digest(file, "sha256:" + 64 * "0", progress).partition(":")[2]
    record.write_text(f"{digest}  {name or file.name}\n", encoding="utf-8")


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Errors of the disk within, in our words; those of the network are an OSError too, but come out as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CorpusError(
                f"{path.parent}: the disk is full; what came is kept in {path.name}.part: make room and run again"
            ) from None
        raise CorpusError(f"{path}: cannot be written: {error.strerror or error}") from None


def _task(progress: Progress | None, description: str, total: int | None, done: int) -> TaskID | None:
    return None if progress is None else progress.add_task(description, total=total, completed=done)


def _advance(progress: Progress | None, task: TaskID | None, count: int) -> None:
    if progress is not None and task is not None:
        progress.advance(task, count)


def _remove(progress: Progress | None, task: TaskID | None) -> None:
    if progress is not None and task is not None:
        progress.remove_task(task)
