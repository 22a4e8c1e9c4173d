"""Archives: whole, damaged, and hostile."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from mirror import names

from asr.corpus.archive import unpack
from asr.errors import CorpusError

FILES = {"corpus/README.md": b"read me", "corpus/wavs/a.wav": os.urandom(100_000), "corpus/wavs/empty.txt": b""}


def tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_is_unpacked(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.mkdir("corpus")
            for name, data in FILES.items():
                file.writestr(name, data)
    else:
        compression = ending.removeprefix("tar").removeprefix(".")
        tar(path, special("corpus", tarfile.DIRTYPE), *FILES.items(), mode=f"w:{compression}")
    unpack(path, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert names(tmp_path) == [path.name, "out"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "deleted long ago.tar.gz", tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.part/corpus").mkdir(parents=True)
    (tmp_path / "out.part/corpus/README.md").write_text("half of")
    unpack(tar(tmp_path / "a.tar.gz", *FILES.items()), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


def test_names_as_of_tar_in_the_current_folder(tmp_path: Path) -> None:
    root = special("./", tarfile.DIRTYPE)
    unpack(tar(tmp_path / "a.tar.gz", root, *((f"./{name}", data) for name, data in FILES.items())), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


HOSTILE: dict[str, tarfile.TarInfo | tuple[str, bytes]] = {
    "a step up": ("../out.txt", b"x"),
    "a step up within": ("corpus/../../out.txt", b"x"),
    "absolute": ("/tmp/asr-absolute.txt", b"x"),
    "a drive": ("C:/out.txt", b"x"),
    "backslashes": ("..\\out.txt", b"x"),
    "a line end": ("corpus/a\nb", b"x"),
    "symbolic link": special("corpus/link", tarfile.SYMTYPE, "/etc/passwd"),
    "symbolic link within": special("corpus/link", tarfile.SYMTYPE, "README.md"),
    "hard link": special("corpus/link", tarfile.LNKTYPE, "corpus/README.md"),
    "character device": special("corpus/null", tarfile.CHRTYPE),
    "block device": special("corpus/disk", tarfile.BLKTYPE),
    "pipe": special("corpus/pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tar_is_refused_whole(tmp_path: Path, what: str) -> None:
    (tmp_path / "in").mkdir()
    path = tar(tmp_path / "in/a.tar", *FILES.items(), HOSTILE[what], mode="w")
    with pytest.raises(CorpusError, match=r"names below one folder|is a link or device"):
        unpack(path, tmp_path / "in/out")
    assert names(tmp_path / "in") == ["a.tar"]
    assert names(tmp_path) == ["in"]


def test_a_link_to_write_through_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = special("corpus", tarfile.SYMTYPE, str(tmp_path / "elsewhere"))
    with pytest.raises(CorpusError, match="is a link or device"):
        unpack(tar(tmp_path / "a.tar.gz", link, ("corpus/file.txt", b"x")), tmp_path / "out")
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/asr-absolute.txt", "C:\\out.txt"])
def test_a_hostile_zip_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("corpus/README.md", "read me")
        file.writestr(name, "x")
    with pytest.raises(CorpusError, match="names below one folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(CorpusError, match="is a link or device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_a_bomb_is_refused(tmp_path: Path, ending: str) -> None:
    path, bomb = tmp_path / f"a.{ending}", bytes(100 << 20)
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", bomb)
    else:
        tar(path, ("zeros", bomb))
    with pytest.raises(CorpusError, match=r"expected at most 0\.07 GB unpacked"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == [path.name]


def test_a_zip_that_understates_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", bytes(50_000))
    data = path.read_bytes()
    path.write_bytes(data.replace((50_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(CorpusError):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_limits_of_size_and_number(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", *FILES.items())
    with pytest.raises(CorpusError, match="expected at most 2 files"):
        unpack(path, tmp_path / "out", max_files=2)
    with pytest.raises(CorpusError, match=r"expected at most 0\.00 GB unpacked"):
        unpack(path, tmp_path / "out", max_bytes=100_000)
    unpack(path, tmp_path / "out", max_files=3, max_bytes=100_007)
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_archive_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in FILES.items():
                file.writestr(name, data)
    else:
        # Without the padding at a tar's end, which may be missing.
        tar(
            path, *FILES.items(), ("last", os.urandom(20_000)), mode=f"w:{ending.removeprefix('tar').removeprefix('.')}"
        )
    path.write_bytes(path.read_bytes()[: int(share * 0.9 * path.stat().st_size)])
    with pytest.raises(CorpusError, match="download it again"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "data", [b"", b"<html>Log in</html>", bytes(10_240)], ids=["empty", "a web page", "no members"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(CorpusError):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == ["a.tar.gz"]


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds 'a\.txt' twice"):
        unpack(tar(tmp_path / "a.tar", ("a.txt", b"1"), ("a.txt", b"2"), mode="w"), tmp_path / "out")


def test_an_encrypted_zip_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.txt", "x")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(CorpusError, match="is encrypted"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
