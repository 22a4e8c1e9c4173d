"""What a report's page shows and plays: figures as SVG in the page's own colours, and sound, both as parts of the page."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import librosa
import matplotlib
import numpy as np
import soundfile
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from asr.audio import SAMPLE_RATE
from asr.decoding import ctc
from asr.decoding.align import align
from asr.errors import DecodingError, TokenError
from asr.tokens import BLANK, Tokens
from asr.training import plots
from asr.transcript import Word, words_of

_INCHES_A_SECOND = 1.6  # enough for the words of fast speech side by side
_ROWS = 40  # tokens in a picture of posteriors
_SEEN = 0.1  # the posterior from which a token is worth a row
_INK = "#010203"  # drawn in this, replaced by the page's own colour of text, light or dark
_BLUE, _ORANGE = "#2b83ba", "#d55e00"  # told apart by the colour-blind, and visible on white and on black
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right", "text.parse_math"), False),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.titlesize": "medium", "grid.color": _INK, "grid.alpha": 0.15},
    **{"axes.prop_cycle": cycler(color=[_BLUE, _ORANGE]), "lines.markersize": 2.5},
    **{"image.interpolation": "none", "svg.fonttype": "none", "svg.hashsalt": "asr"},
}


def in_our_style() -> AbstractContextManager[None]:
    """The style that all pictures are to be drawn in, for a with block."""
    return matplotlib.rc_context(_STYLE)


def curves(epochs: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Losses, errors and the learning rate, of a log's rows."""
    drawn = _axes(), _axes(), _axes()
    plots.draw_curves(*drawn, steps, epochs)
    return list(map(_draw, drawn))


