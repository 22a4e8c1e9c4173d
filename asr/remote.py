"""Files that are elsewhere (s3://, gs://, http(s)://), by fsspec: paths that are opened, listed and written as local ones;
and files in tars, which are opened where they stand.

Only what a user names becomes such a path, by `locate`: a text that looks like an address is a file's name everywhere
else, so that a server never goes where a client points.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from asr.errors import AsrError, ManifestError, OutputError

_ADDRESS = re.compile(r"(s3|gs|https?|file):/+", re.IGNORECASE)
_NEEDS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_IN_TAR = ".tar/"  # what the name of a file in a tar has in it
_MOST_BYTES = 1 << 30  # of one recording in a tar
_SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})")
_MOST_SHARDS = 10_000_000  # whatever a name says
_CHUNK = 1 << 23  # bytes that are asked for at a time
_TRIES = 5  # in a row without a byte
_PAUSE_S = 0.5  # before the second try, twice as long before each later one
_SILENCE_S = 60.0  # without a byte, then a connection counts as cut

if TYPE_CHECKING:
    _Local = Path
else:
    _Local = type(Path())


def locate(name: str | Path) -> Path:
    """What a user names: an address becomes a Remote, file:// and all else a path.

    >>> locate("s3://talks/2026/one.flac").stem, locate("file:///talks/one.flac")
    ('one', PosixPath('/talks/one.flac'))
    """
    if isinstance(name, Remote) or not (found := _ADDRESS.match(str(name))):
        return Path(name) if isinstance(name, str) else name
    rest = str(name)[found.end() :].replace("\\", "/")
    if found[1].lower() == "file":
        return Path("/" + unquote(rest))
    return Remote.of(f"{found[1].lower()}://{rest}")


def absolute(path: str | Path) -> Path:
    """Whatever the folder at work; a symbolic link keeps the name it was given, unlike by resolve()."""
    return path if isinstance(path, Remote) else Path(os.path.abspath(path))  # noqa: PTH100


class Remote(_Local):
    """A path whose file is elsewhere. As text it is the address without what may be secret: its user and its query."""

    _address: str | None = None
    _size: int | None = None

    @classmethod
    def of(cls, address: str, size: int | None = None) -> Remote:
        """size: bytes, if known."""
        parts = urlsplit(address) if address.startswith("http") else None  # an object's name may have # and ? in it
        remote = cls(address if parts is None else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
        remote._address, remote._size = address, size
        return remote

    @property
    def address(self) -> str:
        return self._address or str(self)

    def __str__(self) -> str:
        return super().__str__().replace(os.sep, "/").replace(":/", "://", 1)

    def as_posix(self) -> str:
        return str(self)

    def __fspath__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote.of, (self.address, self._size)

    def absolute(self) -> Remote:
        return self

    def exists(self, **_: Any) -> bool:
        return bool(self._ask("exists"))

    def is_dir(self, **_: Any) -> bool:
        with suppress(OSError):  # which its reader will meet too
            return bool(self._ask("isdir"))
        return False

    def stat(self, **_: Any) -> os.stat_result:
        """Of which the size alone is known."""
        if self._size is None:
            self._size = int(self._ask("info").get("size") or 0)
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, self._size, 0, 0, 0))

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        """A copy of the file, which is on this machine until it is closed. raises: OSError, as of a file here."""
        if mode != "rb":
            raise ValueError(f"expected mode rb, got {mode}")
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            self._copy_to(file)
            stack.pop_all()
        file.seek(0)
        return file

    def _copy_to(self, file: IO[bytes]) -> None:
        """A connection that is cut is taken up where it was cut; a server that cannot do that begins again."""
        system, done, failed = self._system(), 0, 0
        while True:
            try:
                with system.open(self.address, "rb", cache_type="none") as source:
                    whole, ahead = getattr(source, "size", None), done
                    with suppress(ValueError):  # of a stream, which only begins anew
                        source.seek(done)
                        ahead = 0
                    while some := source.read(_CHUNK):
                        new, ahead = some[ahead:], max(0, ahead - len(some))
                        file.write(new)
                        done += len(new)
                        failed = 0 if new else failed
                if whole is None or done >= whole:
                    return
                raise EOFError(f"{done} of {whole} bytes came")
            except Exception as error:
                failed, fault = failed + 1, _fault(error, str(self))
                if failed == _TRIES or isinstance(fault, (FileNotFoundError, PermissionError)):
                    raise fault from None
                time.sleep(_PAUSE_S * 2 ** (failed - 1))

    def write_from(self, file: BinaryIO) -> None:
        """Become a copy of an open file; a store of objects has all of it or nothing. raises: OutputError."""
        file.seek(0)
        try:
            with self._system().open(self.address, "wb") as target:
                shutil.copyfileobj(file, target, _CHUNK)
        except NotImplementedError:
            raise OutputError(
                f"{self}: cannot be written: such an address can only be read; write to s3:// or to a folder"
            ) from None
        except Exception as error:
            raise OutputError(f"{self}: cannot be written: {_fault(error, str(self)).strerror}") from None

    def files(self, recursive: bool) -> Iterator[Remote]:
        """Those in this folder, in order, and in those within. raises: AsrError if it cannot be listed."""
        system, start = self._system(), self.address.rstrip("/") + "/"

        def fail(error: Exception) -> None:
            if not isinstance(error, FileNotFoundError):
                raise AsrError(f"{self}: cannot be listed: {_fault(error, str(self)).strerror}") from None

        def inside(found: dict[str, Any]) -> bool:
            """Whether it is below this folder: a page may link to anywhere, and a name may climb."""
            rest = system.unstrip_protocol(found["name"]).removeprefix(start)
            return bool(rest) and "://" not in rest and not rest.startswith("?") and ".." not in rest.split("/")

        try:
            for _, folders, names in system.walk(start, maxdepth=None if recursive else 1, detail=True, on_error=fail):
                for name in sorted(folders):  # the order in which they are walked
                    found = folders.pop(name)
                    if inside(found):
                        folders[name] = found
                for _, found in sorted(names.items()):
                    if inside(found):
                        yield Remote.of(system.unstrip_protocol(found["name"]), found.get("size"))
        except AsrError:
            raise
        except Exception as error:
            fail(error)

    def matches(self) -> list[Remote]:
        """The files of a pattern such as s3://talks/*.flac, in order. raises: AsrError if they cannot be listed."""
        system = self._system()
        try:
            found = system.glob(self.address, detail=True)
        except Exception as error:
            raise AsrError(f"{self}: cannot be listed: {_fault(error, str(self)).strerror}") from None
        return [
            Remote.of(system.unstrip_protocol(name), about.get("size"))
            for name, about in sorted(found.items())
            if about.get("type") == "file"
        ]

    def _ask(self, what: str) -> Any:
        try:
            return getattr(self._system(), what)(self.address)
        except AsrError:
            raise
        except Exception as error:
            raise _fault(error, str(self)) from None

    def _system(self) -> Any:
        """fsspec's file system. raises: AsrError if it is not installed."""
        kind = self.address.partition(":")[0]
        try:
            import fsspec

            options: dict[str, Any] = {}
            if _NEEDS[kind] == "aiohttp":
                import aiohttp

                waits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
                options = {"client_kwargs": {"timeout": waits}}
            # Without its cache of listings, which would keep all that were ever seen.
            return fsspec.filesystem(kind, use_listings_cache=False, **options)
        except ImportError:
            more = f" {_NEEDS[kind]}" if _NEEDS[kind] != "aiohttp" else ""
            raise AsrError(
                f"{self}: files at such addresses need fsspec and {_NEEDS[kind]}; in a clone of this project: "
                f"pip install '.[remote]'{more}"
            ) from None


