"""The commands `asr lm`: estimate, mix, convert, measure and show language models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Group, Option
from asr.errors import AsrError, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asr.lm.model import NgramModel
    from asr.lm.neural import NeuralLm

app = Group(
    "lm",
    {
        "train": (
            "asr.cli.lm:train",
            "asr lm train books.txt.xz -o english.lm --vocab 60000 --entropy 1e-8",
            "asr lm train books.txt.xz -o english.lstm --neural",
        ),
        "mix": ("asr.cli.lm:mix", "asr lm mix books.lm ours.lm -o english.lm --tune data/dev.jsonl"),
        "convert": ("asr.cli.lm:convert", "asr lm convert english.arpa.gz -o english.lm"),
        "perplexity": ("asr.cli.lm:perplexity", "asr lm perplexity english.lm data/dev.jsonl"),
        "info": ("asr.cli.lm:info", "asr lm info english.lm"),
    },
    help="Language models: estimate, measure, look at.",
)


def train(
    texts: Annotated[
        list[Path],
        Argument(help="A sentence a line (.txt, .gz, .bz2, .xz), or manifests (.jsonl)."),
    ],
    output: Annotated[
        Path,
        Option("--output", "-o", help="The file to write; .arpa or .arpa.gz for that format."),
    ],
    order: Annotated[int, Option(help="The words of the longest n-grams.", min=1, max=10)] = 3,
    vocab: Annotated[int | None, Option(help="Know only so many words, the most frequent.", min=1)] = None,
    prune: Annotated[
        str, Option(help="Drop n-grams seen so often or less, for each order: '0 0 1'.", show_default="none")
    ] = "",
    entropy: Annotated[float, Option(help="Drop n-grams that matter less than this; 1e-8 is mild.", min=0)] = 0.0,
    characters: Annotated[bool, Option("--characters", help="Letters instead of words.")] = False,
    normalise: Annotated[str, Option("--normaliser", help="As in the recipe: english, none.")] = "english",
    alphabet: Annotated[str | None, Option(help="Words with other characters are not known.")] = None,
    exclude: Annotated[
        list[Path] | None,
        Option(help="Leave out what shares 7 words in a row with this manifest or text, such as a test set."),
    ] = None,
    neural: Annotated[bool, Option("--neural", help="A recurrent model, to rescore with: an LSTM, as .lstm.")] = False,
    hidden: Annotated[int | None, Option(help="Cells of the LSTM.", min=1, show_default="512")] = None,
    epochs: Annotated[
        float | None, Option(help="Passes of the LSTM over the text.", min=0.001, show_default="1")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with a training of an LSTM that was interrupted.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Estimate an n-gram model from text: interpolated modified Kneser-Ney; with --neural, train a recurrent one."""
    from asr.decoding import fusion
    from asr.lm import kneserney

    try:
        thresholds = [int(part) for part in prune.replace(",", " ").split()]
    except ValueError:
        raise click.BadParameter(
            f"expected whole numbers such as '0 0 1', got {prune!r}", param_hint="--prune"
        ) from None
    recurrent = {"hidden": hidden, "epochs": epochs, "resume": resume}
    options.refuse(
        (neural and bool(prune or entropy or characters), "--neural", "has no n-grams to prune, and no letters"),
        (neural and output.suffix != ".lstm", "--output", "expected a name that ends in .lstm, for --neural"),
        (not neural and any(recurrent.values()), "--hidden, --epochs, --resume", "are of --neural"),
    )
    terminal.refuse_existing(output, overwrite)
    info = {"texts": [path.name for path in texts], "normaliser": normalise}
    with terminal.interruptible(), _lines(texts, exclude or [], normalise) as lines:
        if neural:
            _train_neural(lines, output, info, {"vocabulary_size": vocab, "alphabet": alphabet, **recurrent})
            return
        if characters:
            lines = map(fusion.spell, lines)
            alphabet = alphabet and alphabet.replace(" ", fusion.SPACE)
        model = kneserney.train(
            lines,
            order=order,
            vocabulary_size=vocab,
            alphabet=alphabet,
            prune=thresholds,
            entropy=entropy,
            progress=terminal.note,
        )
        model.info |= info
        _write_lm(model, output)


@contextmanager
def _lines(texts: Sequence[Path], exclude: Sequence[Path], normalise: str) -> Iterator[Iterator[str]]:
    """The normalised lines of texts without what is excluded; how much that was is told at the end."""
    from asr.lm import text as lmtext
    from asr.text import normaliser

    chosen = normaliser(normalise)
    without = lmtext.Without(lmtext.lines(exclude, chosen))
    try:
        yield without(lmtext.lines(texts, chosen))
    finally:  # also where nothing was left
        if exclude:
            terminal.note(
                f"{without.dropped} of {without.seen} lines equal a held-out text or share {lmtext.OVERLAP} words in a row "
                "with one, and were left out"
            )
        if without.dropped > without.seen / 2:
            terminal.note(
                "warning: that is most of them; where every set has the same sentences, as of commands or digits, "
                "do without --exclude"
            )


def _train_neural(lines: Iterator[str], output: Path, info: dict[str, Any], settings: dict[str, Any]) -> None:
    from asr.training import neural_lm

    resume = settings.pop("resume")
    chosen = neural_lm.Settings(**{name: value for name, value in settings.items() if value is not None})
    with terminal.asked_to_end() as asked:
        finished = neural_lm.train(lines, output, chosen, info=info, resume=resume, stop=asked, progress=terminal.note)
    if not finished:
        terminal.note("interrupted; --resume goes on from here")
        raise click.exceptions.Exit(130)
    terminal.note(f"{output}: {output.stat().st_size / 1e6:.1f} MB; use it with --rescore {output}")


