"""Labels by a teacher; the teacher of these tests knows a clip by the height of its tone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
from ctranslate2.specs import whisper_spec

from asr.audio import SAMPLE_RATE as RATE
from asr.corpus import label
from asr.corpus.label import Clip, Labels, Word
from asr.errors import CorpusError
from asr.manifest import Skipped, Utterance

TEXTS = {300: "Hello, new world.", 500: "Good morning to you", 700: "It is a quarter past nine"}


def tone(hertz: int, seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def clip(hertz: int, seconds: float = 2.0, name: str = "") -> Clip:
    return Clip(Path(name or f"{hertz}.wav"), 0.0, tone(hertz, seconds))


class Teacher:
    """Hears each stretch of tone as its text, word by word; how surely, and what else, can be set for each try of it."""

    def __init__(
        self, sure: dict[int, Sequence[float]] | None = None, texts: dict[int, Sequence[str]] | None = None
    ) -> None:
        self.sure, self.texts = sure or {}, texts or {}
        self.windows: list[list[int]] = []  # the tones heard in each

    def __call__(self, window: np.ndarray) -> list[Word]:
        assert window.dtype == np.float32
        assert len(window) <= label.WINDOW_S * RATE
        hop = RATE // 20
        frames = window[: len(window) // hop * hop].reshape(-1, hop)
        loud = np.concatenate([[False], np.abs(frames).max(axis=1) > 0.05, [False]])
        edges = np.flatnonzero(np.diff(loud.astype(int)))
        words, heard = [], []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            stretch = window[start * hop : end * hop]
            hertz = round(int(np.abs(np.fft.rfft(stretch)).argmax()) * RATE / len(stretch) / 100) * 100
            tries = sum(hertz in each for each in self.windows)
            text = self.texts.get(hertz, [TEXTS.get(hertz, "")])[-1 if tries else 0].split()
            heard.append(hertz)
            step = (end - start) / 20 / max(1, len(text))
            for n, word in enumerate(text):
                at = start / 20 + n * step
                words.append(Word(f" {word}", at, at + step, self.sure.get(hertz, [0.95])[-1 if tries else 0]))
        self.windows.append(heard)
        return words


def labelled(clips: Sequence[Clip], teacher: Teacher) -> dict[str, tuple[str, str]]:
    return {each.audio.stem: (text, reason) for each, text, reason in label.label(clips, teacher)}


def test_clips_share_a_window_and_each_gets_its_words() -> None:
    teacher = Teacher()
    found = labelled([clip(300), clip(500), clip(700)], teacher)
    assert found == {str(hertz): (text, "") for hertz, text in TEXTS.items()}
    assert teacher.windows == [[300, 500, 700]]


def test_windows_are_as_full_as_they_can_be() -> None:
    teacher = Teacher(texts={300: ["one or two or three words"]})
    list(label.label([clip(300, 6.5, f"{n}.wav") for n in range(9)], teacher))  # 4 of 6.5 s and 3 pauses: 29 s
    assert [len(heard) for heard in teacher.windows[:3]] == [4, 4, 1]


def test_quiet_clips_are_heard_beside_loud_ones() -> None:
    quiet = Clip(Path("quiet.wav"), 0.0, tone(500, 2.0, 1e-4))
    assert labelled([clip(300), quiet], Teacher())["quiet"] == (TEXTS[500], "")


@pytest.mark.parametrize(
    ("sure", "second", "kept"),
    [
        ([0.5, 0.95], "Good evening to you", "Good evening to you"),  # sure at the second try
        ([0.5, 0.5], "good Morning, to you!", "good Morning, to you!"),  # heard alike
        ([0.5, 0.5], "Good evening to you", ""),
    ],
)
def test_an_unsure_clip_is_tried_again(sure: list[float], second: str, kept: str) -> None:
    teacher = Teacher({500: sure}, {500: [TEXTS[500], second]})
    text, reason = labelled([clip(300), clip(500)], teacher)["500"]
    assert text == kept
    assert teacher.windows == [[300, 500], [500]]
    unsure = "unsure: -0.69 a word, expected -0.3; 'Good morning to you', then 'Good evening to you'"
    assert reason == ("" if kept else unsure)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing was heard"),
        ("...", "nothing was heard"),
        ("no no " * 30, "goes round in circles: 'no no no"),
        ("it", "2 letters in 2.0 s, expected 3 to 30 a second: 'it'"),
        ("abcdefghijklm nopqrstuvwxyz " * 3, "78 letters in 2.0 s"),
    ],
)
def test_what_cannot_be_its_text_is_dropped_however_sure(text: str, reason: str) -> None:
    found = labelled([clip(500)], Teacher(texts={500: [text]}))
    assert found["500"][0] == ""
    assert found["500"][1].startswith(reason)


def test_a_word_across_two_clips_is_no_text() -> None:
    def teacher(_: np.ndarray) -> list[Word]:
        return [
            Word(" hello there", 0.2, 1.8, 0.9),
            Word(" again", 1.8, 4.4, 0.9),
            Word(" friend of mine", 4.4, 5, 0.9),
        ]

    first, second = (heard.fault for heard in label.hear([clip(300), clip(500)], teacher))
    assert first == ""
    assert second == "a word reaches beyond the clip: 'again friend of mine'"


def test_too_short_and_silent_clips_are_not_heard() -> None:
    teacher = Teacher()
    found = labelled([clip(300, 0.2), Clip(Path("zeros.wav"), 0.0, np.zeros(RATE, np.float32))], teacher)
    assert found == {
        "300": ("", "0.20 s, expected at least 0.3 s"),
        "zeros": ("", "silent: all samples are 0"),
    }
    assert teacher.windows == []


def test_a_long_recording_is_cut_where_it_is_quietest(tmp_path: Path) -> None:
    silence = np.zeros(RATE // 2, np.float32)
    parts = [tone(300, 3.0), silence, tone(300, 9.5), silence, tone(500, 18.5)]
    soundfile.write(tmp_path / "talk.wav", np.concatenate(parts), RATE)
    found = list(label.clips(tmp_path / "talk.wav", "me"))
    assert [round(each.offset_s, 1) for each in found] == pytest.approx([0.0, 13.2], abs=0.2)
    assert sum(each.duration_s for each in found) == pytest.approx(32.0)
    assert found[1].offset_s == found[0].duration_s
    assert {each.speaker for each in found} == {"me"}


def test_a_short_recording_is_one_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(300, 20.0), RATE)
    (only,) = label.clips(tmp_path / "a.wav")
    assert (only.offset_s, only.duration_s) == (0.0, 20.0)


@pytest.fixture
def recordings(tmp_path: Path) -> dict[Path, str | None]:
    for hertz in TEXTS:
        soundfile.write(tmp_path / f"{hertz}.wav", tone(hertz, 2.0), RATE)
    (tmp_path / "400.wav").write_bytes(b"no sound")
    return {tmp_path / f"{hertz}.wav": "anna" for hertz in (300, 400, 500, 700)}


def test_a_run_that_was_stopped_goes_on(recordings: dict[Path, str | None], tmp_path: Path) -> None:
    made = {"teacher": "t", "sure": -0.3}
    first, *_ = recordings
    labels = Labels(tmp_path / "begun", made)
    label.run({first: "anna"}, Teacher(), labels)
    labels.close()
    with (tmp_path / "begun").open("a") as file:
        file.write('{"audio": "cut o')  # by a power cut

    teacher = Teacher()
    heard_s: list[float] = []
    labels = Labels(tmp_path / "begun", made)
    assert len(labels) == 1
    label.run(recordings, teacher, labels, progress=heard_s.append)
    assert teacher.windows == [[500, 700]]
    assert sum(heard_s) == pytest.approx(6.0)
    done = labels.done(recordings)
    assert [one.id for one in done] == ["300", "400", "500", "700"]
    assert done[0] == Utterance(first, 2.0, TEXTS[300], 0.0, "anna")
    assert isinstance(done[1], Skipped)
    assert "400.wav" in done[1].reason
    labels.close()

    again = Labels(tmp_path / "begun", made)
    assert again.done(recordings) == done
    again.close()


def test_labels_of_another_run_are_refused(tmp_path: Path) -> None:
    Labels(tmp_path / "begun", {"teacher": "base", "sure": -0.3}).close()
    with pytest.raises(CorpusError, match="begun: labels of a run with teacher base; --overwrite begins anew"):
        Labels(tmp_path / "begun", {"teacher": "small", "sure": -0.3})
    (tmp_path / "begun").write_text("no json\n")
    with pytest.raises(CorpusError, match="expected the labels of a run that was stopped"):
        Labels(tmp_path / "begun", {"teacher": "small", "sure": -0.3})


def test_a_folder_that_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    message = "config.json, tokenizer.json, vocabulary.txt or .json are not there; name another"
    with pytest.raises(CorpusError, match=message):
        label.whisper(tmp_path)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small English Whisper model of 28 tokens with random weights, as CTranslate2 itself writes one."""
    folder, width, rng = tmp_path_factory.mktemp("whisper"), 64, np.random.default_rng(0)
    words = [f" {letter}" for letter in "abcdefghijklmnopqrs"]
    special = ["endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev"]
    vocabulary = words + [f"<|{name}|>" for name in (*special, "nospeech", "notimestamps")]
    spec = whisper_spec.WhisperSpec(1, 1, 1, 1)

    def of(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = 1 + of(width), of(width)

    def linear(layer: Any, inputs: int, outputs: int) -> None:
        layer.weight, layer.bias = of(outputs, inputs), of(outputs)

    def attention(layer: Any, *outputs: int) -> None:
        norm(layer.layer_norm)
        for one, size in zip(layer.linear, outputs, strict=True):
            linear(one, width, size)

    for layer in (*spec.encoder.layer, *spec.decoder.layer):
        attention(layer.self_attention, 3 * width, width)
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, width, 4 * width)
        linear(layer.ffn.linear_1, 4 * width, width)
    attention(spec.decoder.layer[0].attention, width, 2 * width, width)
    for convolution, inputs in ((spec.encoder.conv1, 80), (spec.encoder.conv2, width)):
        convolution.weight, convolution.bias = of(width, inputs, 3), of(width)
    spec.encoder.position_encodings.encodings = of(1500, width)
    spec.decoder.position_encodings.encodings = of(448, width)
    spec.decoder.embeddings.weight = of(len(vocabulary), width)
    linear(spec.decoder.projection, width, len(vocabulary))
    norm(spec.encoder.layer_norm)
    norm(spec.decoder.layer_norm)
    spec.config.suppress_ids = spec.config.suppress_ids_begin = []
    spec.config.lang_ids, spec.config.alignment_heads = [vocabulary.index("<|en|>")], [(0, 0)]
    spec.register_vocabulary(vocabulary)
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    numbered = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbered, unk_token="<|nospeech|>"))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(vocabulary[len(words) :])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_whisper_model_is_a_teacher(whisper: Path) -> None:
    teacher = label.whisper(whisper)
    noise = np.random.default_rng(1).normal(0, 0.1, 3 * RATE).astype(np.float32)
    words = teacher(noise)
    assert len(words) > 2
    assert all(word.text.startswith(" ") and 0 < word.probability < 1 for word in words)
    times = [time for word in words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 3.1
    assert teacher(noise) == words
    with pytest.raises(CorpusError, match="expected a language that this model knows, got 'pt': "):
        label.whisper(whisper, "pt")


def test_a_damaged_teacher(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CorpusError, match="expected a Whisper model for faster-whisper, got: "):
        label.whisper(tmp_path)
