"""Live recognition: from a file in the microphone's place, from a sound device that is not there, and from a real one."""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DATA, Cli

from asr import Recognizer, audio
from asr.audio import SAMPLE_RATE, microphone
from asr.audio.microphone import Microphone
from asr.audio.recording import Recording
from asr.errors import AudioError, OutputError
from asr.session import Session, Trouble, listen
from asr.stream import Final

DIGITS = DATA / "connected_digits.flac"
SAID = "five seven nine zero"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer("digits")


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    return audio.read(DIGITS)


@pytest.fixture
def twice(tmp_path: Path, spoken: np.ndarray) -> Path:
    """The digits, a pause, and the digits again."""
    path = tmp_path / "twice.wav"
    soundfile.write(path, np.concatenate([spoken, np.zeros(24_000, np.float32), spoken]), SAMPLE_RATE)
    return path


def start(folder: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`asr live`, with its output and errors in pipes."""
    command = [sys.executable, "-m", "asr", "live", "-m", "digits", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process: subprocess.Popen[str] = subprocess.Popen(command, cwd=folder, text=True, **options)
    return process


# --- the command, with a file in the place of the microphone ---


def test_lines_of_text_and_nothing_else(cli: Cli) -> None:
    done = cli("live", "-m", "digits", "--from", DIGITS, "--speed", 0)
    assert (done.returncode, done.stdout) == (0, f"{SAID}\n")
    assert done.stderr == "listening to connected_digits.flac, 16000 Hz; Ctrl-C ends\n"
    options = ["--quiet", "--chunk", 0.64, "--right-context", 0.4]
    quiet = cli("live", "-m", "digits", "--from", DIGITS, "--speed", 0, *options)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, f"{SAID}\n", "")


def test_a_line_comes_when_its_sentence_ends(tmp_path: Path, twice: Path) -> None:
    began = time.monotonic()
    with start(tmp_path, "--from", twice, "--speed", 2) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{SAID}\n"
        assert process.poll() is None  # the rest is still to be said
        assert process.stdout.read() == f"{SAID}\n"
    assert time.monotonic() - began > audio.info(twice).duration_s / 2
    assert process.returncode == 0


def test_the_sound_is_kept(cli: Cli, tmp_path: Path, spoken: np.ndarray) -> None:
    talk, kept = tmp_path / "talk.wav", tmp_path / "kept.wav"
    loud = audio.resample(spoken, SAMPLE_RATE, 44_100)
    soundfile.write(talk, np.stack([loud, loud / 2], axis=1), 44_100, subtype="FLOAT")
    done = cli("live", "-m", "digits", "--from", talk, "--speed", 0, "--save", kept)
    assert done.stdout == f"{SAID}\n"
    assert soundfile.info(kept).subtype == "PCM_16"
    heard, rate = soundfile.read(kept, dtype="float32")
    assert rate == SAMPLE_RATE
    assert len(heard) == pytest.approx(len(spoken), abs=2)
    common = min(len(heard), len(spoken))
    assert np.sqrt(np.mean((heard[:common] - 0.75 * spoken[:common]) ** 2)) < 2e-3  # what lies near 8 kHz is lost
    again = cli("live", "-m", "digits", "--from", talk, "--speed", 0, "--save", kept)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"asr: {kept}: the file exists already; use --overwrite, or name another\n"
    assert cli("live", "-m", "digits", "--from", talk, "--speed", 0, "--save", kept, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["-o", "talk"], ["talk.txt"]),
        (["-o", "talk.srt"], ["talk.srt"]),
        (["-o", "deep/talk.v2", "-f", "json,textgrid"], ["deep/talk.v2.TextGrid", "deep/talk.v2.json"]),
        (["-o", "deep/", "-f", "txt,json"], ["deep/live.json", "deep/live.txt"]),
    ],
)
def test_files_of_the_whole_session(
    cli: Cli, tmp_path: Path, twice: Path, options: list[str], names: list[str]
) -> None:
    assert cli("live", "-m", "digits", "--from", twice, "--speed", 0, *options).stdout == f"{SAID}\n" * 2
    twice.unlink()
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path)) for path in written] == names
    for path in written:
        if path.suffix == ".txt":
            assert path.read_text() == f"{SAID} {SAID}\n"
        if path.suffix == ".json":
            words = json.loads(path.read_text())["words"]
            assert [word["text"] for word in words] == f"{SAID} {SAID}".split()
            assert words[4]["start_s"] - words[0]["start_s"] == pytest.approx(6.0, abs=0.1)
    refused = cli("live", "-m", "digits", "--from", DIGITS, "--speed", 0, *options)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "talk.mp3"], "ends in .wav"),
        (["--format", "srt"], "-o NAME"),
        (["-o", "talk", "-f", "doc"], "known: txt"),
        (["--overwrite"], "no files are written"),
        (["--from", "talk.wav", "--save", "./talk.wav", "--overwrite"], "the file that is played"),
        (["--from", DIGITS, "--device", "1"], "a file instead"),
        (["--speed", "0"], "--from FILE"),
        (["-m", "digits", "--decoding", "lm_weight=1"], "--lm FILE"),
        (["--vad-level", "10"], "-96<=x<=0"),
    ],
)
def test_wrong_usage(cli: Cli, options: list[str], message: str) -> None:
    done = cli("live", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", "").split())


def test_wrong_inputs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    for options, message in (
        (["-m", "digits", "--from", "missing.wav"], "no such file"),
        (["-m", "digits", "--from", "text.wav"], "expected"),
        (["-m", "nothing", "--from", DIGITS], "expected a model file"),
        (["-m", "digits", "--from", DIGITS, "--save", "missing/talk.wav", "--lm", "nothing"], "nothing"),
    ):
        done = cli("live", "--quiet", *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert message in done.stderr


def test_what_was_heard_before_a_file_breaks_off(cli: Cli, tmp_path: Path, twice: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", *soundfile.read(twice))
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) * 3 // 4])
    done = cli("live", "-m", "digits", "--quiet", "--from", "cut.flac", "--speed", 0, "-o", "talk")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{SAID}\n")
    assert (tmp_path / "talk.txt").read_text().split() == done.stdout.split()
    assert "cut short" in done.stderr


def test_a_terminal(tmp_path: Path) -> None:
    """Finals with their times, the text so far, the level and the lag, all of it redrawn in place."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with start(tmp_path, "--from", DIGITS, "--speed", 4, stdout=slave, stderr=slave, env=environment):
        os.close(slave)
        drawn = b""
        with contextlib.suppress(OSError):  # that the other end is closed
            while some := os.read(master, 1 << 16):
                drawn += some
    os.close(master)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).replace("\r", "\n").splitlines()
    assert f"00:00.5  {SAID}" in lines
    assert "five seven" in lines
    assert any(re.fullmatch(r"00:0\d\.\d  ━{24}  -\d\d dB   lag \d\.\d s", line) for line in lines)


