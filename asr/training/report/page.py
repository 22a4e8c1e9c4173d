"""A training run as one web page: its curves, where its errors are, and its worst utterances to look at and listen to.

The page loads nothing: pictures are SVG, sound is MP3 (which every browser plays), both in the file. Its policy
(Content-Security-Policy) lets nothing run but sort.js, whatever a transcript or a speaker's name may hold; those are
escaped, as all that page.html is filled with but the pictures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from asr import __version__, audio, metrics, terminal
from asr import manifest as manifests
from asr.audio import SAMPLE_RATE
from asr.decoding import ctc
from asr.errors import AudioError, ManifestError, TrainingError
from asr.manifest import Utterance
from asr.text import normaliser
from asr.tokens import Tokens
from asr.training import checkpoint, config
from asr.training.launch import pick_device, shield_from_signals
from asr.training.log import best
from asr.training.model import AcousticModel
from asr.training.report import pictures
from asr.training.report.pictures import whole

WORST = 10  # utterances shown in full
_SHOWN_S = 30.0  # of each of them: sound and pictures of hours would make a page that no browser opens
_CONFUSIONS = 15
_STEP, _EPOCH = {"step", "lr", "gradient_norm", "layers"}, {"epoch", "train_loss", "dev_loss", "dev_wer", "dev_cer"}


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
    raises:   TrainingError, CheckpointError; ManifestError if the manifest that was asked for cannot be read.
    """
    console = console or Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    shield_from_signals()
    on = pick_device(device, TrainingError)
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
            raise TrainingError(notes[-1])
        notes.append("Without the dev set's audio there are no players, spectrograms and posteriors; see --manifest.")
    for note in notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    scored = [one for _, one in heard]
    report = metrics.report(scored, worst=WORST, confusions=_CONFUSIONS) if scored else None
    text = run / "dev_report.txt"
    with pictures.in_our_style():
        return render(
            name=known.settings.name,
            notes=notes,
            facts=_facts(run, known, path, report),
            settings=yaml.safe_dump(config.to_dict(known.settings), sort_keys=False, allow_unicode=True),
            curves=pictures.curves(known.epochs, known.steps),
            gradients=pictures.gradients(known.steps, known.settings.optimiser.clip_norm),
            errors=report and _errors(known, report, heard, console),
            dev_report=text.read_text(encoding="utf-8", errors="replace") if text.exists() else None,
            failed=failed,
        )


def render(**filling: Any) -> str:
    """page.html filled in; all text is escaped."""
    folder = Path(__file__).parent
    inline = {name: (folder / name).read_text(encoding="utf-8") for name in ("style.css", "sort.js")}
    style, script = (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"
        for text in inline.values()
    )
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(inline["style.css"]), "script": Markup(inline["sort.js"]), "version": __version__}
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    return whole(environment.get_template("page.html").render(policy=policy, **own, **filling))


def _read(run: Path) -> _Run:
    if not run.is_dir():
        got = "a file" if run.exists() else "nothing of that name"
        raise TrainingError(f"{run}: expected a run folder, as asr train makes one, got {got}; check the path")
    log, finished = run / "log.jsonl", run / "model.safetensors"
    try:
        lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be half written yet
        rows = [json.loads(line) for line in lines]
        steps, epochs = ([row for row in rows if keys <= row.keys()] for keys in (_STEP, _EPOCH))
    except FileNotFoundError:
        raise TrainingError(f"{run}: expected a training's log.jsonl in it, got none; is it a run folder?") from None
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{log}: expected one JSON object a line, cannot read it: {error}") from None
    weights = {row["epoch"]: run / f"epoch-{row['epoch'] + 1:04d}.safetensors" for row in epochs}
    there = [row for row in epochs if weights[row["epoch"]].exists()]
    if not epochs or not (there or finished.exists()):
        raise TrainingError(
            f"{run}: expected a log and weights of at least one epoch, got none; wait until it has ended"
        )
    if finished.exists():
        model, settings, tokens, state = checkpoint.load_model(finished)
        summary = state.get("training", {})
        return _Run(model, settings, tokens, summary, str(summary.get("weights", "")), steps, epochs)
    chosen = int(best(there)["epoch"])
    model, settings, tokens, _ = checkpoint.load_model(weights[chosen])
    return _Run(model, settings, tokens, {}, f"best epoch so far, {chosen + 1}", steps, epochs)


def _recognise(
    known: _Run, utterances: Sequence[Utterance], failed: list[tuple[str, str]], console: Console
) -> list[tuple[Utterance, metrics.Scored]]:
    """Greedy transcripts of those that can be read; of the others the ids and reasons go to `failed`."""
    normalise = normaliser(known.settings.data.normaliser)
    heard = []
    with terminal.progress(console) as progress:
        for utterance in progress.track(utterances, description="recognising"):
            try:
                waveform = audio.read_utterance(utterance)
            except AudioError as error:
                failed.append((utterance.id, str(error)))
                continue
            duration_s = len(waveform) / SAMPLE_RATE  # the manifest's may lie
            hypothesis = known.tokens.text(ctc.greedy(_log_probs(known, waveform)).token_ids)
            scored = metrics.Scored(utterance.id, normalise(utterance.text), hypothesis, utterance.speaker, duration_s)
            heard.append((utterance, scored))
    return heard