def mix(
    general: Annotated[Path, Argument(help="A language model, such as of much general text.")],
    special: Annotated[Path, Argument(help="Another, such as of few but fitting texts.")],
    output: Annotated[
        Path,
        Option("--output", "-o", help="The file to write; .arpa or .arpa.gz for that format."),
    ],
    share: Annotated[float, Option(help="Of the second one, from 0 to 1.", min=0, max=1)] = 0.3,
    tune: Annotated[
        Path | None, Option(help="Find the share that suits this text or manifest best; never a test set.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """One language model of two, each with its share of every probability."""
    from asr.decoding import fusion
    from asr.lm import mixing
    from asr.lm import text as lmtext
    from asr.lm.model import NgramModel
    from asr.text import normaliser

    terminal.refuse_existing(output, overwrite)
    a, b = NgramModel.load(general), NgramModel.load(special)
    if fusion.is_character_model(a) != fusion.is_character_model(b):
        raise AsrError(f"{general}, {special}: expected two models of words or two of characters, got one of each")
    with terminal.interruptible():
        if tune is not None:
            share = mixing.best_share(a, b, lmtext.lines([tune], normaliser(str(a.info.get("normaliser", "english")))))
            terminal.note(f"share {share:.3f}")
        model = mixing.mix(a, b, share)
        model.info["normaliser"] = a.info.get("normaliser", "english")
        _write_lm(model, output)


def convert(
    model: Annotated[Path, Argument(help="A language model: ARPA, or of this program's older versions.")],
    output: Annotated[
        Path,
        Option("--output", "-o", help="The file to write; .arpa or .arpa.gz for that format."),
    ],
    overwrite: options.Overwrite = False,
) -> None:
    """The same language model in another format: ARPA, or the binary file that starts fastest."""
    from asr.lm.model import NgramModel

    terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        _write_lm(NgramModel.load(model), output)


def perplexity(
    model: Annotated[str, Argument(help="A language model, or a name.")],
    texts: Annotated[list[Path], Argument(help="Text or manifests, as for asr lm train.")],
    normalise: Annotated[
        str | None, Option("--normaliser", help="As in the recipe.", show_default="the model's, or english")
    ] = None,
) -> None:
    """How well a language model foretells a text: the lower, the better."""
    from asr.decoding import fusion
    from asr.lm import text as lmtext
    from asr.lm.model import NgramModel
    from asr.text import normaliser

    path = options.lm_path(model)
    loaded = _load(path)
    read = lmtext.lines(texts, normaliser(normalise or str(loaded.info.get("normaliser", "english"))))
    lines: Iterator[str] = filter(None, read)  # as for asr lm train, an empty line is no sentence
    if isinstance(loaded, NgramModel) and fusion.is_character_model(loaded):
        lines = map(fusion.spell, lines)
    with terminal.interruptible():
        found = loaded.perplexity(lines)
    if not found.sentences:
        raise AsrError(f"{', '.join(map(str, texts))}: expected a text, got no words")
    terminal.show(
        f"perplexity {found.including_oovs:.1f}, without unknown words {found.excluding_oovs:.1f}; "
        f"{number_of(found.words, 'word')} in {number_of(found.sentences, 'sentence')}, {found.oovs} unknown\n"
    )


def info(model: Annotated[str, Argument(help="A language model, or a name.")]) -> None:
    """What a language model is: order, n-grams, text, vocabulary."""
    from asr.lm.model import NgramModel

    path = options.lm_path(model)
    loaded = _load(path)
    counts = loaded.counts if isinstance(loaded, NgramModel) else [len(loaded.words)]
    rows = {f"{n}-grams": f"{count:,}" for n, count in enumerate(counts, 1)}
    told = dict(loaded.info)
    settings = told.pop("settings", {})
    told |= {name: settings[name] for name in ("embedding", "hidden", "epochs") if name in settings}
    for number, part in enumerate(told.pop("mixture", []), 1):  # of each model only what it was made of
        told[f"model {number}"] = {key: part[key] for key in ("texts", "words", "lines") if key in part}
    rows |= {terminal.line(key.replace("_", " ")): terminal.line(options.readable(told[key])) for key in told}
    rows |= {
        "file": f"{terminal.line(path)} ({path.stat().st_size / 1e6:.1f} MB)",
        "vocabulary": " ".join(map(terminal.line, loaded.words[3:13])) + " ..." * (len(loaded.words) > 13),
    }
    width = max(map(len, rows))
    terminal.show("".join(f"{key:<{width}}  {value}\n" for key, value in rows.items()))


def _load(path: Path) -> NgramModel | NeuralLm:
    from asr.lm.model import NgramModel
    from asr.lm.neural import NeuralLm

    return NeuralLm(path) if path.suffix == ".lstm" else NgramModel.load(path)


def _write_lm(model: NgramModel, output: Path) -> None:
    if output.name.endswith((".arpa", ".arpa.gz")):
        model.write_arpa(output)
    else:
        model.save(output)
    counts = ", ".join(f"{count} {n}-grams" for n, count in enumerate(model.counts, 1))
    terminal.note(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {counts}")
