"""A training run as one web page: its curves, where its errors are, and its worst utterances to look at and listen to.

The page loads nothing: pictures are SVG, sound is MP3 (which every browser plays), both in the file. Its policy
(Content-Security-Policy) lets nothing run but the script below, whatever a transcript or a speaker's name may hold.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import matplotlib
import numpy as np
import soundfile
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MultipleLocator
from rich.console import Console
from rich.progress import track

from asr import __version__, audio, metrics
from asr import manifest as manifests
from asr.audio import SAMPLE_RATE
from asr.decoding import ctc
from asr.decoding.align import align
from asr.errors import AsrError
from asr.manifest import ManifestError, Utterance
from asr.text import normaliser
from asr.tokens import BLANK, Span, TokenError, Tokens
from asr.training import checkpoint, config
from asr.training.launch import pick_device, shield_from_signals
from asr.training.log import best
from asr.training.model import AcousticModel

WORST = 10  # utterances shown in full
_SHOWN_S = 30.0  # of each of them: sound and pictures of hours would make a page that no browser opens
_CONFUSIONS = 15
_INCHES_A_SECOND = 1.6  # enough for the words of fast speech side by side
_ROWS = 40  # tokens in a picture of posteriors
_SEEN = 0.1  # the posterior from which a token is worth a row
_STEP, _EPOCH = {"step", "lr", "gradient_norm", "layers"}, {"epoch", "train_loss", "dev_loss", "dev_wer", "dev_cer"}

_INK = "#010203"  # drawn in this, replaced by the page's own colour of text, light or dark
_BLUE, _ORANGE = "#2b83ba", "#d55e00"  # told apart by the colour-blind, and visible on white and on black
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right", "text.parse_math"), False),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.titlesize": "medium", "grid.color": _INK, "grid.alpha": 0.15},
    **{"image.interpolation": "none", "svg.fonttype": "none", "svg.hashsalt": "asr"},
}

_CSS = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--soft:#f1f3f5;--line:#d5d9de;--error:#b3261e;--note:#fff4d6}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6e9;--paper:#16181b;--soft:#212429;--line:#3a3f46;--error:#ff9d94;
--note:#3a3214}}
body{max-width:75rem;margin:auto;padding:1rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
.note{background:var(--note);padding:.5rem .8rem;border-radius:.3rem}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));align-items:start}
.narrow{grid-template-columns:repeat(auto-fill,minmax(min(100%,10.5rem),1fr))}
.grid svg{display:block;width:100%;height:auto;max-width:42rem}
.scroll{overflow-x:auto}.scroll table{white-space:nowrap}.tall{max-height:30rem;overflow:auto}
svg{stroke-linejoin:round}svg text{font-family:system-ui,sans-serif}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600;padding:.2rem 0}
th,td{padding:.15rem .9rem .15rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}.facts td{text-align:left}.facts th{font-weight:500;white-space:nowrap}
th:last-child{white-space:nowrap}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-decoration:underline dotted}
pre{overflow-x:auto;background:var(--soft);padding:.8rem}audio{width:100%;max-width:40rem;display:block;margin:.5rem 0}
article{border:1px solid var(--line);border-radius:.4rem;padding:.2rem 1rem 1rem;margin:1rem 0}
.aligned{display:flex;flex-wrap:wrap;gap:.2rem .5rem}.aligned span{display:grid;min-height:4.2em;text-align:center}
.aligned .error{color:var(--error);background:var(--soft);padding:0 .3rem;border-radius:.2rem}
.aligned b,.aligned i{font-style:normal;font-weight:400}.aligned .error i{font-weight:700}
@media(max-width:40rem){body{padding:.5rem}article{padding:.2rem .5rem .6rem}th,td{padding-right:.5rem}
.facts th,.scroll table{white-space:normal}}
"""
# Sorts by the column that is clicked; cells that start with a number by the number.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) table.querySelectorAll("th").forEach((head, column) => {
  const button = document.createElement("button"); button.append(...head.childNodes); head.append(button);
  button.onclick = () => {
    const down = head.ariaSort !== "descending", body = table.tBodies[0], value = row => row.cells[column].textContent;
    const order = (a, b) => parseFloat(value(a)) - parseFloat(value(b)) || value(a).localeCompare(value(b));
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  };
});
"""


class ReportError(AsrError):
    """A run that there is nothing to report of, or a set that cannot be run through its model."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run folder holds. steps, epochs: the log's rows; summary: of the finished training, else empty."""

    model: AcousticModel
    settings: config.Config
    tokens: Tokens
    summary: dict[str, Any]
    weights: str
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