class Member(Remote):
    """A file in a tar, here or elsewhere, by its place there: nothing is unpacked, and its name is a name and no more.

    tar: the tar's path; inside: the file's name there; start: its first byte; size: bytes.
    """

    tar: Path
    inside: str
    start: int
    size: int

    @classmethod
    def within(cls, tar: Path, name: str, start: int, size: int) -> Member:
        member = cls(f"{tar}/{name}")
        member.tar, member.inside, member.start, member.size = tar, name, start, size
        member._address = f"{tar.address if isinstance(tar, Remote) else tar}/{name}"
        member._size = size
        return member

    @classmethod
    def at(cls, path: Path, start: int, size: int) -> Member:
        """path: of the file, as if the tar were a folder."""
        tar, _, name = (path.address if isinstance(path, Remote) else str(path)).rpartition(_IN_TAR)
        return cls.within((Remote.of if isinstance(path, Remote) else Path)(f"{tar}.tar"), name, start, size)

    def __str__(self) -> str:
        return super().__str__() if isinstance(self.tar, Remote) else _Local.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Member.within, (self.tar, self.inside, self.start, self.size)

    def exists(self, **_: Any) -> bool:
        return self.tar.exists()

    def is_dir(self, **_: Any) -> bool:
        return False

    def _copy_to(self, file: IO[bytes]) -> None:
        file.write(read_members([self])[0])

    def checked(self, content: bytes | Exception) -> bytes:
        """What was read of it. raises: OSError, if that failed or is not all."""
        if isinstance(content, Exception):
            raise _fault(content, str(self.tar)) from None
        if len(content) != self.size:
            reason = f"expected {self.size} bytes, as its manifest has it, got {len(content)}"
            raise OSError(errno.EIO, reason, str(self))
        return content


