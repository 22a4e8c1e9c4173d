"""tools/bench english, on miniature corpora in the real layouts and figures worked out by hand."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DATA

from asr import audio
from asr.corpus import Recording
from asr.recognizer import Recognizer
from asr.stream import Endpoint, Final, Partial

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import bench_english as bench


class Sphinx:
    """As PocketSphinx's decoder is driven; it always hears the same."""

    def __init__(self, **settings: object) -> None:
        assert settings == {"samprate": 16000, "loglevel": "FATAL"}  # all else is its default
        self.samples: list[np.ndarray] = []

    def start_utt(self) -> None: ...

    def process_raw(self, raw: bytes, full_utt: bool) -> None:
        assert full_utt
        self.samples.append(np.frombuffer(raw, np.int16))

    def end_utt(self) -> None: ...

    def hyp(self) -> SimpleNamespace:
        return SimpleNamespace(hypstr="THREE well-read")


@pytest.fixture
def sphinx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", SimpleNamespace(Decoder=Sphinx))
    monkeypatch.setattr("importlib.metadata.version", {"pocketsphinx": "5.1"}.__getitem__)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    folder = tmp_path / "corpora"
    clips = folder / "common_voice/en/clips"
    clips.mkdir(parents=True)
    shutil.copy(DATA / "common_voice_en_40232593.mp3", clips / "one.mp3")
    for split in ("train", "dev", "test"):
        table = "client_id\tpath\tsentence\nsomebody\tone.mp3\tIt has now ended its third season.\n"
        (folder / "common_voice/en" / f"{split}.tsv").write_text(table)
    for split in ("train", "test"):
        part = folder / "speechocean762" / split
        part.mkdir(parents=True)
        keys = [str(number) for number in range(5)]
        for name, value in (("wav.scp", "one.opus"), ("text", "MARK IS GOING TO SEE ELEPHANT"), ("utt2spk", "0001")):
            (part / name).write_text("".join(f"{key}\t{value.replace('one', key)}\n" for key in keys))
        for key in keys:
            shutil.copy(DATA / "000030012.opus", folder / "speechocean762" / f"{key}.opus")
    chapter = folder / "librispeech_sample/LibriSpeech/test-other/1/2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.flac", np.random.default_rng(0).normal(0, 0.05, 8000), 16000)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 THERE'S IRON\n")
    (folder / "fsdd").mkdir()
    (folder / "noise").mkdir()
    soundfile.write(folder / "noise/rain.wav", np.random.default_rng(1).normal(0, 0.1, 4000), 16000)
    for index in (0, 5, 8):  # of the test, dev and training set
        shutil.copy(DATA / "3_nicolas_0.wav", folder / "fsdd" / f"3_nicolas_{index}.wav")
    return folder


def run(corpora: Path, **options: Any) -> None:
    none = dict.fromkeys(("lm", "whisper", "limit", "chart"))
    sets = ["common_voice", "speechocean762", "librispeech", "fsdd", "start"]
    usual: dict[str, Any] = {"corpora": corpora, "model": "digits", "peer_limit": 300, "sets": sets}
    bench.english(argparse.Namespace(**none | usual | options))


def tables(text: str) -> list[list[list[str]]]:
    """Cells of the tables of a markdown text, without heads."""
    blocks = [[line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block[2:]] for block in blocks if block]


@pytest.mark.parametrize(
    ("published", "compared"),
    [
        ("“Don’t!” said Zoë, half-way", "don't said zoe half way"),
        ("MARK'S  'TIS\n", "mark's tis"),
        ("Rock & roll: 5%", "rock and roll five percent"),
        ("a.m. ++NOISE++", "a m noise"),
        ("", ""),
    ],
)
def test_letters_and_apostrophes_are_compared(published: str, compared: str) -> None:
    assert bench.normalised(published) == compared


def test_a_part_comes_from_all_over_the_set() -> None:
    assert bench.spread("abcdef", 3) == ["a", "c", "e"]
    assert bench.spread("abc", None) == bench.spread("abc", 7) == ["a", "b", "c"]
    assert bench.spread("abc", 0) == []