def build(
    run: Path,
    *,
    manifest: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> str:
    """The page (HTML) of a run, finished or still in training; then it is of the best epoch so far.

    manifest: the set to run through the model, by greedy decoding; without one the training's dev set, and where that is
              gone, the page does without sound and posteriors and says so.
    raises:   ReportError, CheckpointError; ManifestError if the manifest that was asked for cannot be read.
    """
    console = console or Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    shield_from_signals()
    on = pick_device(device, ReportError)
    known = _read(run)
    known.model.to(on)
    notes = []
    if not known.summary:
        notes.append(f"This training is not finished: {len(known.epochs)} of {known.settings.epochs} epochs are in it.")
    path = manifest or known.settings.data.dev
    heard: list[tuple[Utterance, metrics.Scored]] = []
    failed: list[tuple[str, str]] = []
    try:
        utterances = manifests.read(path)
        heard = _recognise(known, utterances, failed, console)
        if failed:
            notes.append(
                f"{len(failed)} of {len(utterances)} utterances of {path} cannot be read and are not in the figures. "
                f"The first, {failed[0][0]}: {failed[0][1]}"
            )
    except ManifestError as error:
        if manifest:
            raise
        notes.append(str(error))
    if not heard:
        if manifest:
            raise ReportError(notes[-1])
        notes.append("Without the dev set's audio there are no players, spectrograms and posteriors; see --manifest.")
    for note in notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    with matplotlib.rc_context(_STYLE):
        scored = [one for _, one in heard]
        report = metrics.report(scored, worst=WORST, confusions=_CONFUSIONS) if scored else None
        sections = [_overview(run, known, path, report), _curves(known), _gradients(known)]
        if report:
            sections += [_errors(report, scored), _confusions(report, scored), _worst(known, report, heard, console)]
        elif (run / "dev_report.txt").exists():
            text = (run / "dev_report.txt").read_text(encoding="utf-8", errors="replace")
            sections.append(f"<h2>Dev errors, as reported at the end of the training</h2><pre>{_text(text)}</pre>")
        if failed:
            table = _table(("utterance", "why"), failed)
            sections.append(f"<h2>Utterances that cannot be read</h2><div class=tall>{table}</div>")
    return _page(known.settings.name, notes, sections)


# --- what there is ---


def _read(run: Path) -> _Run:
    if not run.is_dir():
        got = "a file" if run.exists() else "nothing of that name"
        raise ReportError(f"{run}: expected a run folder, as asr train makes one, got {got}; check the path")
    log, finished = run / "log.jsonl", run / "model.safetensors"
    try:
        lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be half written yet
        rows = [json.loads(line) for line in lines]
        steps, epochs = ([row for row in rows if keys <= row.keys()] for keys in (_STEP, _EPOCH))
    except FileNotFoundError:
        raise ReportError(f"{run}: expected a training's log.jsonl in it, got none; is it a run folder?") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ReportError(f"{log}: expected one JSON object a line, cannot read it: {error}") from None
    weights = {row["epoch"]: run / f"epoch-{row['epoch'] + 1:04d}.safetensors" for row in epochs}
    there = [row for row in epochs if weights[row["epoch"]].exists()]
    if not epochs or not (there or finished.exists()):
        raise ReportError(f"{run}: expected a log and weights of at least one epoch, got none; wait until it has ended")
    if finished.exists():
        model, settings, tokens, state = checkpoint.load_model(finished)
        summary = state.get("training", {})
        return _Run(model, settings, tokens, summary, str(summary.get("weights", "")), steps, epochs)
    chosen = int(best(there)["epoch"])
    model, settings, tokens, _ = checkpoint.load_model(weights[chosen])
    return _Run(model, settings, tokens, {}, f"best epoch so far, {chosen + 1}", steps, epochs)


def _watched(items: Sequence[Any], what: str, console: Console) -> Iterable[Any]:
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _recognise(
    known: _Run, utterances: Sequence[Utterance], failed: list[tuple[str, str]], console: Console
) -> list[tuple[Utterance, metrics.Scored]]:
    """Greedy transcripts of those that can be read; of the others the ids and reasons go to `failed`."""
    normalise = normaliser(known.settings.data.normaliser)
    heard = []
    for utterance in _watched(utterances, "recognising", console):
        try:
            waveform = _waveform(utterance)
        except audio.AudioError as error:
            failed.append((utterance.id, str(error)))
            continue
        duration_s = len(waveform) / SAMPLE_RATE  # the manifest's may lie
        hypothesis = known.tokens.text(ctc.greedy(_log_probs(known, waveform)).token_ids)
        reference = normalise(utterance.text)
        heard.append((utterance, metrics.Scored(utterance.id, reference, hypothesis, utterance.speaker, duration_s)))
    return heard


def _waveform(utterance: Utterance) -> np.ndarray:
    return audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)


