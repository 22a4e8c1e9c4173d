import json
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DATA
from rich.console import Console
from rich.progress import Progress

from asr import audio, manifest
from asr.corpus import doctor
from asr.errors import ManifestError
from asr.manifest import Utterance
from asr.text import english
from asr.tokens import Tokens

RATE = 16_000
TOKENS = Tokens.of(" 'abcdefghijklmnopqrstuvwxyz")


def speak(
    path: Path, seconds: float = 2.0, level: float = 0.1, seed: int | None = None, rate: int = RATE
) -> np.ndarray:
    """Write noise as a stand-in for speech, other noise for each name, and return it."""
    random = np.random.default_rng(seed if seed is not None else list(path.name.encode()))
    samples = (level * random.uniform(-1, 1, round(seconds * rate))).astype(np.float32)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return samples


@pytest.fixture
def clean(tmp_path: Path) -> list[Utterance]:
    utterances = []
    for index in range(24):
        path = tmp_path / f"u{index:02}.wav"
        seconds = 2.0 + 0.05 * index
        speak(path, seconds)
        utterances.append(Utterance(path, seconds, f"Hello, number {chr(ord('a') + index)}!", speaker=f"s{index % 3}"))
    return utterances


def kinds(diagnosis: doctor.Diagnosis) -> set[tuple[str, str, str]]:
    return {(finding.level, finding.kind, finding.id) for finding in diagnosis.findings}


def test_clean_manifest(tmp_path: Path, clean: list[Utterance]) -> None:
    path = tmp_path / "m.jsonl"
    manifest.write(path, clean)
    diagnosis = doctor.check(manifest.read(path), TOKENS, english, manifest=path)
    assert diagnosis.findings == []
    assert (diagnosis.utterances, diagnosis.speakers, diagnosis.errors) == (24, 3, 0)
    assert diagnosis.hours == pytest.approx(sum(utterance.duration_s for utterance in clean) / 3600)
    assert diagnosis.characters == 24 * len("hello number a")
    assert diagnosis.notes == ["sample rate: 16000 Hz (24)", "24 different texts"]