def gradients(steps: Sequence[Mapping[str, Any]], clip: float) -> list[Markup]:
    """The gradient's norm, and that of each layer; nothing where the log has none. clip: its largest norm."""
    layers = plots.layers_of(steps)
    drawn = _axes(), _axes(height=1.2 + 0.2 * len(layers))
    plots.draw_gradients(*drawn, steps, clip)
    return list(map(_draw, drawn)) if layers else []


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Names shortened to so many characters; those that would be the same are numbered instead."""
    short = [name if len(name) <= width else name[: width - 1] + "…" for name in names]
    return [
        name if short.count(name) == 1 else f"{number}: {name[: width - 4]}…"
        for number, name in enumerate(short, start=1)
    ]


def rates_by_length(spans_s: Sequence[tuple[float, float]], rates: Sequence[float]) -> Markup:
    """A bar for each group of utterances: its word error rate, above its shortest and longest duration in s."""
    axes, names = _axes(), list[str]()
    for digits in (1, 2, 3):  # as many as tell the bars apart
        if len(set(names)) < len(spans_s):
            names = [f"{low:.{digits}f}–{high:.{digits}f}" for low, high in spans_s]
    _bars(axes, rates)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
    axes.set(xlabel="length in s; as many utterances in each bar", ylabel="%", title="WER by length")
    return _draw(axes)


def rates_by_speaker(names: Sequence[str], rates: Sequence[float]) -> Markup:
    axes = _axes()
    _bars(axes, rates)
    labels = short_names(names, 10) if len(names) <= 30 else []
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
    axes.set(xlabel="speaker, worst first", ylabel="%", title=f"WER by speaker: {len(names)} speakers")
    return _draw(axes)


def posteriors(
    waveform: np.ndarray, log_probs: np.ndarray, tokens: Tokens, text: str, frame_shift: int, title: str
) -> Markup:
    """Spectrogram and posteriors of a waveform (N,), with the tokens of its text in them.

    log_probs: (T, V), perhaps of more than the waveform; frame_shift: samples.
    """
    symbols = [whole(symbol) for symbol in tokens.symbols]
    shift_s, seconds = frame_shift / SAMPLE_RATE, len(waveform) / SAMPLE_RATE
    hypothesis = ctc.greedy(log_probs).token_ids
    try:
        reference = tokens.encode(text)
        expected = align(log_probs, reference)
    except (DecodingError, TokenError):  # a text too long for its audio, or of other letters, has no place in it
        reference, expected = [], []
    believed = np.exp(log_probs[: math.ceil(seconds / shift_s)]).T  # (V, T)
    peaks = believed.max(axis=1)
    peaks[[BLANK, *reference]] += 1  # these before all others
    rows = sorted(np.argsort(-peaks)[: min(_ROWS, np.count_nonzero(peaks >= _SEEN))].tolist())

    figure = Figure((max(6.0, 1.2 + _INCHES_A_SECOND * seconds), 2.4 + 0.15 * len(rows)), layout="constrained")
    sound, picture = figure.subplots(2, height_ratios=[1.6, 0.5 + 0.15 * len(rows)], sharex=True)
    _spectrogram(sound, waveform)
    picture.imshow(
        believed[rows], aspect="auto", cmap="viridis", vmin=0, vmax=1,
        extent=(0, believed.shape[1] * shift_s, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    picture.set_yticks(range(len(rows)), [symbols[row].replace(" ", "␣") for row in rows], fontsize=8)
    rings = [
        ((span.start + span.end) / 2 * shift_s, rows.index(token_id))
        for span, token_id in zip(expected, reference, strict=True)
        if token_id in rows and span.end * shift_s <= seconds
    ]
    if rings:
        picture.plot(*zip(*rings, strict=True), "o", ms=5, mfc="none", mec="white", mew=0.8)
    picture.set(ylabel="token", xlim=(0, seconds))
    picture.set_xlabel("time in s", loc="left")  # in sight also of a picture that is wider than the screen
    picture.xaxis.set_major_locator(MultipleLocator(1 if seconds > 3 else 0.2))
    show_words(sound, words_of(zip(reference, expected, strict=True), tokens, shift_s), seconds)
    spans = align(log_probs, hypothesis)
    show_words(picture, words_of(zip(hypothesis, spans, strict=True), tokens, shift_s), seconds)
    for axes in (sound, picture):
        axes.grid(visible=False)
    return _svg(figure, title)


def _spectrogram(axes: Any, waveform: np.ndarray) -> None:
    power = librosa.feature.melspectrogram(
        y=np.pad(waveform, (0, max(0, 512 - len(waveform)))), sr=SAMPLE_RATE, n_fft=512, hop_length=160, n_mels=80
    )
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
    extent = (0, len(waveform) / SAMPLE_RATE, -0.5, 79.5)
    axes.imshow(decibels, origin="lower", aspect="auto", cmap="magma", extent=extent)
    corners = librosa.mel_frequencies(82, fmax=SAMPLE_RATE / 2)[1:-1]  # of the filters' middles
    hertz = np.array([250, 500, 1000, 2000, 4000])
    axes.set_yticks(np.interp(hertz, corners, np.arange(80)), ["¼", "½", "1", "2", "4"])
    axes.set(ylabel="kHz")


def show_words(axes: Any, words: Sequence[Word], seconds: float) -> None:
    """Words above the axes where they begin, on two lines where they would run into each other."""
    free = [0.0, 0.0]  # s, from where each line is
    for word in words:
        if word.start_s < seconds:
            line = int(free[0] > word.start_s)
            free[line] = word.start_s + (0.08 * len(word.text) + 0.1) / _INCHES_A_SECOND
            place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(whole(word.text), (word.start_s, 1), (0, 2 + 10 * line), **place)
            axes.axvline(word.start_s, color="white", lw=0.4, alpha=0.6)


def _axes(height: float = 3.0) -> Any:
    return Figure((4.8, height), layout="constrained").subplots()


def _bars(axes: Any, rates: Sequence[float]) -> None:
    axes.bar(range(len(rates)), [100 * rate if math.isfinite(rate) else math.nan for rate in rates], color=_BLUE)
    axes.grid(visible=False, axis="x")


def _draw(axes: Any) -> Markup:
    return _svg(axes.figure, axes.get_title())


def _svg(figure: Figure, title: str) -> Markup:
    """A figure as an element of the page: in its colours, with attributes in place of the styles that its policy forbids."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]*_\d+"', "", svg)  # ids of one figure are those of the next
    svg = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), svg)
    return Markup(svg.replace(_INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def _attributes(style: str) -> str:
    pairs = dict(part.split(":", 1) for part in style.split(";") if ":" in part)  # of two of a name the last counts
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs.items())


def mp3(waveform: np.ndarray) -> str:
    """A waveform (N,) as the address of a player's sound."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="MP3", compression_level=0.7)
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def whole(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON may hold and no file or picture can, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