@torch.no_grad()
def _log_probs(known: _Run, waveform: np.ndarray) -> np.ndarray:
    """(N,) -> (T, V)"""
    model = known.model
    padded = torch.from_numpy(audio.pad(waveform, model.receptive_field, model.frame_shift))
    log_probs: np.ndarray = model(padded[None].to(model.mean.device))[0].cpu().numpy()
    return log_probs


# --- the sections ---


def _overview(run: Path, known: _Run, path: Path, report: metrics.Report | None) -> str:
    settings, summary, epochs = known.settings, known.summary, known.epochs
    features, network, top = settings.features, settings.network, best(epochs)
    columns = f"{features.n_mfcc} coefficients" if features.kind == "mfcc" else f"{features.n_mels} bands"
    minutes = summary.get("minutes", sum(row.get("seconds", 0) for row in epochs) / 60)
    hours = summary.get("train_hours", epochs[-1].get("audio_hours"))
    facts = {
        "run": run,
        "trained on": settings.description,
        "licence": settings.licence,
        "features": f"{features.kind}, {columns}, one frame in {1000 * known.model.frame_shift / SAMPLE_RATE:.0f} ms",
        "network": f"{network.layers} x {network.hidden} {network.cell}, "
        + ("both directions" if network.bidirectional else "one direction"),
        "parameters": f"{sum(parameter.numel() for parameter in known.model.parameters()):,}",
        "vocabulary": f"{len(known.tokens)} tokens",
        "epochs": f"{len(epochs)} of at most {settings.epochs}",
        "training audio": hours and f"{hours:.2f} hours an epoch",
        "time": f"{minutes:.1f} minutes" + (f" on {summary['device']}" if "device" in summary else ""),
        "best epoch on dev": f"{top['epoch'] + 1}: WER {_percent(top['dev_wer'])}, CER {_percent(top['dev_cer'])}",
        "dev errors at the end": "dev_wer" in summary
        and f"WER {_percent(summary['dev_wer'])}, CER {_percent(summary['dev_cer'])}",
        "weights of this page": known.weights,
    }
    if report:
        facts |= {
            "set of this page": f"{path}: {report.utterances} utterances, {report.duration_s / 3600:.2f} hours",
            "WER, greedy": _interval(report.wer, report.word_interval),
            "CER, greedy": _interval(report.cer, report.character_interval),
            "wrong utterances": f"{report.wrong_utterances} ({_percent(report.utterance_error_rate)})",
        }
    rows = "".join(f"<tr><th>{_text(name)}<td>{_text(value)}" for name, value in facts.items() if value)
    tree = yaml.safe_dump(config.to_dict(settings), sort_keys=False, allow_unicode=True)
    return (
        f"<h2>The run</h2><table class=facts>{rows}</table>"
        f"<details><summary>All settings</summary><pre>{_text(tree)}</pre></details>"
    )


