"""Files at addresses: a real web server on this machine, and a store of objects in memory in the place of S3."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pytest
from conftest import DATA, Cli
from fsspec.implementations.memory import MemoryFileSystem

from asr import audio, files, manifest, remote
from asr.cli import batch
from asr.corpus import tars
from asr.errors import AsrError, AudioError, ManifestError, OutputError
from asr.manifest import Utterance
from asr.remote import Remote, locate

_ELSEWHERE = ["../", "?C=N", "/", "x/../../climb.wav", "http://127.0.0.1:1/far.wav"]  # links on every page


class Web(ThreadingHTTPServer):
    """A folder on the web. ranges: whether parts can be asked for; cuts: so many answers end in the middle."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.ranges, self.cuts, self.status = folder, True, 0, 200
        self.asked: list[str] = []

    def at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Answer(BaseHTTPRequestHandler):
    server: Web

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if self.server.status != 200 or not path.exists():
            self.send_error(self.server.status if self.server.status != 200 else 404)
            return
        if path.is_dir():
            names = [f"{one.name}/" if one.is_dir() else one.name for one in sorted(path.iterdir())]
            data = "".join(f'<a href="{name}">{name}</a>\n' for name in [*_ELSEWHERE, *names]).encode()
        else:
            data = path.read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        self.send_response(206 if asked else 200)
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(data) - 1)
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}")
            data = data[start : end + 1]
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts and len(data) > 1000:
            self.server.cuts -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    folder = tmp_path / "web"
    (folder / "inner").mkdir(parents=True)
    shutil.copy(DATA / "7_jackson_0.wav", folder / "b.wav")
    shutil.copy(DATA / "connected_digits.flac", folder / "inner" / "c.flac")
    (folder / "notes.txt").write_text("no audio")
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    server = Web(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Store(MemoryFileSystem):  # type: ignore[misc]
    """Objects by their names, as S3 has them."""

    protocol = ("s3",)
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    Store.store.clear()
    made = Store()
    monkeypatch.setattr(Remote, "_system", lambda _: made)
    return made


def test_what_is_an_address() -> None:
    assert locate("talks/a.wav") == Path("talks/a.wav")
    assert locate("file:///talks/a%20b.wav") == Path("/talks/a b.wav")
    assert locate("C:/talks/a.wav") == Path("C:/talks/a.wav")
    once = locate("s3://talks/2026/one.flac")
    assert (str(once), once.stem, once.suffix, str(once.parent)) == (
        "s3://talks/2026/one.flac",
        "one",
        ".flac",
        "s3://talks/2026",
    )
    assert locate(Path("s3://talks/2026/one.flac")) == once  # of which a Path leaves one slash
    assert pickle.loads(pickle.dumps(once)) == once == locate("s3://talks") / "2026" / "one.flac"


def test_what_may_be_secret_is_not_shown() -> None:
    signed = locate("https://me:pass@host/one.wav?signature=abc")
    assert (str(signed), signed.name) == ("https://host/one.wav", "one.wav")
    assert pickle.loads(pickle.dumps(signed)).address == "https://me:pass@host/one.wav?signature=abc"


@pytest.mark.parametrize(("ranges", "cuts"), [(True, 0), (False, 0), (True, 3), (False, 3)])
def test_a_recording_on_the_web_also_if_the_connection_is_cut(web: Web, ranges: bool, cuts: int) -> None:
    web.ranges, web.cuts = ranges, cuts
    heard = audio.read(locate(web.at("inner/c.flac?key=1")))
    np.testing.assert_array_equal(heard, audio.read(web.folder / "inner" / "c.flac"))
    assert web.cuts == 0
    assert web.asked[-1] == "/inner/c.flac?key=1"


def test_text_is_never_an_address_to_a_reader(web: Web) -> None:
    with pytest.raises(AudioError, match="no such file"):
        audio.read(web.at("b.wav"))
    assert web.asked == []


@pytest.mark.parametrize(
    ("status", "name", "message"),
    [
        (200, "gone.wav", "no such file"),
        (403, "b.wav", "no permission"),
        (503, "b.wav", "the server answers 503"),
        (200, "notes.txt", "notes.txt: .*expected audio"),
    ],
)
def test_what_cannot_be_read(web: Web, status: int, name: str, message: str) -> None:
    web.status = status
    with pytest.raises(AudioError, match=message) as told:
        audio.read(locate(web.at(f"{name}?signature=abc")))
    assert str(told.value).startswith(web.at(name))
    assert "abc" not in str(told.value)


def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(AudioError, match=r"b\.wav: cannot be read: "):
            audio.read(locate(f"http://127.0.0.1:{taken.getsockname()[1]}/b.wav"))


def test_a_folder_on_the_web(web: Web) -> None:
    found, errors, others = batch.find([web.at("")])
    assert (list(map(str, found)), errors, list(map(str, others))) == ([web.at("b.wav")], [], [web.at("notes.txt")])
    found, _, _ = batch.find([web.at("")], recursive=True)
    assert found == {locate(web.at("b.wav")): Path("b"), locate(web.at("inner/c.flac")): Path("inner/c")}
    _, errors, _ = batch.find([web.at("none/")])
    assert [str(error) for error in errors] == [f"{web.at('none/')}: expected recordings there, found none"]


def test_a_folder_that_cannot_be_listed(web: Web) -> None:
    web.status = 403
    found, errors, _ = batch.find([web.at("")])
    assert (found, len(errors)) == ({}, 1)
    assert str(errors[0]).startswith(f"{locate(web.at(''))}: cannot be listed: no permission")


def test_a_manifest_on_the_web(web: Web) -> None:
    rows = [{"audio_filepath": name, "duration": 0.5, "text": "seven"} for name in ("b.wav", web.at("b.wav"))]
    (web.folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = manifest.read(web.at("m.jsonl"))
    assert [one.audio for one in found] == [locate(web.at("b.wav"))] * 2
    assert len(audio.read_utterance(found[0])) == len(audio.read(web.folder / "b.wav"))
    with pytest.raises(ManifestError, match="no such manifest"):
        manifest.read(web.at("none.jsonl"))


@pytest.mark.parametrize(("ranges", "cuts"), [(True, 0), (True, 3), (False, 0)])
def test_what_stands_in_tars_on_the_web(web: Web, tmp_path: Path, ranges: bool, cuts: int) -> None:
    """Only the bytes of an utterance are asked for; what is cut is asked for again."""
    source = [
        Utterance(DATA / name, 0.3, name) for name in ("7_jackson_0.wav", "3_nicolas_0.wav", "connected_digits.flac")
    ]
    manifest.write(tmp_path / "m.jsonl", source)
    for shard in tars.plan(manifest.read(tmp_path / "m.jsonl"), web.folder, "t", hours=0.5 / 3600):
        tars.write(shard, "wav")
    found = manifest.read([web.at("t-00000-of-00002.tar"), web.at("t-00001-of-00002.jsonl")])
    web.ranges, web.cuts = ranges, cuts
    if not ranges:  # the whole tar is no answer
        with pytest.raises(AudioError, match=r"t-00000-of-00002\.tar/7_jackson_0\.wav: .* expected \d+ bytes"):
            audio.read_utterance(found[0])
        return
    contents = remote.read_members([cast("remote.Member", one.audio) for one in found])
    assert web.cuts == 0
    for one, content, before in zip(found, contents, source, strict=True):
        samples = audio.as_int16(audio.read_utterance(before))
        np.testing.assert_array_equal(audio.as_int16(audio.read(content)), samples)
        assert pickle.loads(pickle.dumps(one)) == one
    np.testing.assert_array_equal(audio.read_utterance(found[2]), audio.read_utterance(source[2]))
    (web.folder / "t-00001-of-00002.tar").unlink()
    with pytest.raises(AudioError, match=r"connected_digits\.wav: no such file"):
        audio.read_utterance(found[2])


def test_the_web_cannot_be_written(web: Web) -> None:
    with pytest.raises(OutputError, match="can only be read"):
        files.write(locate(web.at("new.txt")), "a", overwrite=True)


def test_the_command_on_the_web(cli: Cli, web: Web) -> None:
    done = cli("transcribe", "-m", "digits", web.at("b.wav"))
    assert (done.returncode, done.stdout) == (0, "seven\n"), done.stderr


@pytest.mark.usefixtures("store")
def test_a_store_is_written_whole_and_not_over_what_is_there() -> None:
    target = locate("s3://talks/texts/a.txt")
    files.make_folder(target.parent)
    files.write(target, "seven")
    with target.open("rb") as file:
        assert file.read() == b"seven"
    with pytest.raises(OutputError, match=r"s3://talks/texts/a.txt: the file exists already"):
        files.write(target, "eight")

    def fail() -> None:
        with files.replaced(target) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.stat().st_size == 5


@pytest.mark.usefixtures("store")
def test_a_store_in_a_store_out() -> None:
    for name in ("a.wav", "b.flac", "in/c.mp3", "notes.txt"):
        files.write(locate(f"s3://talks/{name}"), b"x" * 3)
    found, errors, others = batch.find(["s3://talks/"], recursive=True)
    assert {str(path): str(name) for path, name in found.items()} == {
        "s3://talks/a.wav": "a",
        "s3://talks/b.flac": "b",
        "s3://talks/in/c.mp3": "in/c",
    }
    assert ([path.stat().st_size for path in found], errors, list(map(str, others))) == (
        [3, 3, 3],
        [],
        ["s3://talks/notes.txt"],
    )
    out = locate("s3://texts/new")
    files.write(out / "in/c.txt", "done")
    jobs, skipped, errors = batch.plan(found, out, ["txt"], overwrite=False, skip_existing=True)
    assert [str(job.outputs["txt"]) for job in jobs] == ["s3://texts/new/a.txt", "s3://texts/new/b.txt"]
    assert ([str(one) for one in skipped], errors) == (["s3://talks/in/c.mp3"], [])
    some, _, _ = batch.find(["s3://talks/*.wav"])
    assert [str(path) for path in some] == ["s3://talks/a.wav"]


@pytest.mark.usefixtures("store")
def test_tars_in_a_store(tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.jsonl", [Utterance(DATA / "7_jackson_0.wav", 0.3, "a")])
    for shard in tars.plan(manifest.read(tmp_path / "m.jsonl"), locate("s3://talks/shards"), "t", hours=1):
        assert tars.write(shard, "flac") == []
    found = manifest.read("s3://talks/shards")
    assert found == manifest.read("s3://talks/shards/*.tar") == manifest.read("s3://talks/shards/t-00000-of-00001.tar")
    assert str(found[0].audio) == "s3://talks/shards/t-00000-of-00001.tar/7_jackson_0.flac"
    assert found[0].id == "7_jackson_0"
    assert len(audio.read_utterance(found[0])) == 4800
    assert tars.read([locate("s3://talks/shards/t-00000-of-00001.tar")])[0] == list(found)


@pytest.mark.usefixtures("store")
def test_a_manifest_in_a_store_names_its_audio_beside_it() -> None:
    path = locate("s3://talks/m.jsonl")
    manifest.write(
        path, [Utterance(locate("s3://talks/a/b.wav"), 1.0, "a"), Utterance(locate("s3://x/c.wav"), 1.0, "b")]
    )
    with path.open("rb") as file:
        names = [json.loads(line)["audio_filepath"] for line in file]
    assert names == ["a/b.wav", "s3://x/c.wav"]
    assert [str(one.audio) for one in manifest.read("s3://talks/m.jsonl")] == ["s3://talks/a/b.wav", "s3://x/c.wav"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        AsrError, match=r"s3://talks/a\.wav: .* needs? fsspec and s3fs; .*pip install '\.\[remote\]' s3fs"
    ):
        audio.read(locate("s3://talks/a.wav"))
    found, errors, _ = batch.find(["https://host/", "s3://talks"])
    assert found == {}
    assert [re.sub(r": .* pip", ": pip", str(error)) for error in errors] == [
        "https://host: pip install '.[remote]'",
        "s3://talks: pip install '.[remote]' s3fs",
    ]


def test_fsspec_knows_the_kinds() -> None:
    assert {"s3", "gs", "http", "https"} <= {*fsspec.available_protocols()}