def test_every_fault(tmp_path: Path, clean: list[Utterance]) -> None:
    def new(name: str, seconds: float = 2.0, text: str = "Hello, number z.") -> Utterance:
        return Utterance(tmp_path / f"{name}.wav", seconds, text)

    def spoken(name: str, seconds: float = 2.0, text: str = "Hello, number z.", **options: Any) -> Utterance:
        utterance = new(name, seconds, text)
        speak(utterance.audio, seconds, **options)
        return utterance

    faulty = {
        ("error", "missing audio", "missing"): new("missing"),
        ("error", "unreadable audio", "cut"): spoken("cut"),
        ("error", "unreadable audio", "nan"): new("nan"),
        ("error", "wrong duration", "shorter"): replace(spoken("shorter"), duration_s=2.3),
        ("error", "wrong duration", "longer"): replace(spoken("longer"), duration_s=1.7),
        ("error", "empty text", "empty"): spoken("empty", text="?!"),
        ("error", "text outside alphabet", "digits"): spoken("digits", text="Hello 55é $ß"),
        ("error", "too short for its text", "dense"): spoken("dense", 0.4, text="abcdeeffgh"),
        ("warning", "silence", "silence"): spoken("silence", level=0.0005),
        ("warning", "silence", "zeros"): spoken("zeros", level=0.0),
        ("warning", "clipping", "clipped"): new("clipped"),
        ("warning", "unusual duration", "long"): spoken("long", 40.0, text="hello there " * 20),
        ("warning", "unusual speed", "slow"): spoken("slow", 4.0, text="a"),
        ("warning", "duplicate audio", "copy"): new("copy", clean[3].duration_s),
    }
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:20_000])
    soundfile.write(tmp_path / "nan.wav", np.full(2 * RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    loud = speak(tmp_path / "clipped.wav", level=1.1)
    soundfile.write(tmp_path / "clipped.wav", np.clip(loud, -1, 1), RATE)
    (tmp_path / "copy.wav").write_bytes(clean[3].audio.read_bytes())
    (tmp_path / "other").mkdir()
    speak(tmp_path / "other" / "u05.wav", seed=1)
    utterances = [*clean, *faulty.values(), clean[4], Utterance(tmp_path / "other" / "u05.wav", 2.0, "hello there now")]
    path = tmp_path / "m.jsonl"
    manifest.write(path, utterances)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    diagnosis = doctor.check(manifest.read(path), TOKENS, english, manifest=path)
    found = kinds(diagnosis)
    expected = {
        *faulty,
        ("error", "duplicate utterance", "u04"),
        ("warning", "ambiguous id", "u05"),
        ("warning", "byte order mark", "m.jsonl"),
        ("warning", "Windows line ends", "m.jsonl"),
    }
    also = {("warning", "unusual duration", "dense"), ("warning", "unusual speed", "dense")}
    assert found - also == expected
    assert diagnosis.unknown == {"$": 1, "ß": 1}
    assert diagnosis.errors == sum(level == "error" for level, _, _ in expected)
    details = {finding.id: finding.detail for finding in diagnosis.findings if "unusual" not in finding.kind}
    assert details["shorter"] == "the manifest says 2.30 s, the audio has 2.00 s"
    assert details["longer"] == "the manifest says 1.70 s, the audio has 2.00 s"
    assert details["dense"] == "10 characters need 12 frames, 0.40 s gives 10"
    assert details["nan"].startswith("expected finite samples")
    assert details["copy"] == "the same samples as u03, with another text"


@pytest.mark.parametrize(("text", "fits"), [("abcdefghij", True), ("abcdefghijk", False), ("abcdefghii", False)])
def test_too_short_is_counted_in_frames(tmp_path: Path, text: str, fits: bool) -> None:
    """0.4 s is ten frames of 40 ms; a double letter needs a blank between."""
    speak(tmp_path / "a.wav", 0.4)
    diagnosis = doctor.check([Utterance(tmp_path / "a.wav", 0.4, text)], TOKENS, english)
    assert (diagnosis.errors == 0) == fits


def test_parts_of_one_file(tmp_path: Path) -> None:
    """Utterances cut from a long file are shorter than it, and that is no fault; one beyond its end is."""
    path = tmp_path / "long.wav"
    speak(path, 10.0)
    parts = [Utterance(path, 2.0, text, offset) for offset, text in ((0.0, "first"), (2.0, "second"), (4.0, "third"))]
    assert doctor.check(parts, TOKENS, english).findings == []
    beyond = [Utterance(path, 2.0, "over the end", 9.0), Utterance(path, 2.0, "after the end", 11.0)]
    found = kinds(doctor.check([*parts, *beyond], TOKENS, english))
    assert found == {("error", "wrong duration", "long@9.00"), ("error", "unreadable audio", "long@11.00")}


def test_offsets_of_the_sound(tmp_path: Path) -> None:
    files = [tmp_path / "offset.wav", tmp_path / "silent.wav"]
    soundfile.write(files[0], speak(tmp_path / "a.wav") + 0.05, RATE, subtype="FLOAT")
    soundfile.write(files[1], np.full(2 * RATE, -0.02), RATE, subtype="FLOAT")
    diagnosis = doctor.check([Utterance(file, 2.0, file.stem) for file in files], TOKENS, english)
    assert [(finding.kind, finding.id) for finding in diagnosis.findings] == [
        ("DC offset", "offset"),
        ("DC offset", "silent"),
        ("silence", "silent"),
    ]
    assert diagnosis.findings[0].detail.startswith("the samples' mean is +0.05")


def test_malformed_lines_are_among_the_faults(tmp_path: Path, clean: list[Utterance]) -> None:
    path = tmp_path / "m.jsonl"
    manifest.write(path, clean[:2])
    with path.open("a") as file:
        file.write('{"audio_filepath": "a.wav"}\n{"text": \n')
    malformed: list[ManifestError] = []
    diagnosis = doctor.check(manifest.read(path, malformed), TOKENS, english, malformed=malformed)
    assert diagnosis.utterances == 2
    assert kinds(diagnosis) == {("error", "malformed line", "m.jsonl:3"), ("error", "malformed line", "m.jsonl:4")}
    assert "'duration' is missing" in diagnosis.findings[0].detail
    with pytest.raises(ManifestError, match=r"m\.jsonl:3"):
        manifest.read(path)


def test_hiss_above_hearing_is_silence(tmp_path: Path) -> None:
    at = np.arange(2 * 44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 15_000 * at), 44_100)
    found = kinds(doctor.check([Utterance(tmp_path / "a.wav", 2.0, "hello there")], TOKENS, english))
    assert found == {("warning", "silence", "a")}


def test_notes_tell_of_mixed_rates_and_frequent_texts(tmp_path: Path) -> None:
    speak(tmp_path / "a.wav", rate=8000)
    speak(tmp_path / "b.wav")
    speak(tmp_path / "c.wav")
    utterances = [Utterance(tmp_path / f"{name}.wav", 2.0, "hello") for name in "abc"]
    diagnosis = doctor.check(utterances, TOKENS, english)
    assert diagnosis.notes == ["sample rates: 16000 Hz (2), 8000 Hz (1)", "1 different text; 3 times: 'hello'"]


def test_real_recordings_have_no_faults() -> None:
    texts = {
        "7_jackson_0.wav": "seven",
        "3_nicolas_0.wav": "three",
        "common_voice_en_40232593.mp3": "It has now ended its third season.",
        "000030012.opus": "MARK IS GOING TO SEE ELEPHANT",
    }
    utterances = [Utterance(DATA / name, audio.info(DATA / name).duration_s, text) for name, text in texts.items()]
    assert doctor.check(utterances, TOKENS, english).findings == []


def rendered(diagnosis: doctor.Diagnosis, encoding: str = "utf-8") -> str:
    raw = BytesIO()
    file = TextIOWrapper(raw, encoding=encoding)
    diagnosis.render(Console(file=file, width=80))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_rendered_in_80_columns(tmp_path: Path, clean: list[Utterance], encoding: str) -> None:
    missing = [Utterance(tmp_path / f"[bold]{index}.wav", 2.0, f"nothing $ {'long ' * 30}") for index in range(5)]
    output = rendered(doctor.check([*clean, *missing], TOKENS, english), encoding)
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output
    assert lines[0].startswith("29 utterances, 0.02 h, 3 speakers, ")
    assert "Duration" in lines
    assert "Characters per second" in lines
    assert any(line.split() == ["error", "missing", "audio", "5"] for line in lines)
    assert "    [bold]0: no such file; check the path" in lines
    assert "    and 2 more" in lines
    assert "Characters outside the alphabet, how often: '$' 5" in lines
    assert lines[-1].startswith("15 errors, ")


def test_rendered_without_anything() -> None:
    assert rendered(doctor.check([], TOKENS, english)).splitlines()[-1] == "0 errors, 0 warnings"


def test_json(tmp_path: Path) -> None:
    row = json.loads(doctor.check([Utterance(tmp_path / "a.wav", 2.0, "é")], TOKENS, str).to_json())
    assert (row["utterances"], row["errors"], row["warnings"], row["unknown"]) == (1, 2, 0, {"é": 1})
    assert row["findings"][0] == {
        "level": "error",
        "kind": "missing audio",
        "id": "a",
        "detail": "no such file; check the path",
    }


def test_progress_reaches_the_end(clean: list[Utterance]) -> None:
    with Progress(console=Console(file=StringIO())) as progress:
        doctor.check(clean, TOKENS, english, progress=progress)
    assert [task.completed for task in progress.tasks] == [24]


def test_histogram_counts_every_value() -> None:
    values = [*np.random.default_rng(0).gamma(4.0, 1.0, 500), 500.0]
    lines = doctor.histogram(values, bins=10, width=20)
    assert len(lines) == 10
    assert sum(int(line.split()[-1]) for line in lines) == 501
    assert "and more" in lines[-1]
    assert max(line.count("█") for line in lines) == 20
    assert all("▏" in line or "█" in line or not line.endswith(" 1") for line in lines)


@pytest.mark.parametrize(("values", "lines"), [([], []), ([2.0] * 3, ["2.00 – 2.00 s ██████████ 3"])])
def test_histogram_of_few(values: list[float], lines: list[str]) -> None:
    assert doctor.histogram(values, width=10) == lines