def _curves(known: _Run) -> str:
    epochs, steps = known.epochs, known.steps
    x = [row["epoch"] + 1 for row in epochs]
    losses, errors, rates = _axes(), _axes(), _axes()
    losses.plot(x, [row["train_loss"] for row in epochs], "o-", ms=2.5, color=_BLUE, label="train")
    losses.plot(x, [row["dev_loss"] for row in epochs], "s--", ms=2.5, color=_ORANGE, label="dev")
    losses.set(xlabel="epoch", ylabel="nats a token", title="CTC loss", ylim=(0, None))
    errors.plot(x, [100 * row["dev_wer"] for row in epochs], "o-", ms=2.5, color=_BLUE, label="WER")
    errors.plot(x, [100 * row["dev_cer"] for row in epochs], "s--", ms=2.5, color=_ORANGE, label="CER")
    errors.set(xlabel="epoch", ylabel="%", title="Errors on dev, greedy", ylim=(0, None))
    for axes in (losses, errors):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    rates.plot([row["step"] for row in steps], [row["lr"] for row in steps], color=_BLUE)
    rates.set(xlabel="step", title="Learning rate", ylim=(0, None))
    return _grid("Curves", losses, errors, rates)


def _gradients(known: _Run) -> str:
    steps, clip = known.steps, known.settings.optimiser.clip_norm
    layers = list(dict.fromkeys(layer for row in steps for layer in row["layers"]))
    if not layers:
        return ""
    x = [row["step"] for row in steps]
    whole, each = _axes(), _axes(height=1.2 + 0.2 * len(layers))
    whole.plot(x, [row["gradient_norm"] for row in steps], color=_BLUE, lw=0.8)
    whole.axhline(clip, color=_ORANGE, ls="--", label=f"clipped to {clip:g}")
    whole.set(xlabel="step", yscale="log", title="Gradient norm, before clipping")
    whole.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter())  # by default they write TeX
    whole.legend()
    norms = np.array([[row["layers"].get(layer, np.nan) for row in steps] for layer in layers])  # a layer may be frozen
    extent = (x[0], x[-1] + 1, len(layers) - 0.5, -0.5)
    picture = each.imshow(np.maximum(norms, 1e-12), aspect="auto", cmap="viridis", norm="log", extent=extent)
    each.set(xlabel="step", title="Gradient norm by layer")
    each.set_yticks(range(len(layers)), _layer_names(layers), fontsize=8)
    each.grid(visible=False)
    each.figure.colorbar(picture, format="{x:g}").minorformatter = LogFormatter()
    return _grid("Gradients", whole, each)


def _layer_names(layers: Sequence[str]) -> list[str]:
    """The log's names of layers in words, counted from 1."""
    convolutions = [layer for layer in layers if layer.startswith("conv.")]
    names = []
    for layer in layers:
        kind, *rest = layer.split(".")
        if kind == "conv":
            names.append(f"convolution {1 + convolutions.index(layer)}")
        elif kind == "layers" and rest[1:2] == ["directions"]:
            names.append(f"layer {1 + int(rest[0])}, {('forward', 'backward')[int(rest[2])]}")
        elif kind == "layers":
            names.append(f"layer {1 + int(rest[0])}, norm and projection")
        else:
            outputs = [other for other in layers if other.startswith(f"{kind}.")]
            names.append(kind if layer == max(outputs, default=layer) else f"{kind}, norm")
    return [layer if names.count(name) > 1 else name for layer, name in zip(layers, names, strict=True)]


def _told_apart(names: Sequence[str], width: int) -> list[str]:
    """Names shortened to so many characters; those that would be the same are numbered instead."""
    short = [name if len(name) <= width else name[: width - 1] + "…" for name in names]
    return [
        name if short.count(name) == 1 else f"{number}: {name[: width - 4]}…"
        for number, name in enumerate(short, start=1)
    ]


