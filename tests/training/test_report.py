"""The page about a training: what it holds, that it holds it itself, and that no text in it becomes markup."""

import base64
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Run
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation
from rich.console import Console

from asr.errors import TrainingError
from asr.manifest import ManifestError, Utterance, write
from asr.metrics import Scored
from asr.tokens import BLANK_SYMBOL, Span, Tokens
from asr.training import checkpoint, config, loop, plots
from asr.training.report import page as report_page
from asr.training.report import pictures
from asr.training.report.page import build
from asr.transcript import words_of

Command = Callable[..., str]
HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
TEXTS = ["ab", "c", "<script>", "cab abc b", "a b c", "bca", "aa", "cc", "b a", "abc", "c c", "b"]


@dataclass
class Page(HTMLParser):
    """What a browser sees: elements with their attributes, and the text outside scripts and styles."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    text: str = ""
    raw: dict[str, list[str]] = field(default_factory=lambda: {"script": [], "style": []})

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.raw[self.cdata_elem].append(data)
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    for tag in ("html", "body", "h2", "h3", "div", "article", "table", "svg", "g", "text", "span", "pre", "details"):
        assert len(page.all(tag)) == page.closed.count(tag), tag
    page.text = " ".join(page.text.split())
    return page


def headings(page_html: str) -> list[str]:
    return re.findall(r"<h3>\d+\. (.*?)</h3>", page_html)


def decoded(uri: str | None, kind: str) -> bytes:
    assert uri is not None
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data)


def tones(text: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(2000) / 16000
    parts = [0.3 * np.sin(2 * np.pi * (300 + 67 * (ord(letter) % 40)) * t) for letter in text]
    waveform = np.concatenate([np.zeros(1600), *parts, np.zeros(1600)])
    return waveform + rng.normal(0, 0.003, len(waveform))


def make_set(folder: Path, name: str) -> Path:
    """A dev set of one speaker each two utterances, the first of them with a name that is markup."""
    utterances = []
    for number, text in enumerate(TEXTS):
        path = folder / name / f"u{number:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        waveform = tones(text, number)
        soundfile.write(path, waveform, 16000)
        speaker = HOSTILE if number < 2 else f"s{number // 2}"
        utterances.append(Utterance(path, len(waveform) / 16000, text, 0.0, speaker))
    write(folder / f"{name}.jsonl", utterances)
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    tree = {
        "name": "tiny",
        "description": HOSTILE,
        "epochs": 3,
        "data": {
            "train": [str(make_set(folder, "train"))],
            "dev": str(make_set(folder, "dev")),
            "normaliser": "none",
            "alphabet": " abc<>sript",
        },
        "features": {"n_mels": 20},
        "network": {"cell": "gru", "layers": 1, "hidden": 8, "subsampling": 2, "conv_channels": 2},
        "batch": {"max_utterances": 4},
        "optimiser": {"lr": 0.01},
    }
    run = folder / "run"
    assert loop.train(config.parse(tree, "test"), run, device="cpu", threads=1, console=Console(quiet=True)).finished
    return run


@pytest.fixture(scope="module")
def html(finished: Path) -> str:
    return of(finished)


def of(run: Path, **options: object) -> str:
    return build(run, **{"device": "cpu", "console": Console(quiet=True)} | options)  # type: ignore[arg-type]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, str], str]], None]:
    """Lets the model recognise what a function makes of each utterance's number and reference."""

    def patch(hypothesis: Callable[[int, str], str]) -> None:
        def recognise(known: object, utterances: list[Utterance], *_: object) -> list[tuple[Utterance, Scored]]:
            return [
                (one, Scored(one.id, one.text, hypothesis(number, one.text), one.speaker, one.duration_s))
                for number, one in enumerate(utterances)
            ]

        monkeypatch.setattr(report_page, "_recognise", recognise)

    return patch


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the worst utterances: drawing takes most of a page's time."""
    monkeypatch.setattr(pictures, "posteriors", lambda *_: "")