def test_one_command_prints_all_figures(
    corpora: Path,
    tmp_path: Path,
    sphinx: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "COLD_STARTS", 1)
    chart = tmp_path / "new" / "english.png"
    run(corpora, limit=4, peer_limit=2, chart=chart)
    out, err = capsys.readouterr()
    errors, speed, calibration = tables(out)
    sizes = {row[0]: int(row[1]) for row in errors if row[0]}
    assert sizes == {
        "Common Voice test": 1,
        "speechocean762 test": 4,
        "speechocean762 test, a part": 2,
        "LibriSpeech test-other": 1,
        "FSDD test": 1,
        "FSDD test-connected": 4,
        "FSDD test-connected, a part": 2,
    }
    wer = {row[0]: row[3:] for row in errors if row[0]}
    assert wer["FSDD test"] == ["0.0 % (0.0 to 0.0)"] * 4 + ["200.0 % (200.0 to 200.0)"]
    assert [row[-1] for row in errors if row[0] in ("speechocean762 test", "FSDD test-connected")] == ["-", "-"]
    assert [row[0] for row in speed] == [name for name in sizes if f"{name}, a part" not in sizes]
    assert all(float(cell) > 0 for row in speed for cell in row[2:5])
    assert [row[0] for row in calibration] == [name for name in sizes if not name.endswith("a part")]
    assert "PocketSphinx 5.1" in out
    assert "without Whisper: no folder" in err
    assert "MB resident" in out
    with chart.open("rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_without_peers_it_measures_ours(
    corpora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    shutil.rmtree(corpora / "speechocean762")
    run(corpora, limit=1, peer_limit=1, sets=["common_voice", "speechocean762"])
    out, err = capsys.readouterr()
    assert "without PocketSphinx: not installed (pip install pocketsphinx)" in err
    errors, speed, _ = tables(out)
    assert [row[:3] for row in errors] == [["Common Voice test", "1", "WER"], ["", "", "CER"]]
    assert [len(row) for row in speed] == [5]
    assert "left out: " in err
    assert "speechocean762: expected a folder with train/wav.scp" in err
    assert "resident" not in out


def test_a_part_of_the_work(corpora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Variants of a set, and sounds in which nothing is said."""
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setattr(bench, "SOUND_S", 1)
    run(corpora, sets=["librispeech-*", "sounds"])
    errors, _, _, silence = tables(capsys.readouterr().out)
    names = ["noise at 10 dB", "30 dB quieter", "with an offset of 0.1"]
    assert [row[0] for row in errors if row[0]] == [f"LibriSpeech test-other, {name}" for name in names]
    assert silence[0] == ["digital silence", "1", "0", "0", "0"]
    assert silence[-1][0] == "noise/rain"


def test_a_part_that_there_is_not(corpora: Path) -> None:
    with pytest.raises(SystemExit, match=r"--sets: expected some of common_voice, .*got librispeach"):
        run(corpora, sets=["librispeach"])


def test_variants_are_what_they_are_called(corpora: Path, tmp_path: Path) -> None:
    path = next((corpora / "librispeech_sample").rglob("*.flac"))
    waveform = audio.read(path)

    def heard_as(variant: str, folder: str = "") -> np.ndarray:
        (one,) = bench.varied([Recording(path, "THERE'S IRON")], variant, corpora, tmp_path / f"{variant}{folder}")
        samples: np.ndarray = soundfile.read(one.audio)[0]
        return samples

    noise = heard_as("noise") - waveform
    assert 10 * np.log10(np.square(waveform).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.01)
    np.testing.assert_array_equal(heard_as("noise", "again"), noise + waveform)
    np.testing.assert_allclose(heard_as("quiet"), waveform * 0.0316228, atol=1e-6)
    np.testing.assert_allclose(heard_as("offset"), waveform + 0.1, atol=1e-6)


def test_whisper_hears_english_in_int8_on_one_thread(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model:
        def __init__(self, folder: str, **settings: object) -> None:
            assert settings == {"device": "cpu", "compute_type": "int8", "cpu_threads": 1, "local_files_only": True}

        def transcribe(self, waveform: np.ndarray, language: str) -> tuple[list[SimpleNamespace], None]:
            assert (waveform.ndim, language) == (1, "en")
            return [SimpleNamespace(text=" It has now ended"), SimpleNamespace(text=" its third season.")], None

    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=Model))
    monkeypatch.setattr("importlib.metadata.version", {"faster-whisper": "1.2"}.__getitem__)
    with pytest.raises(SystemExit, match=r"expected a folder with a model for faster-whisper.*model\.bin"):
        run(corpora, whisper=tmp_path / "tiny.en", sets=["common_voice"])
    (tmp_path / "tiny.en").mkdir()
    (tmp_path / "tiny.en/model.bin").touch()
    run(corpora, whisper=tmp_path / "tiny.en", sets=["common_voice"])
    out = capsys.readouterr().out
    errors, speed, _ = tables(out)
    assert "Whisper: tiny.en, int8, faster-whisper 1.2" in out
    assert errors[0][-1] == "0.0 % (0.0 to 0.0)"
    assert float(speed[0][5]) >= 0


def test_no_test_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected at least one of the test sets, got none"):
        run(tmp_path)


def test_letters_that_are_lost_are_told(corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(corpora / "fsdd")
    table = corpora / "common_voice/en/test.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("third", "thirđ"), encoding="utf-8")
    bench._test_sets(corpora, tmp_path, ["common_voice"], None, 300)
    assert (
        "references that lose what is not a letter: 1, such as ['It has now ended its thirđ season.']"
        in capsys.readouterr().err
    )


PEERS = {bench.SPHINX: lambda path: ""}


def heard(reference: str, default: str, peer: str | None, sure: list[float]) -> bench.Heard:
    texts = dict.fromkeys((bench.GREEDY, bench.DEFAULT, bench.STREAM, bench.FINAL), default)
    seconds = {bench.GREEDY: 0.1, bench.DEFAULT: 0.2, bench.STREAM: 0.4}
    if peer is not None:
        texts[bench.SPHINX], seconds[bench.SPHINX] = peer, 5.0
    return bench.Heard(reference, texts, sure, 10.0, seconds)


def test_figures_by_hand() -> None:
    whole = [heard("a b", "a c", None, [0.9, 0.9]), heard("a b", "a b", "", [0.5, 0.5])]
    rows = bench._rows({"set": whole}, PEERS)
    words, characters, part, _ = tables(bench.errors_table(rows, PEERS))[0]
    assert words[:4] == ["set", "2", "WER", "25.0 % (0.0 to 50.0)"]
    assert characters[3].startswith("16.7 %")  # one of six
    assert part == ["set, a part", "1", "WER", *4 * ["0.0 % (0.0 to 0.0)"], "100.0 % (100.0 to 100.0)"]
    ((*_, last),) = tables(bench.speed_table(rows, PEERS))
    assert last == ["set, a part", "10", "0.0100", "0.0200", "0.0400", "0.5000", "25.0", "50.0"]
    # Half of the words said to be 90 % sure are right, and all of those said to be 50 % sure.
    assert tables(bench.calibration_table({"set": whole})) == [[["set", "4", "75.0%", "70.0%", "0.450"]]]


def test_a_stream_is_scored_before_and_after_the_second_hearing() -> None:
    class Stream:
        def feed(self, samples: np.ndarray) -> list[object]:
            return [Partial("", "six", 0.3), Partial("seven", "one", 0.6)]

        def flush(self) -> list[object]:
            words = (Final("seven two", (), 0, 1), Endpoint(1, "pause"), Partial("", "five", 1.5))
            return [*words, Final("nine", (), 1, 2), Endpoint(2, "pause"), Endpoint(7, "idle")]

    recognizer: Any = SimpleNamespace(stream=lambda **lengths: Stream())
    assert bench.streamed(recognizer, np.zeros(10)) == ("seven one five", "seven two nine")


def test_loud_audio_does_not_wrap_around_for_pocketsphinx(
    tmp_path: Path, sphinx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sphinx] = []

    def decoder(**settings: object) -> Sphinx:
        made.append(Sphinx(**settings))
        return made[0]

    monkeypatch.setattr(sys.modules["pocketsphinx"], "Decoder", decoder)
    soundfile.write(tmp_path / "loud.wav", np.array([1.5, -1.5, 0.5] * 100), 16000, subtype="FLOAT")
    recognise = bench.pocketsphinx()
    assert recognise is not None
    assert recognise(tmp_path / "loud.wav") == "THREE well-read"
    assert made[0].samples[0][:3].tolist() == [32767, -32768, 16384]


def test_all_decodings_hear_each_utterance_in_turn(tmp_path: Path) -> None:
    order: list[str] = []

    def peer(path: Path) -> str:
        order.append(path.stem)
        return "three"

    paths = [DATA / "3_nicolas_0.wav", DATA / "7_jackson_0.wav"]
    recordings = [Recording(path, text) for path, text in zip(paths, ("Three!", "Seven"), strict=True)]
    durations = {path: audio.info(path).duration_s for path in paths}
    first, second = bench._hear("digits", recordings, durations, Recognizer("digits"), {bench.SPHINX: peer}, 1)
    assert order == ["3_nicolas_0"]
    assert first.texts == dict.fromkeys((bench.GREEDY, bench.DEFAULT, bench.STREAM, bench.FINAL, bench.SPHINX), "three")
    assert set(first.seconds) == {bench.GREEDY, bench.DEFAULT, bench.STREAM, bench.SPHINX}
    assert bench.SPHINX not in second.texts
    assert second.reference == second.texts[bench.DEFAULT] == "seven"
    assert len(second.sure) == 1