@torch.no_grad()
def _log_probs(known: _Run, waveform: np.ndarray) -> np.ndarray:
    """(N,) -> (T, V)"""
    model = known.model
    padded = torch.from_numpy(model.geometry.pad(waveform))
    log_probs: np.ndarray = model(padded[None].to(model.mean.device))[0].cpu().numpy()
    return log_probs


def _facts(run: Path, known: _Run, path: Path, report: metrics.Report | None) -> dict[str, object]:
    """The table at the top; path: of the set that was run through the model."""
    settings, summary, epochs = known.settings, known.summary, known.epochs
    features, network, top = settings.features, settings.network, best(epochs)
    columns = f"{features.n_mfcc} coefficients" if features.kind == "mfcc" else f"{features.n_mels} bands"
    shift_ms = 1000 * known.model.geometry.frame_shift / SAMPLE_RATE
    minutes = summary.get("minutes", sum(row.get("seconds", 0) for row in epochs) / 60)
    hours = summary.get("train_hours", epochs[-1].get("audio_hours"))
    facts: dict[str, object] = {
        "run": run,
        "trained on": settings.description,
        "licence": settings.licence,
        "features": f"{features.kind}, {columns}, one frame in {shift_ms:.0f} ms",
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
    return {name: value for name, value in facts.items() if value}


def _errors(
    known: _Run, report: metrics.Report, heard: Sequence[tuple[Utterance, metrics.Scored]], console: Console
) -> dict[str, Any]:
    """What the page says of errors: pictures, rows of speakers, confusions, worst utterances."""
    scored = [one for _, one in heard]
    by_length = np.array(sorted(scored, key=lambda one: one.duration_s), dtype=object)
    groups = np.array_split(by_length, min(8, len(by_length)))
    spans_s = [(group[0].duration_s, group[-1].duration_s) for group in groups]
    rates = [
        metrics.word_errors([one.reference for one in group], [one.hypothesis for one in group]).rate
        for group in groups
    ]
    drawn = [pictures.rates_by_length(spans_s, rates)]
    speakers = []
    for one in report.speakers:
        words, percentages = one.words, map(_percent, (one.words.rate, one.characters.rate))
        counts = (words.substitutions, words.deletions, words.insertions, words.reference_length)
        speakers.append((_speaker(one), one.utterances, f"{one.duration_s / 60:.1f}", *percentages, *counts))
    if speakers:
        rates = [one.words.rate for one in report.speakers]
        drawn.append(pictures.rates_by_speaker(list(map(_speaker, report.speakers)), rates))
    return {
        "pictures": drawn,
        "speakers": speakers,
        "confusions": list(_confusions(report, scored)),
        "worst": list(_worst(known, report, heard, console)),
    }


def _confusions(report: metrics.Report, scored: Sequence[metrics.Scored]) -> Iterator[dict[str, Any]]:
    spelt = [metrics.Scored(one.id, _spell(one.reference), _spell(one.hypothesis)) for one in scored]
    characters = metrics.report(spelt, worst=0, confusions=_CONFUSIONS, bootstrap=0)
    for of, each in (("words", report), ("characters", characters)):
        kinds: tuple[tuple[str, int, list[tuple[object, ...]]], ...] = (
            ("substituted", each.words.substitutions, [(f"{a} → {b}", count) for a, b, count in each.substitutions]),
            ("deleted", each.words.deletions, list(each.deletions)),
            ("inserted", each.words.insertions, list(each.insertions)),
        )
        for kind, total, rows in kinds:
            if rows:
                yield {"of": of, "rows": rows, "caption": f"{of.capitalize()} {kind}: {total:,}"}


def _worst(
    known: _Run, report: metrics.Report, heard: Sequence[tuple[Utterance, metrics.Scored]], console: Console
) -> Iterator[dict[str, Any]]:
    utterances = {id(one): utterance for utterance, one in heard}  # two may have the same name
    with terminal.progress(console) as progress:
        for aligned in progress.track(report.worst, description="drawing"):
            one = aligned.scored
            waveform = audio.read_utterance(utterances[id(one)])
            shown = waveform[: round(_SHOWN_S * SAMPLE_RATE)]
            cut = f" Sound and pictures are of the first {_SHOWN_S:.0f} s." if len(shown) < len(waveform) else ""
            total, length = aligned.words.total, aligned.words.reference_length
            facts = f"Speaker {_speaker(one)}, {one.duration_s:.1f} s, WER {_percent(aligned.words.rate)} "
            title = f"spectrogram and posteriors of {one.id}"
            log_probs = _log_probs(known, waveform)
            yield {
                "id": one.id,
                "facts": facts + f"(errors {total}, words {length}).{cut}",
                "sound": pictures.mp3(shown),
                "columns": [tuple(map(str.strip, column)) for column in aligned.columns],
                "picture": pictures.posteriors(
                    shown, log_probs, known.tokens, one.reference, known.model.geometry.frame_shift, title
                ),
            }


def _spell(text: str) -> str:
    return " ".join(text.replace(" ", "␣"))


def _speaker(one: metrics.Scored | metrics.SpeakerErrors) -> str:
    return "(not named)" if one.speaker is None else whole(one.speaker)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if math.isfinite(rate) else "∞"


def _interval(rate: float, interval: metrics.Interval | None) -> str:
    limits = f" (95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    return _percent(rate) + limits