def place_in_tar(place: object, name: str) -> tuple[int, int]:
    """What a manifest says of audio in a tar: its first byte, and how many there are; (-1, 0) of a file.

    raises: ValueError.
    """
    match place:
        case None:
            return -1, 0
        case [int(start), int(size)] if _IN_TAR in name and 0 <= start < 1 << 62 and 0 < size <= _MOST_BYTES:
            return start, size
    raise ValueError(
        f"expected 'bytes' to be where audio in X.tar/NAME begins and how long it is, at most {_MOST_BYTES}, got "
        f"{str(place)[:60]} for {name[:60]!r}"
    )


def read_members(members: Sequence[Member]) -> list[bytes]:
    """What these hold; of tars elsewhere, all is asked for at once, and again if need be. raises: OSError."""
    found: dict[int, bytes] = {}
    for number, member in enumerate(members):
        if not isinstance(member.tar, Remote):
            with member.tar.open("rb") as file:
                file.seek(member.start)
                found[number] = member.checked(file.read(member.size))
    failed = 0  # times in a row without any
    while left := {number: member for number, member in enumerate(members) if number not in found}:
        tars = [cast("Remote", member.tar) for member in left.values()]
        starts = [member.start for member in left.values()]
        ends = [member.start + member.size for member in left.values()]
        try:
            addresses = [tar.address for tar in tars]
            contents = tars[0]._system().cat_ranges(addresses, starts, ends, on_error="return")
        except AsrError:
            raise
        except Exception as error:
            contents = [error] * len(left)
        fault: OSError | None = None
        for (number, member), content in zip(left.items(), contents, strict=True):
            try:
                found[number] = member.checked(content)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                fault = error
        if fault:
            failed = failed + 1 if left.keys().isdisjoint(found) else 1
            if failed == _TRIES:
                raise fault
            time.sleep(_PAUSE_S * 2 ** (failed - 1))
    return [found[number] for number in range(len(members))]


def manifests(path: Path) -> list[Path]:
    """A manifest; of a tar, a folder of tars or a pattern, the manifests beside them. raises: ManifestError."""
    if "*" in path.name:
        found = path.matches() if isinstance(path, Remote) else sorted(path.parent.glob(path.name))
    elif isinstance(path, Remote) and not path.suffix and path.is_dir():
        found = list(path.files(recursive=False))
    elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
        found = sorted(path.iterdir())
    else:
        return [path.with_suffix(".jsonl") if path.suffix == ".tar" else path]
    shards = [one for one in found if one.suffix in (".tar", ".jsonl") and not one.name.endswith(".skipped.jsonl")]
    if not shards:
        raise ManifestError(
            f"{path}: expected a manifest, or tars with one beside each, found none; asr shard makes some"
        )
    if "*" not in path.name:
        _check_whole(path, shards)
    return list(dict.fromkeys(one.with_suffix(".jsonl") for one in shards))


def _check_whole(folder: Path, shards: Sequence[Path]) -> None:
    """raises: ManifestError if a folder lacks a shard, as their names tell."""
    named = [found for one in shards if (found := _SHARD.fullmatch(one.stem))]
    for name, count in sorted({(found[1], found[3]) for found in named}):
        there = {int(found[2]) for found in named if (found[1], found[3]) == (name, count)}
        if gone := sorted({*range(min(int(count), _MOST_SHARDS))} - there):
            raise ManifestError(
                f"{folder}: expected {int(count)} shards, got {len(there)}; the first that is missing is "
                f"{name}-{gone[0]:0{len(count)}}-of-{count}.tar; write or copy it, or name those to use: {folder}/*.tar"
            )


def _fault(error: Exception, name: str) -> OSError:
    """What fsspec and the libraries below it raise, as the system's own errors are."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says so of whatever happened on the web
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "no such file", name)
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ == "NoCredentialsError":
        return PermissionError(errno.EACCES, "no permission: check the address and your credentials", name)
    if status is not None:  # whose text has the whole address, with what may be secret in it
        return OSError(errno.EIO, f"the server answers {status} {getattr(error, 'message', '')}".rstrip(), name)
    text = str(error).split("\n")[0] or type(error).__name__
    return OSError(errno.EIO, getattr(error, "strerror", None) or text, name)
