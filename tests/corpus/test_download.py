"""Downloads from a server on loopback that fails in the ways that real ones do."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mirror
import pytest
from mirror import names

from asr.corpus import download
from asr.corpus.download import fetch
from asr.errors import CorpusError

BODY = random.Random(0).randbytes(3_000_000)  # the same in each run: a test may change a byte and rely on it
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[mirror.Mirror]:
    with mirror.running() as one:
        one.files["/a.tar"] = BODY
        yield one


@pytest.mark.parametrize("checksum", [SHA256, MD5], ids=["sha256", "md5"])
def test_a_file_is_downloaded_once(server: mirror.Mirror, tmp_path: Path, checksum: str) -> None:
    for _ in range(2):
        fetch([server.url + "/a.tar"], tmp_path / "new/a.tar", checksum)
    assert (tmp_path / "new/a.tar").read_bytes() == BODY
    assert names(tmp_path / "new") == ["a.tar"]
    assert server.requests == [("/a.tar", "")]


def test_a_cut_connection_goes_on_where_it_was(server: mirror.Mirror, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256, backoff_s=0)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["", "bytes=1000000-", "bytes=1500000-"]


def test_another_run_goes_on_where_the_first_was(server: mirror.Mirror, tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(BODY[:12345])
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert server.requests == [("/a.tar", "bytes=12345-")]


@pytest.mark.parametrize("part", [BODY, BODY + b"more", b"another file"], ids=["complete", "longer", "of another file"])
def test_any_older_part_ends_in_the_right_file(server: mirror.Mirror, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "a.tar.part").write_bytes(part)
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256, backoff_s=0)
    assert (tmp_path / "a.tar").read_bytes() == BODY


def test_a_server_without_ranges_starts_again(server: mirror.Mirror, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256, backoff_s=0)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert server.requests[1] == ("/a.tar", "bytes=1000000-")


def test_a_server_without_lengths_will_do(server: mirror.Mirror, tmp_path: Path) -> None:
    server.lengths = False
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY


def test_a_busy_server_is_asked_again(server: mirror.Mirror, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256, backoff_s=0)
    assert len(server.requests) == 3


def test_a_silent_server_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It accepts the connection and then says nothing."""
    import socket

    monkeypatch.setattr(download, "_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar"
        with pytest.raises(CorpusError, match="timed out, 6 times in a row"):
            fetch([url], tmp_path / "a.tar", SHA256, backoff_s=0)


def test_the_next_mirror_is_asked(server: mirror.Mirror, tmp_path: Path) -> None:
    server.files["/wrong/a.tar"] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    urls = [
        "http://127.0.0.1:1/a.tar",
        f"{server.url}/nowhere/a.tar",
        f"{server.url}/wrong/a.tar",
        f"{server.url}/a.tar",
    ]
    fetch(urls, tmp_path / "a.tar", SHA256, backoff_s=0)
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/nowhere/a.tar", "/wrong/a.tar", "/a.tar"]


def test_when_no_mirror_will_do_all_reasons_are_told(server: mirror.Mirror, tmp_path: Path) -> None:
    server.files["/wrong/a.tar"] = b"<html>Log in</html>"
    with pytest.raises(CorpusError) as caught:
        fetch([f"{server.url}/nowhere/a.tar", f"{server.url}/wrong/a.tar"], tmp_path / "a.tar", SHA256)
    assert "HTTP 404" in str(caught.value)
    assert f"expected {SHA256}, got sha256:" in str(caught.value)
    assert names(tmp_path) == []  # nor a part of the wrong file


def test_a_file_that_is_there_and_wrong_is_not_used(server: mirror.Mirror, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"something else")
    with pytest.raises(CorpusError, match="delete it and run again"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256)
    assert server.requests == []


def test_without_a_published_checksum_the_first_download_counts(server: mirror.Mirror, tmp_path: Path) -> None:
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", None)
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", None)
    assert len(server.requests) == 1
    checked = subprocess.run(["sha256sum", "--check", "a.tar.sha256"], cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0
    (tmp_path / "a.tar").write_bytes(b"something else")
    with pytest.raises(CorpusError, match="delete it and run again"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", None)
    (tmp_path / "a.tar").unlink()
    server.files["/a.tar"] = b"something else"
    with pytest.raises(CorpusError, match="got sha256:"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", None)


def test_without_a_checksum_two_versions_are_not_joined(server: mirror.Mirror, tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(b"of who knows what")
    server.cuts = [1_000_000]
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", None, backoff_s=0)
    assert [asked for _, asked in server.requests] == ["", "bytes=1000000-"]
    assert (tmp_path / "a.tar").read_bytes() == BODY
    server.etag, server.cuts, server.requests = None, [1_000_000], []
    fetch([server.url + "/a.tar"], tmp_path / "b.tar", None, backoff_s=0)
    assert [asked for _, asked in server.requests] == ["", ""]
    assert (tmp_path / "b.tar").read_bytes() == BODY


def test_without_a_checksum_a_file_that_changes_meanwhile_starts_again(server: mirror.Mirror, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    server.replacement = bytes(reversed(BODY))
    fetch([server.url + "/a.tar"], tmp_path / "a.tar", None, backoff_s=0)
    assert (tmp_path / "a.tar").read_bytes() == bytes(reversed(BODY))


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_that_is_too_large_is_refused(server: mirror.Mirror, tmp_path: Path, lengths: bool) -> None:
    server.lengths = lengths
    with pytest.raises(CorpusError, match="expected at most 1000000 bytes"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256, max_bytes=1_000_000)
    assert not (tmp_path / "a.tar").exists()


def test_too_little_space_is_told_before(
    server: mirror.Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CorpusError, match="are free; make room"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_when_it_happens(server: mirror.Mirror, tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").symlink_to("/dev/full")
    with pytest.raises(CorpusError, match="the disk is full; what came is kept"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", SHA256)


def test_a_folder_that_cannot_be_written_is_told(server: mirror.Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CorpusError, match="cannot be written"):
        fetch([server.url + "/a.tar"], tmp_path / "file/a.tar", SHA256)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a.tar", "a.tar"])
def test_only_the_web_is_read(url: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="http:// or https://"):
        fetch([url], tmp_path / "a.tar", SHA256)


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/a.tar"])
def test_nor_does_a_server_lead_elsewhere(server: mirror.Mirror, location: str, tmp_path: Path) -> None:
    server.statuses, server.location = [302], location
    with pytest.raises(CorpusError, match=r"302|unknown url type"):
        fetch([server.url + "/a.tar"], tmp_path / "a.tar", None)
    assert not (tmp_path / "a.tar").exists()


def test_a_server_may_lead_to_another_address(server: mirror.Mirror, tmp_path: Path) -> None:
    server.statuses, server.location = [302], server.url + "/a.tar"
    fetch([server.url + "/old.tar"], tmp_path / "a.tar", SHA256)
    assert (tmp_path / "a.tar").read_bytes() == BODY


def test_a_checksum_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(CorpusError, match="expected a checksum such as sha256:HEX"):
        fetch([], tmp_path / "a.tar", "crc32:12345678")