# --- Ctrl-C ---


def test_ctrl_c_ends_the_sentence(tmp_path: Path, twice: Path) -> None:
    options = ("--from", twice, "--save", "talk.wav", "-o", "talk.json")
    with start(tmp_path, *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{SAID}\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert (process.returncode, rest) == (0, "")
    assert json.loads((tmp_path / "talk.json").read_text())["text"] == SAID
    assert 5 < soundfile.info(tmp_path / "talk.wav").duration < 7


def test_ctrl_c_in_the_middle_of_a_sentence(tmp_path: Path) -> None:
    with start(tmp_path, "--from", DIGITS) as process:
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(1.8)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 0
    assert said.startswith("five")
    assert said.count("\n") == 1
    assert "zero" not in said


SLOW_END = """
import time
from asr.session import Session
finish = Session.finish
def slowly(session):
    time.sleep(20)
    yield from finish(session)
Session.finish = slowly
"""


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, twice: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_END)
    options = ("--from", twice, "-o", "talk", "--quiet")
    with start(tmp_path, *options, env=os.environ | {"PYTHONPATH": str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{SAID}\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate()
    assert (process.returncode, said, complaint) == (130, "", "asr: interrupted\n")
    assert (tmp_path / "talk.txt").read_text() == f"{SAID}\n"


# --- the recording ---


def test_a_killed_program_leaves_a_whole_recording(tmp_path: Path) -> None:
    with start(tmp_path, "--from", DIGITS, "--save", "talk.wav") as process:
        while not (tmp_path / "talk.wav").exists() or (tmp_path / "talk.wav").stat().st_size < 20_000:
            time.sleep(0.01)
        process.kill()
    kept, _ = soundfile.read(tmp_path / "talk.wav", dtype="float32")
    assert len(kept) >= 9_000
    assert np.abs(kept - audio.read(DIGITS)[: len(kept)]).max() < 1e-4


def test_a_full_disk_does_not_end_recognition(tmp_path: Path) -> None:
    def limit() -> None:  # to what a file may grow, which is an error alike
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-m", "asr", "live", "-m", "digits", "--quiet"]
    command += ["--from", str(DIGITS), "--speed", "0", "--save", "talk.wav"]
    done = subprocess.run(command, preexec_fn=limit, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, f"{SAID}\n")
    assert done.stderr.startswith(
        "asr: talk.wav: cannot be written any more: File too large; what was said up to 00:01."
    )
    assert done.stderr.count("\n") == 1
    assert soundfile.info(tmp_path / "talk.wav").duration == pytest.approx(1.5, abs=0.1)


def test_recording_where_there_is_none_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="check the folder"):
        Recording(tmp_path / "missing/talk.wav")
    with pytest.raises(OutputError, match="got a folder or device"):
        Recording(Path(os.devnull), overwrite=True)


# --- the gate ---


def test_speech_passes_the_gate(cli: Cli) -> None:
    assert cli("live", "-m", "digits", "--from", DIGITS, "--speed", 0, "--vad-level", -50).stdout == f"{SAID}\n"
    assert cli("live", "-m", "digits", "--from", DIGITS, "--speed", 0, "--vad-level", 0).stdout == ""


# --- a sound device that is not there ---


class FakeStream:
    """PortAudio's: what the test gives it, the callback is called with, always in the same memory."""

    active = False

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    close = stop

    def bring(self, samples: np.ndarray, overflow: bool = False) -> None:
        """Samples (n, channels), in blocks of the size that was asked for."""
        size = self.settings["blocksize"]
        block = np.empty((size, samples.shape[1]), np.float32)
        for at in range(0, len(samples) - size + 1, size):
            block[:] = samples[at : at + size]
            self.settings["callback"](block, size, None, SimpleNamespace(input_overflow=overflow))
        block[:] = np.nan


class FakeSoundDevice:
    """The module sounddevice of a computer with one microphone."""

    class PortAudioError(Exception):
        pass

    default = SimpleNamespace(device=[1, 0])
    rate = 48_000.0
    channels = 1
    refuse: Exception | None = None
    only_all_channels = False
    only_rates: tuple[int, ...] = ()

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        known = [
            {"index": 0, "name": "speaker", "max_input_channels": 0, "default_samplerate": 48_000.0},
            {
                "index": 1,
                "name": "microphone",
                "max_input_channels": self.channels,
                "default_samplerate": self.rate,
            },
        ]
        if kind is None:
            return known
        if device not in (None, 1, "micro"):
            raise ValueError(f"No input device matching {device!r}")
        return known[1]

    def InputStream(self, **settings: Any) -> FakeStream:  # noqa: N802 (as there)
        if self.refuse:
            raise self.refuse
        if self.only_all_channels and settings["channels"] != self.channels:
            raise self.PortAudioError("Invalid number of channels", -9998)
        if self.only_rates and settings["samplerate"] not in self.only_rates:
            raise self.PortAudioError("Error opening InputStream: Invalid sample rate", -9997)
        self.stream = FakeStream(**settings)
        return self.stream


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    fake = FakeSoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_a_microphone_of_another_rate_with_two_channels(
    device: FakeSoundDevice, recognizer: Recognizer, spoken: np.ndarray
) -> None:
    device.rate, device.channels, device.only_all_channels = 44_100.0, 2, True
    loud = audio.resample(spoken, SAMPLE_RATE, 44_100)
    with Microphone("micro") as source:
        assert device.stream.settings["channels"] == 2
        device.stream.bring(np.stack([loud, np.zeros_like(loud)], axis=1))
        source.stop()
        session = Session(recognizer, source.sample_rate)
        events = [event for events in listen(source, session) for event in events]
    assert [event.text for event in events if isinstance(event, Final)] == [SAID]
    assert session.transcript.duration_s == pytest.approx(source.time_s)
    assert not device.stream.active


def test_the_callback_only_copies(device: FakeSoundDevice) -> None:
    with Microphone() as source:
        device.stream.bring(np.full((48_000, 1), 0.5, np.float32), overflow=True)
        source.stop()
        pieces = list(source.pieces())  # the device's memory holds something else by now
    assert device.stream.settings["channels"] == 1
    assert sum(len(piece.samples) for piece in pieces) == 48_000
    assert all((piece.samples == 0.5).all() and piece.overflowed and not piece.lost for piece in pieces)


def test_overflows_are_told(device: FakeSoundDevice, recognizer: Recognizer, spoken: np.ndarray) -> None:
    device.rate = 16_000.0
    with Microphone() as source:
        device.stream.bring(spoken[:1600, None], overflow=True)
        device.stream.bring(spoken[1600:, None])
        source.stop()
        session = Session(recognizer, source.sample_rate)
        *_, last = listen(source, session)
    assert isinstance(last[-1], Trouble)
    assert last[-1].text.startswith("2 times the computer was too busy")
    assert session.overflows == 2


def test_a_full_queue_goes_on_with_what_is_new(device: FakeSoundDevice) -> None:
    with Microphone() as source:
        pieces = source.pieces()
        device.stream.bring(np.zeros((4_800, 1), np.float32))
        assert next(pieces).lost == 0
        ramp = np.arange(90 * 48_000, dtype=np.float32)[:, None]
        device.stream.bring(ramp)
        piece = next(pieces)
        assert piece.lost == 90 * 48_000  # a block from before, and all of these but the last
        assert piece.samples[-1] == ramp[-1]
        device.stream.bring(np.ones((2_400, 1), np.float32))
        after = next(pieces)
        assert (after.lost, after.samples[0]) == (0, 1)


def test_a_microphone_that_is_muted(device: FakeSoundDevice, recognizer: Recognizer) -> None:
    device.rate = 16_000.0
    with Microphone() as source:
        device.stream.bring(np.zeros((8 * SAMPLE_RATE, 1), np.float32))
        source.stop()
        events = [one for events in listen(source, Session(recognizer, SAMPLE_RATE)) for one in events]
    troubles = [event.text for event in events if isinstance(event, Trouble)]
    assert len(troubles) == 1
    assert "only zeros for 5 s; is it muted?" in troubles[0]


def test_an_unplugged_microphone(device: FakeSoundDevice, recognizer: Recognizer, spoken: np.ndarray) -> None:
    device.rate = 16_000.0
    session = Session(recognizer, SAMPLE_RATE)
    with Microphone() as source:
        device.stream.bring(spoken[:, None])
        device.stream.stop()
        with pytest.raises(AudioError, match="no more sound comes from it; is it plugged in"):
            list(listen(source, session))
    assert session.transcript.text == SAID  # nothing said is lost


def test_a_microphone_that_falls_silent(device: FakeSoundDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "_GONE_S", 0.1)
    with Microphone() as source:
        device.stream.bring(np.zeros((4_800, 1), np.float32))
        pieces = source.pieces()
        assert len(next(pieces).samples) + len(next(pieces).samples) == 4_800
        with pytest.raises(AudioError, match="microphone: no more sound"):
            next(pieces)


def test_channels_of_opposite_phase(device: FakeSoundDevice, recognizer: Recognizer, spoken: np.ndarray) -> None:
    device.rate, device.channels, device.only_all_channels = 16_000.0, 2, True
    with Microphone() as source:
        device.stream.bring(np.stack([spoken, -spoken], axis=1))
        source.stop()
        events = [event for events in listen(source, Session(recognizer, SAMPLE_RATE)) for event in events]
    assert [event.text for event in events if isinstance(event, Final)] == [SAID]


def test_a_microphone_that_refuses_its_own_default_rate(device: FakeSoundDevice) -> None:
    device.rate, device.only_rates = 192_000.0, (16_000, 32_000)
    with Microphone() as source:
        assert source.sample_rate == 16_000
        assert device.stream.settings["samplerate"] == 16_000
        assert device.stream.settings["blocksize"] == 800
    device.only_rates = (11_025,)
    with pytest.raises(AudioError, match=r"expected .* at one of 192000, 48000, .*, 8000 Hz, got one"):
        Microphone().__enter__()


def test_microphones_that_cannot_be_had(device: FakeSoundDevice) -> None:
    with pytest.raises(AudioError, match="device 7: expected one that records, got: No input device"):
        Microphone(7)
    device.refuse = device.PortAudioError("Error opening InputStream: Device unavailable", -9985)
    with pytest.raises(AudioError, match="microphone: expected a free device, got one that another program uses"):
        Microphone().__enter__()
    device.refuse = device.PortAudioError(
        "Error opening InputStream: Unanticipated host error", -9999, (0, 13, "denied")
    )
    with pytest.raises(AudioError, match=r"cannot be opened: .*host error; denied; .*must be allowed"):
        Microphone().__enter__()
    device.channels = 0
    with pytest.raises(AudioError, match="found no device that records; plug one in"):
        Microphone()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise OSError('PortAudio library not found')", "apt install libportaudio2"),
        ("raise ModuleNotFoundError(name='sounddevice')", "pip install '.[live]'"),
        (
            "from types import SimpleNamespace\ndefault = SimpleNamespace(device=[-1, -1])\ndef query_devices(): return []",
            "plug one in",
        ),
    ],
)
def test_without_sound(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, message: str) -> None:
    (tmp_path / "sounddevice.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for options in ([], ["--list-devices"]):
        done = cli("live", *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("asr: ")
        assert message in done.stderr


# --- a real sound path: PulseAudio plays into a device whose other end PortAudio listens to, through ALSA ---


@pytest.fixture
def sound() -> Iterator[dict[str, str]]:
    """A sound server of our own; yields the environment in which it is the system's."""
    plugin = any(Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so"))
    if not (shutil.which("pulseaudio") and shutil.which("paplay") and ctypes.util.find_library("portaudio") and plugin):
        pytest.skip("needs apt install pulseaudio pulseaudio-utils libportaudio2 libasound2-plugins")
    with tempfile.TemporaryDirectory() as folder:  # in a path short enough for a socket
        Path(folder, ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        environment = os.environ | {
            "HOME": folder,
            "XDG_RUNTIME_DIR": folder,
            "PULSE_SERVER": f"unix:{folder}/socket",
            "PULSE_SOURCE": "room.monitor",
        }
        modules = ("module-null-sink sink_name=room", f"module-native-protocol-unix socket={folder}/socket")
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *(f"--load={one}" for one in modules)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                for _ in range(100):
                    if Path(folder, "socket").exists():
                        break
                    time.sleep(0.1)
                else:
                    server.kill()
                    pytest.fail(f"pulseaudio did not start: {server.stderr and server.stderr.read()}")
                yield environment
            finally:
                server.terminate()


def test_speech_through_a_sound_device(tmp_path: Path, sound: dict[str, str]) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "asr", "live", "--list-devices"], env=sound, capture_output=True, text=True, check=True
    )
    assert re.search(r"^ +\d+  default, \d+ Hz, \d+ channels, the default$", listed.stdout, re.MULTILINE)
    with start(tmp_path, "--save", "talk.wav", "-o", "talk.json", env=sound) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().startswith("listening to default, ")
        while not (tmp_path / "talk.wav").exists() or (tmp_path / "talk.wav").stat().st_size < 10_000:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        subprocess.run(["paplay", "--device=room", str(DIGITS)], env=sound, check=True)
        assert process.stdout.readline() == f"{SAID}\n"  # the pause after it ends the sentence
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    assert (process.returncode, rest) == (0, "")
    words = json.loads((tmp_path / "talk.json").read_text())["words"]
    assert [word["text"] for word in words] == SAID.split()
    expected = [word.start_s for word in Recognizer("digits").transcribe(DIGITS).words]
    assert np.diff([word["start_s"] for word in words]) == pytest.approx(np.diff(expected), abs=0.1)
    assert Recognizer("digits").transcribe(tmp_path / "talk.wav").text == SAID


def test_a_sound_device_that_goes_away(tmp_path: Path, sound: dict[str, str]) -> None:
    with start(tmp_path, "-o", "talk.txt", env=sound) as process:
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(0.5)
        subprocess.run(["pactl", "exit"], env=sound, check=True)
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 1
    assert complaints.splitlines()[-1].startswith("asr: default: no more sound comes from it")
    assert (tmp_path / "talk.txt").read_text() == "\n"