def move_dev(run: Path, manifest: Path) -> None:
    """Another dev set for a trained run."""
    tensors, state = checkpoint.load(run / "model.safetensors")
    state["config"]["data"]["dev"] = str(manifest)
    checkpoint.save(run / "model.safetensors", tensors, {key: value for key, value in state.items() if key != "schema"})


# --- the page itself ---


def test_the_page_loads_nothing_and_allows_nothing(html: str) -> None:
    page = parse(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        for name, value in attributes.items():
            assert not name.startswith(("on", "style")), f"{tag} {name}"
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value is not None
                assert value.startswith(("data:", "#")), value[:80]
    assert "url(http" not in html
    assert "@import" not in html
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        assert len(page.raw[tag]) == 1
        digest = base64.b64encode(hashlib.sha256(page.raw[tag][0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_texts_of_the_corpus_are_never_markup(html: str) -> None:
    page = parse(html)
    assert HOSTILE in page.text  # the speaker's name, and the run's description
    assert HOSTILE not in html
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert "<b>&lt;SCRIPT&gt;</b>" in html or "<b>&lt;script&gt;</b>" in html


def test_half_a_surrogate_pair_does_not_break_the_page() -> None:
    names = ("facts", "settings", "curves", "gradients", "errors", "dev_report", "failed")
    filling: dict[str, Any] = {name: {} for name in names}
    assert "<h1>a?&lt;</h1>" in report_page.render(name="a\ud83d<", notes=[], **filling)


def test_pictures_and_sound_can_be_decoded(html: str) -> None:
    page = parse(html)
    shown = headings(html)
    assert 0 < len(shown) <= report_page.WORST
    assert len(page.all("audio")) == len(shown)
    for audio, number in zip(page.all("audio"), shown, strict=True):
        data = decoded(audio["src"], "audio/mpeg")
        samples, rate = soundfile.read(io.BytesIO(data))
        assert rate == 16000
        assert len(samples) == len(tones(TEXTS[int(number[1:])], 0))
        assert np.abs(samples).max() > 0.1
    pictures = page.all("image")
    assert len(pictures) >= 2 * len(shown) + 1
    for picture in pictures:
        assert imread(io.BytesIO(decoded(picture["xlink:href"], "image/png"))).ndim == 3
    titles = [svg["aria-label"] for svg in page.all("svg")]
    assert titles[:7] == [
        "CTC loss",
        "Errors on dev, greedy",
        "Learning rate",
        "Gradient norm, before clipping",
        "Gradient norm by layer",
        "WER by length",
        "WER by speaker: 6 speakers",
    ]
    assert "mathdefault" not in html


def test_figures_are_those_of_the_training(html: str, finished: Path) -> None:
    figures = json.loads((finished / "dev_report.json").read_text())
    text = parse(html).text
    assert f"WER, greedy{report_page._percent(figures['wer'])} (95 % interval" in text
    assert f"CER, greedy{report_page._percent(figures['cer'])} (95 % interval" in text
    assert f"{figures['utterances']} utterances, 0.00 hours" in text
    assert "epochs3 of at most 3" in text
    assert "not finished" not in text


def test_the_ten_worst_are_the_worst(
    finished: Path, heard: Callable[[Callable[[int, str], str]], None], no_pictures: None
) -> None:
    order = [3, 11, 0, 7, 5, 1, 10, 2, 9, 4, 8, 6]  # of these the errors rise
    heard(lambda number, text: text + " c" * order.index(number))
    html = of(finished)
    assert headings(html) == [f"u{number:02d}" for number in order[::-1][:10]]
    assert parse(html).text.count("(errors 11,") == 1
    assert html.count("<i>I</i>") == sum(range(2, 12))


def test_a_run_without_errors(finished: Path, heard: Callable[[Callable[[int, str], str]], None]) -> None:
    heard(lambda number, text: text)
    html = of(finished)
    assert "None: every utterance is right." in html
    assert not parse(html).all("audio")
    assert "Confusions" not in html


def test_confusions_of_words_and_characters(
    finished: Path, heard: Callable[[Callable[[int, str], str]], None], no_pictures: None
) -> None:
    heard(lambda number, text: {3: "cb abc b", 8: "b"}.get(number, text))
    html = of(finished)
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert captions == ["Words substituted: 1", "Words deleted: 1", "Characters deleted: 3"]
    for row in ("cab → cb<td>1", "a<td>1", "a<td>2", "␣<td>1"):
        assert f"<tr><td>{row}<tr>" in html.replace("</table>", "<tr>").replace("</tbody>", "")


def test_long_utterances_are_cut(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "_SHOWN_S", 0.25)
    html = of(finished)
    assert html.count("Sound and pictures are of the first 0 s.") == len(headings(html))
    for audio in parse(html).all("audio"):
        assert len(soundfile.read(io.BytesIO(decoded(audio["src"], "audio/mpeg")))[0]) == 4000


def test_words_begin_where_their_first_token_does() -> None:
    axes = Figure().subplots()
    tokens = Tokens([BLANK_SYMBOL, *" abc", "ab", " ab", " c"])
    token_ids = map(tokens.symbols.index, [" ab", "c", " ", "b", "a", " c"])
    spans = [Span(2 * number, 2 * number + 1, 1.0) for number in range(6)]
    pictures.show_words(axes, words_of(zip(token_ids, spans, strict=True), tokens, 0.5), 5.5)
    shown = [(text.get_text(), text.xy[0]) for text in axes.texts if isinstance(text, Annotation)]
    assert shown == [("abc", 0.0), ("ba", 3.0), ("c", 5.0)]


# --- what is not there ---


def test_a_training_that_goes_on(copy: Path, no_pictures: None) -> None:
    (copy / "model.safetensors").unlink()
    rows = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    for row in rows:
        if "dev_cer" in row:
            row["dev_cer"] = [0.5, 0.2, 0.3][row["epoch"]]
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12, "epo')
    html = of(copy)
    assert "This training is not finished: 3 of 3 epochs are in it." in html
    assert "<th>weights of this page<td>best epoch so far, 2<" in html
    assert "<th>best epoch on dev<td>2: WER" in html
    (copy / "epoch-0002.safetensors").unlink()
    assert "<th>weights of this page<td>best epoch so far, 3<" in of(copy)


def test_audio_that_is_gone_is_named(copy: Path, tmp_path: Path, no_pictures: None) -> None:
    manifest = make_set(tmp_path, "moved")
    (tmp_path / "moved" / "u03.wav").unlink()
    move_dev(copy, manifest)
    said = io.StringIO()
    html = of(copy, console=Console(file=said, width=1000))
    for text in (parse(html).text, said.getvalue()):
        assert "1 of 12 utterances" in text
        assert "cannot be read and are not in the figures. The first, u03:" in text
    assert "Utterances that cannot be read" in html
    assert "u03" not in headings(html)
    assert parse(html).all("audio")


@pytest.mark.parametrize("gone", ["audio", "manifest"])
def test_a_run_whose_dev_set_is_gone(copy: Path, tmp_path: Path, gone: str) -> None:
    manifest = make_set(tmp_path, "moved")
    shutil.rmtree(tmp_path / "moved")
    if gone == "manifest":
        manifest.unlink()
    move_dev(copy, manifest)
    html = of(copy)
    page = parse(html)
    assert "Without the dev set's audio there are no players, spectrograms and posteriors" in page.text
    assert "CTC loss" in html
    assert "Worst utterances" in page.text  # as the training's own report has it
    assert not page.all("audio")
    if gone == "audio":
        with pytest.raises(TrainingError, match=r"12 of 12 utterances of .*moved\.jsonl cannot be read"):
            of(copy, manifest=manifest)
    else:
        with pytest.raises(ManifestError, match=r"moved\.jsonl: no such manifest"):
            of(copy, manifest=manifest)


def test_another_set(finished: Path, tmp_path: Path, no_pictures: None) -> None:
    manifest = make_set(tmp_path, "other")
    lines = manifest.read_text().splitlines()[:3]
    rows = [{key: value for key, value in json.loads(line).items() if key != "speaker"} for line in lines]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    html = of(finished, manifest=manifest)
    assert f"{manifest}: 3 utterances" in html
    assert "The manifest names no speakers." in html


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: shutil.rmtree(run), "expected a run folder, as asr train makes one, got nothing of that name"),
        (lambda run: [file.unlink() for file in run.glob("*.*")], r"expected a training's log\.jsonl in it, got none"),
        (lambda run: (run / "log.jsonl").unlink(), r"expected a training's log\.jsonl in it, got none"),
        (lambda run: (run / "log.jsonl").write_text("no\n"), r"log\.jsonl: expected one JSON object a line"),
        (lambda run: (run / "log.jsonl").write_text("3\n"), r"log\.jsonl: expected one JSON object a line"),
        (lambda run: (run / "log.jsonl").write_text(""), "expected a log and weights of at least one epoch, got none"),
        (lambda run: [file.unlink() for file in run.glob("[em]*.safetensors")], "weights of at least one epoch"),
    ],
)
def test_runs_that_there_is_nothing_to_say_of(copy: Path, make: Callable[[Path], object], message: str) -> None:
    make(copy)
    with pytest.raises(TrainingError, match=message):
        of(copy)


def test_wrong_device_and_wrong_kind_of_run(finished: Path) -> None:
    with pytest.raises(TrainingError, match="expected --device auto, cpu or cuda, got 'gpu'"):
        of(finished, device="gpu")
    with pytest.raises(TrainingError, match="expected a run folder, as asr train makes one, got a file"):
        of(finished / "log.jsonl")


# --- the command ---


@pytest.fixture
def command(asr: Run) -> Command:
    """The command in this process: what it says on stderr."""

    def run(*arguments: object, code: int = 1) -> str:
        done = asr(*arguments)
        assert (done.status, done.text) == (code, "")
        return done.complaint

    return run


def test_the_command_writes_the_page(finished: Path, tmp_path: Path, command: Command, no_pictures: None) -> None:
    page = tmp_path / "pages" / "report.html"
    for overwrite in ([], ["--overwrite"]):
        said = command("report", finished, "-o", page, "--device", "cpu", "--threads", 1, *overwrite, code=0)
        assert said.splitlines()[-1].endswith("MB; open it in a browser")
        assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        page.write_text("old")
    assert not list(tmp_path.rglob("*.part"))


def test_outputs_are_refused_before_the_work(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "build", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "old.html").write_text("mine")
    assert "the file exists already; use --overwrite" in command("report", finished, "-o", tmp_path / "old.html")
    assert "expected the name of a file" in command("report", finished, "-o", tmp_path, "--overwrite")
    assert "expected a folder to write to" in command("report", finished, "-o", tmp_path / "old.html" / "page.html")
    assert (tmp_path / "old.html").read_text() == "mine"


def test_without_librosa_it_is_said_how_to_get_it(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    for name in ("", ".page", ".pictures"):
        monkeypatch.delitem(sys.modules, f"asr.training.report{name}")
    said = command("report", finished, "-o", tmp_path / "page.html")
    assert "this command needs librosa, which is not installed" in said
    assert "pip install '.[plots]'" in said


def test_layers_and_bars_are_named_apart() -> None:
    layers = ["conv.0", "conv.2", "layers.0", "layers.0.directions.0", "layers.0.directions.1", "output.0", "output.1"]
    assert plots.layer_names(layers) == [
        "convolution 1",
        "convolution 2",
        "layer 1, norm and projection",
        "layer 1, forward",
        "layer 1, backward",
        "output, norm",
        "output",
    ]
    assert pictures.short_names(["a long speaker 1", "a long speaker 2", "me"], 10) == [
        "1: a long…",
        "2: a long…",
        "me",
    ]
