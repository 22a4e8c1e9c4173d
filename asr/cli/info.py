"""The command `asr info`: what a model file is."""

from __future__ import annotations

from typing import Annotated, Any

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option


def models() -> None:
    """The models known by name: those in the package, and your own in ~/.asr/models or $ASR_MODELS."""
    import json

    from asr import models as known
    from asr.errors import AsrError
    from asr.models import onnxfile

    for name, path in known.names().items():
        lm = known.find_lm(name)
        parts = {"": path, "language model ": lm, "recurrent language model ": known.choose_neural(None, None, lm)}
        size = ", ".join(f"{what}{part.stat().st_size / 1e6:.1f} MB" for what, part in parts.items() if part)
        try:
            card = json.loads(onnxfile.metadata(onnxfile.read(path), "asr"))
            about = [card.get("licence"), card.get("description")]
        except (AsrError, ValueError, OSError) as error:
            about = [f"cannot be read: {error}"]
        default = ", the default" * (name == known.DEFAULT_MODEL)
        place = "in the package" if known.is_bundled(path) else str(path)
        rows = [f"{name}{default}: {size}; {place}", *(f"    {text}" for text in about if text)]
        terminal.show("".join(f"{terminal.line(row)}\n" for row in rows))


def info(
    model: Annotated[str, Argument(help="A model file (.onnx), a run folder, or a name.")] = "english",
    as_json: Annotated[bool, Option("--json", help="The whole card as JSON.")] = False,
) -> None:
    """What a model file is: vocabulary, features, network, training, licence, figures."""
    import json

    from asr.models import choose_neural, find_lm, find_model
    from asr.recognizer import Recognizer

    path, lm = find_model(options.as_onnx(model)), find_lm(model)
    neural = choose_neural(None, None, lm)
    recognizer = Recognizer(path)
    card, tokens = recognizer.card, recognizer.tokens
    longer = [symbol for symbol in tokens.symbols[1:] if len(symbol) > 1]
    pieces = f" and {len(longer)} pieces: {', '.join(map(repr, longer[:8]))}, ..." if longer else ""
    if as_json:
        terminal.show(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        return

    def part(of: dict[str, Any], key: str) -> dict[str, Any]:
        return of[key] if isinstance(of.get(key), dict) else {}

    def fill(pattern: str, values: dict[str, Any]) -> str:
        try:
            return pattern.format_map(values)
        except KeyError:  # a model can do without what a recogniser does not need
            return ""

    features, network = part(part(card, "config"), "features"), part(part(card, "config"), "network")
    columns = "{n_mfcc} coefficients" if features.get("kind") == "mfcc" else "{n_mels} bands"
    directions = "both directions" if network.get("bidirectional") else "one direction"
    names = {"dev_wer": "dev WER", "dev_cer": "dev CER", "version": "trained by asr"}
    rows = {
        "name": card["name"],
        "file": f"{path} ({path.stat().st_size / 1e6:.2f} MB, {card.get('precision', 'float32')})",
        "language model": lm and f"{lm} ({lm.stat().st_size / 1e6:.2f} MB)",
        "rescored by": neural and f"{neural} ({neural.stat().st_size / 1e6:.2f} MB)",
        "trained on": card.get("description"),
        "licence": card.get("licence"),
        "features": fill("{kind}, " + columns, features),
        "network": fill("{layers} x {hidden} {cell}, " + directions, network),
        "frame": f"{1000 * card['frame_shift'] / card['sample_rate']:.0f} ms",
        "vocabulary": f"{len(tokens)} tokens: {tokens.alphabet!r}" + pieces,
        **{key: options.readable(value, rate=True) for key, value in part(card, "figures").items()},
        **{
            names.get(key, key.replace("_", " ")): options.readable(value, rate=key.endswith(("wer", "cer")))
            for key, value in part(card, "training").items()
        },
        "decoding": ", ".join(f"{name} {options.readable(x)}" for name, x in part(card, "decoding").items()),
        "calibrated for": ", ".join(part(card, "calibration")),
        "written by": fill("asr {version}, ", card) + f"schema {card['schema']}",
    }
    rows = {terminal.line(key): terminal.line(value) for key, value in rows.items() if value not in (None, "")}
    width = max(map(len, rows))
    terminal.show("".join(f"{key:<{width}}  {value}\n" for key, value in rows.items()))
