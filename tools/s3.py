"""`asr` on an S3 server that runs on this machine: recordings in, texts out, manifests, and what goes wrong.

pip install '.[remote]' s3fs 'moto[server]' && python tools/s3.py

The test suite has a store in memory in its place: moto and what it needs are 40 packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import s3fs
from moto.server import ThreadedMotoServer

from asr import audio, files, manifest
from asr.cli import batch
from asr.errors import AsrError
from asr.manifest import Utterance
from asr.remote import locate

DATA = Path(__file__).parent.parent / "tests" / "data"
BIG = 40_000_000  # bytes: several requests


def main() -> None:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.mkdir("talks")
    store.mkdir("texts")
    for name in ("7_jackson_0.wav", "connected_digits.flac", "deep/3_nicolas_0.wav"):
        files.write(locate(f"s3://talks/in/{name}"), (DATA / Path(name).name).read_bytes())
    files.write(locate("s3://talks/in/notes.txt"), "no audio")

    found, errors, others = batch.find(["s3://talks/in"], recursive=True)
    check("folder", list(map(str, found.values())), ["7_jackson_0", "connected_digits", "deep/3_nicolas_0"])
    check("passed over", (errors, list(map(str, others))), ([], ["s3://talks/in/notes.txt"]))
    check("pattern", list(map(str, batch.find(["s3://talks/in/*.wav"])[0])), ["s3://talks/in/7_jackson_0.wav"])
    heard = audio.read(locate("s3://talks/in/connected_digits.flac"))
    check("samples", heard.tobytes() == audio.read(DATA / "connected_digits.flac").tobytes(), True)

    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(BIG))
        big = locate("s3://talks/big")
        with files.replaced(big) as target:
            file.seek(0)
            target.write(file.read())
        with big.open("rb") as copy:
            file.seek(0)
            check("many parts", copy.read() == file.read(), True)

    manifest.write("s3://talks/in/m.jsonl", [Utterance(locate("s3://talks/in/7_jackson_0.wav"), 0.43, "seven")])
    check("manifest", str(manifest.read("s3://talks/in/m.jsonl")[0].audio), "s3://talks/in/7_jackson_0.wav")

    command = [sys.executable, "-m", "asr", "transcribe", "-m", "digits", "-r", "s3://talks/in", "-o", "s3://texts/new"]
    for more in (["--shard", "1/2"], ["--jobs", "2", "--skip-existing"]):
        done = subprocess.run([*command, "-f", "txt,srt", *more], check=False)
        check(" ".join(more), done.returncode, 0)
    check("texts", store.cat("texts/new/connected_digits.txt"), b"five seven nine zero\n")
    check("written", len(store.find("texts")), 6)

    for bad in ("s3://talks/none.wav", "s3://nowhere/none.wav"):
        try:
            audio.read(locate(bad))
        except AsrError as error:
            print(f"error, as expected: {error}")
        else:
            sys.exit(f"{bad}: expected an error, got none")
    server.stop()


def check(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: expected {expected!r}, got {got!r}")
    print(f"{what}: as expected")


if __name__ == "__main__":
    main()
