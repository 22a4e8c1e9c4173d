import json
import os
import threading
import time
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.errors import OutputError, TrainingError
from asr.manifest import Utterance
from asr.training import shards
from asr.training.shards import decode

RATE = 16_000


def utterances(folder: Path, count: int = 6) -> list[Utterance]:
    """Recordings of 0.1 s, 0.2 s ... of one value each: 1, 2 ..."""
    made = []
    for number in range(1, count + 1):
        path = folder / f"{number}.wav"
        samples = np.full(1600 * number, number, np.int16)
        soundfile.write(path, samples, RATE)
        made.append(Utterance(path, len(samples) / RATE, "a"))
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is full with half a second."""
    monkeypatch.setattr(shards, "_SHARD_S", 0.5)


def check(got: Sequence[np.ndarray | str], count: int = 6) -> None:
    assert len(got) == count
    for number, piece in enumerate(got, start=1):
        assert isinstance(piece, np.ndarray)
        assert piece.dtype == np.int16
        np.testing.assert_array_equal(piece, np.full(1600 * number, number))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.usefixtures("small")
def test_every_utterance_gets_its_samples_and_they_are_decoded_once(tmp_path: Path) -> None:
    chosen, seen = utterances(tmp_path), []
    check(decode(chosen, tmp_path / "cache", progress=lambda: seen.append(1)))
    assert len(seen) == 6
    before = state(tmp_path / "cache")
    assert len(before) == 6  # samples and index of three shards, of 0.6, 0.9 and 0.6 s
    check(decode(chosen, tmp_path / "cache", progress=lambda: seen.append(1)))
    assert len(seen) == 6
    assert state(tmp_path / "cache") == before


@pytest.mark.usefixtures("small")
def test_samples_are_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    got = decode(utterances(tmp_path), tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        got[0][0] = 3  # type: ignore[index]


@pytest.mark.usefixtures("small")
def test_only_what_changed_is_decoded_anew(tmp_path: Path) -> None:
    chosen, seen = utterances(tmp_path), []
    decode(chosen, tmp_path / "cache")
    kept = state(tmp_path / "cache")
    soundfile.write(tmp_path / "6.wav", np.full(800, 9, np.int16), RATE)
    got = decode(chosen, tmp_path / "cache", progress=lambda: seen.append(1))
    np.testing.assert_array_equal(got[5], np.full(800, 9))
    assert len(seen) == 1
    now = state(tmp_path / "cache")
    assert len(now) == len(kept)  # what it was before is gone
    assert len(now.keys() & kept.keys()) == len(kept) - 2


@pytest.mark.usefixtures("small")
def test_what_another_training_of_the_manifest_removes_is_decoded_again(tmp_path: Path) -> None:
    chosen = utterances(tmp_path)
    seen = []

    def progress() -> None:
        seen.append(1)
        if len(seen) == 6:  # the first two shards are written, the third is about to be
            decode(chosen[:4], tmp_path / "cache")  # with other settings, which skip two: the first shard is the same

    check(decode(chosen, tmp_path / "cache", progress=progress))
    assert len(seen) > 6


def test_what_cannot_be_read_is_said_and_the_rest_is_there(tmp_path: Path) -> None:
    chosen = utterances(tmp_path)
    (tmp_path / "2.wav").write_bytes(b"no audio")
    (tmp_path / "5.wav").unlink()
    for _ in range(2):  # decoded, and found
        got = decode(chosen, tmp_path / "cache")
        assert "2.wav" in got[1]
        assert "no such file" in got[4]
        assert [len(piece) for piece in (got[0], got[2], got[3], got[5])] == [1600, 4800, 6400, 9600]
    soundfile.write(tmp_path / "5.wav", np.full(8000, 5, np.int16), RATE)
    soundfile.write(tmp_path / "2.wav", np.full(3200, 2, np.int16), RATE)
    check(decode(chosen, tmp_path / "cache"))


def test_nothing_can_be_read(tmp_path: Path) -> None:
    got = decode(
        [Utterance(tmp_path / "absent.wav", 1.0, "a"), Utterance(tmp_path / "nul\0.wav", 1.0, "a")], tmp_path / "c"
    )
    assert ["no such file" in str(got[0]), isinstance(got[1], str)] == [True, True]


def test_no_utterances(tmp_path: Path) -> None:
    assert list(decode([], tmp_path / "cache")) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", ["cut", "no samples", "no index", "half an index"])
def test_a_shard_that_is_not_whole_is_decoded_anew(tmp_path: Path, damage: str) -> None:
    chosen = utterances(tmp_path)
    decode(chosen, tmp_path / "cache")
    index = sorted((tmp_path / "cache").glob("*.json"))[1]
    samples = index.with_suffix(".int16")
    if damage == "cut":
        os.truncate(samples, samples.stat().st_size - 2)
    elif damage == "no samples":
        samples.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text(index.read_text()[:9])
    check(decode(chosen, tmp_path / "cache"))


@pytest.mark.usefixtures("small")
def test_processes_share_the_work_and_all_get_everything(tmp_path: Path) -> None:
    chosen = utterances(tmp_path)
    got: dict[int, shards.Decoded] = {}
    counts = [0, 0, 0]

    def work(rank: int) -> None:
        def count() -> None:
            counts[rank] += 1

        got[rank] = decode(chosen, tmp_path / "cache", rank=rank, processes=3, progress=count)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(3):
        check(got[rank])
    assert sum(counts) == 6
    assert min(counts) > 0


@pytest.mark.usefixtures("small")
def test_a_process_that_starts_late_does_its_part_all_the_same(tmp_path: Path) -> None:
    """When what the others have done is no longer missing."""
    chosen, cache = utterances(tmp_path), tmp_path / "cache"
    counts = [0, 0]
    first: list[np.ndarray | str] = []

    def count(rank: int) -> None:
        counts[rank] += 1

    def work() -> None:
        first.extend(decode(chosen, cache, rank=0, processes=2, progress=lambda: count(0)))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while len(list(cache.glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other = threading.Thread(
        target=decode,
        args=(chosen, cache),
        kwargs={"rank": 1, "processes": 2, "progress": lambda: count(1)},
        daemon=True,
    )
    other.start()
    for each in (thread, other):
        each.join(60)
        assert not each.is_alive()
    check(first)
    assert counts == [4, 2]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot be written: .*set data\.cache to a folder"):
        decode(utterances(tmp_path), tmp_path / "file" / "cache")


def test_too_little_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(TrainingError, match=r"expected 0.0 GB of free space for decoded audio, got 0.0 GB"):
        decode(utterances(tmp_path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = json.dumps

    def full(value: object, **options: Any) -> str:
        if isinstance(value, dict):
            raise OSError(28, "No space left on device")
        return real(value, **options)

    monkeypatch.setattr("json.dumps", full)
    with pytest.raises(OutputError, match="No space left on device"):
        decode(utterances(tmp_path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