def _errors(report: metrics.Report, scored: Sequence[metrics.Scored]) -> str:
    by_length = np.array(sorted(scored, key=lambda one: one.duration_s), dtype=object)
    groups = np.array_split(by_length, min(8, len(by_length)))
    lengths, names, rates = _axes(), list[str](), []
    for digits in (1, 2, 3):  # as many as tell the bars apart
        if len(set(names)) < len(groups):
            names = [f"{group[0].duration_s:.{digits}f}–{group[-1].duration_s:.{digits}f}" for group in groups]
    for group in groups:
        errors = metrics.word_errors([one.reference for one in group], [one.hypothesis for one in group])
        rates.append(errors.rate)
    _bars(lengths, rates)
    lengths.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
    lengths.set(xlabel="length in s; as many utterances in each bar", ylabel="%", title="WER by length")
    pictures = [lengths]
    table = "<p>The manifest names no speakers.</p>"
    if report.speakers:
        names = [_speaker(one) for one in report.speakers]
        speakers = _axes()
        _bars(speakers, [one.words.rate for one in report.speakers])
        labels = _told_apart(names, 10) if len(names) <= 30 else []
        speakers.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
        speakers.set(xlabel="speaker, worst first", ylabel="%", title=f"WER by speaker: {len(names)} speakers")
        pictures.append(speakers)
        heads = ("speaker", "utterances", "minutes", "WER", "CER", "sub", "del", "ins", "words")
        rows = []
        for name, one in zip(names, report.speakers, strict=True):
            words, percentages = one.words, map(_percent, (one.words.rate, one.characters.rate))
            counts = (words.substitutions, words.deletions, words.insertions, words.reference_length)
            rows.append((name, one.utterances, f"{one.duration_s / 60:.1f}", *percentages, *counts))
        table = f"<div class='scroll tall'>{_table(heads, rows, kind='sortable')}</div>"
    return _grid("Errors by length and by speaker", *pictures) + table


def _confusions(report: metrics.Report, scored: Sequence[metrics.Scored]) -> str:
    spelt = [metrics.Scored(one.id, _spelt(one.reference), _spelt(one.hypothesis)) for one in scored]
    characters = metrics.report(spelt, worst=0, confusions=_CONFUSIONS, bootstrap=0)
    tables = []
    for what, each in (("words", report), ("characters", characters)):
        kinds: tuple[tuple[str, int, list[tuple[object, ...]]], ...] = (
            ("substituted", each.words.substitutions, [(f"{a} → {b}", count) for a, b, count in each.substitutions]),
            ("deleted", each.words.deletions, list(each.deletions)),
            ("inserted", each.words.insertions, list(each.insertions)),
        )
        tables += [
            _table((what, "times"), rows, caption=f"{what.capitalize()} {kind}: {total:,}")
            for kind, total, rows in kinds
            if rows
        ]
    if not tables:
        return ""
    return f"<h2>Confusions</h2><p>The most frequent ones; ␣ is a space.</p><div class='grid narrow'>{''.join(tables)}</div>"


def _worst(
    known: _Run, report: metrics.Report, heard: Sequence[tuple[Utterance, metrics.Scored]], console: Console
) -> str:
    if not report.worst:
        return "<h2>Worst utterances</h2><p>None: every utterance is right.</p>"
    utterances = {id(one): utterance for utterance, one in heard}  # two may have the same name
    articles = []
    for rank, aligned in enumerate(_watched(report.worst, "drawing", console), start=1):
        one = aligned.scored
        waveform = _waveform(utterances[id(one)])
        shown = waveform[: round(_SHOWN_S * SAMPLE_RATE)]
        cut = f" Sound and pictures are of the first {_SHOWN_S:.0f} s." if len(shown) < len(waveform) else ""
        total, length = aligned.words.total, aligned.words.reference_length
        facts = f"Speaker {_speaker(one)}, {one.duration_s:.1f} s, WER {_percent(aligned.words.rate)} "
        facts += f"(errors {total}, words {length}).{cut}"
        pairs = "".join(
            f"<span{' class=error' * bool(mark.strip())}><b>{_text(left.strip())}</b><b>{_text(right.strip())}</b>"
            f"<i>{mark.strip()}</i></span>"
            for left, right, mark in aligned.columns
        )
        picture = _posteriors(known, waveform, one, len(shown))
        articles.append(
            f"<article><h3>{rank}. {_text(one.id)}</h3><p>{_text(facts)}</p>"
            f"<audio controls preload=metadata src='{_mp3(shown)}'></audio>"
            f"<div class=aligned dir=auto>{pairs}</div><div class=scroll tabindex=0>{picture}</div></article>"
        )
    return (
        "<h2>Worst utterances</h2><p>Those with the most word errors. Text: reference above, what was recognised below, "
        "errors in capitals with S (substituted), D (deleted) or I (inserted). Pictures: the spectrogram (log-mel) under "
        "the reference, where it fits the sound best; the posteriors of the tokens, 0 dark to 1 bright, under what was "
        "recognised. Rings are the reference's tokens: dark inside where the network did not believe them.</p>"
        + "".join(articles)
    )


def _posteriors(known: _Run, waveform: np.ndarray, one: metrics.Scored, samples: int) -> str:
    """Spectrogram and posteriors of the first samples of a waveform (N,), with the tokens of its reference in them."""
    log_probs, symbols = _log_probs(known, waveform), [_whole(symbol) for symbol in known.tokens.symbols]
    shift_s, seconds = known.model.frame_shift / SAMPLE_RATE, samples / SAMPLE_RATE
    hypothesis = ctc.greedy(log_probs).token_ids
    try:
        reference = known.tokens.encode(one.reference)
        expected = align(log_probs, reference)
    except (ctc.CtcError, TokenError):  # a text too long for its audio, or of other letters, has no place in it
        reference, expected = [], []
    posteriors = np.exp(log_probs[: math.ceil(seconds / shift_s)]).T  # (V, T)
    peaks = posteriors.max(axis=1)
    peaks[[BLANK, *reference]] += 1  # these before all others
    rows = sorted(np.argsort(-peaks)[: min(_ROWS, np.count_nonzero(peaks >= _SEEN))].tolist())

    power = librosa.feature.melspectrogram(
        y=np.pad(waveform[:samples], (0, max(0, 512 - samples))), sr=SAMPLE_RATE, n_fft=512, hop_length=160, n_mels=80
    )
    figure = Figure((max(6.0, 1.2 + _INCHES_A_SECOND * seconds), 2.4 + 0.15 * len(rows)), layout="constrained")
    sound, tokens = figure.subplots(2, height_ratios=[1.6, 0.5 + 0.15 * len(rows)], sharex=True)
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
    sound.imshow(decibels, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, -0.5, 79.5))
    corners = librosa.mel_frequencies(82, fmax=SAMPLE_RATE / 2)[1:-1]  # of the filters' middles
    hertz = np.array([250, 500, 1000, 2000, 4000])
    sound.set_yticks(np.interp(hertz, corners, np.arange(80)), ["¼", "½", "1", "2", "4"])
    sound.set(ylabel="kHz")
    tokens.imshow(
        posteriors[rows], aspect="auto", cmap="viridis", vmin=0, vmax=1,
        extent=(0, posteriors.shape[1] * shift_s, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    tokens.set_yticks(range(len(rows)), [symbols[row].replace(" ", "␣") for row in rows], fontsize=8)
    rings = [
        ((span.start + span.end) / 2 * shift_s, rows.index(token_id))
        for span, token_id in zip(expected, reference, strict=True)
        if token_id in rows and span.end * shift_s <= seconds
    ]
    if rings:
        tokens.plot(*zip(*rings, strict=True), "o", ms=5, mfc="none", mec="white", mew=0.8)
    tokens.set(ylabel="token", xlim=(0, seconds))
    tokens.set_xlabel("time in s", loc="left")  # in sight also of a picture that is wider than the screen
    tokens.xaxis.set_major_locator(MultipleLocator(1 if seconds > 3 else 0.2))
    _words(sound, expected, [symbols[token_id] for token_id in reference], shift_s, seconds)
    spans = align(log_probs, hypothesis)
    _words(tokens, spans, [symbols[token_id] for token_id in hypothesis], shift_s, seconds)
    for axes in (sound, tokens):
        axes.grid(visible=False)
    return _svg(figure, f"spectrogram and posteriors of {one.id}")


def _words(axes: Any, spans: Sequence[Span], symbols: Sequence[str], shift_s: float, seconds: float) -> None:
    """Words above the axes where they begin, on two lines where they would run into each other."""
    starts_s: list[float] = []
    words: list[str] = []
    begun = False
    for span, symbol in zip(spans, symbols, strict=True):
        begun = begun and not symbol.startswith(" ")
        text = symbol.strip()
        if text and begun:
            words[-1] += text
        elif text:
            starts_s.append(span.start * shift_s)
            words.append(text)
        begun = begun or bool(text)
    free = [0.0, 0.0]  # s, from where each line is
    for start_s, text in zip(starts_s, words, strict=True):
        if start_s < seconds:
            line = int(free[0] > start_s)
            free[line] = start_s + (0.08 * len(text) + 0.1) / _INCHES_A_SECOND
            place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(text, (start_s, 1), (0, 2 + 10 * line), **place)
            axes.axvline(start_s, color="white", lw=0.4, alpha=0.6)


# --- pieces of the page ---


def _axes(height: float = 3.0) -> Any:
    return Figure((4.8, height), layout="constrained").subplots()


def _bars(axes: Any, rates: Sequence[float]) -> None:
    axes.bar(range(len(rates)), [100 * rate if math.isfinite(rate) else math.nan for rate in rates], color=_BLUE)
    axes.grid(visible=False, axis="x")


def _grid(title: str, *pictures: Any) -> str:
    drawn = "".join(f"<div>{_svg(axes.figure, axes.get_title())}</div>" for axes in pictures)
    return f"<h2>{title}</h2><div class=grid>{drawn}</div>"


def _svg(figure: Figure, title: str) -> str:
    """A figure as an element of the page: in its colours, with attributes in place of the styles that its policy forbids."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]*_\d+"', "", svg)  # ids of one figure are those of the next
    svg = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), svg)
    return svg.replace(_INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{_text(title)}"', 1)


def _attributes(style: str) -> str:
    pairs = dict(part.split(":", 1) for part in style.split(";") if ":" in part)  # of two of a name the last counts
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs.items())


def _mp3(waveform: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="MP3", compression_level=0.7)
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", kind: str = "") -> str:
    head = "".join(f"<th>{_text(name)}" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows)
    caption = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f"<table class='{kind}'>{caption}<thead><tr>{head}</thead><tbody>{body}</tbody></table>"


def _page(name: str, notes: Sequence[str], sections: Sequence[str]) -> str:
    def allowed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"

    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src {allowed(_CSS)}; script-src {allowed(_SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )
    said = "".join(f"<p class=note>{_text(note)}</p>" for note in notes)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(name)}: report of a training</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{_text(name)}</h1>{said}\n"
        + "\n".join(sections)
        + f"\n<p><small>Written by asr {__version__}.</small>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    """Anything as text of the page, never as part of its markup."""
    return html.escape(_whole(str(value)))


def _whole(text: str) -> str:
    """With ? for halves of surrogate pairs, which JSON may hold and no file or picture can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _spelt(text: str) -> str:
    return " ".join(text.replace(" ", "␣"))


def _speaker(one: metrics.Scored | metrics.SpeakerErrors) -> str:
    return "(not named)" if one.speaker is None else _whole(one.speaker)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if math.isfinite(rate) else "∞"


def _interval(rate: float, interval: metrics.Interval | None) -> str:
    limits = f" (95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    return _percent(rate) + limits
