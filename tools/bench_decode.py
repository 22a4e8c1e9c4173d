"""tools/bench decode: the beam search beside flashlight-text's decoders, on one network's outputs and one language model."""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr import audio, manifest, metrics
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.decoding.tuning import Example
from asr.lm.model import NgramModel
from asr.recognizer import Recognizer
from asr.text import english
from asr.tokens import Tokens

ROUNDS = 3  # the decoders take turns, so that a busy machine slows all alike; the best of each counts


def decode(arguments: argparse.Namespace) -> None:
    """WER and time of greedy decoding, beam search without and with a language model, and flashlight-text's decoders.

    The weights: ours from the model's file (asr tune); flashlight's searched here on the dev set with beam 32. Both know
    only the language model's words.
    """
    lm = NgramModel.load(arguments.lm)
    recognizer = Recognizer(arguments.model, lm=lm, decoding={"unknown": None})
    tokens, decoding = recognizer.tokens, recognizer.decoding
    dev, test = (_examples(recognizer, path, arguments.limit) for path in (arguments.dev, arguments.manifest))
    frames = sum(len(example.parts[0]) for example in test)
    print(f"{len(test)} utterances, {frames} frames, {frames * recognizer.frame_shift_s:.0f} s; {decoding}")

    decoders: dict[str, Callable[[np.ndarray], str]] = {"greedy": _own(tokens, 1)}
    peer = _flashlight(tokens, lm, dev)
    for beam in arguments.beams:
        decoders[f"beam {beam}"] = _own(tokens, beam)
        decoders[f"beam {beam} + LM"] = _own(tokens, beam, lm, decoding)
        if peer is not None:
            decoders[f"flashlight lexicon-free {beam}, no LM"] = peer(beam, False)
            decoders[f"flashlight lexicon {beam} + LM"] = peer(beam, True)
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    texts: dict[str, list[str]] = {}
    for _ in range(ROUNDS):
        for name, decoder in decoders.items():
            started = time.perf_counter()
            texts[name] = [decoder(example.parts[0]) for example in test]
            seconds[name].append(time.perf_counter() - started)
    references = [example.reference for example in test]
    print("\n| decoder | WER | CER | microseconds a frame | real-time factor |\n|---|---|---|---|---|")
    for name in decoders:
        spent, rates = min(seconds[name]) / frames, metrics.report(_scored(references, texts[name]), bootstrap=0)
        factor = spent / recognizer.frame_shift_s
        print(f"| {name} | {rates.wer:.2%} | {rates.cer:.2%} | {1e6 * spent:.1f} | {factor:.5f} |")
    if peer is not None:
        for beam in arguments.beams:
            ratios = [min(seconds[f"beam {beam}{a}"]) / min(seconds[f"flashlight {b}"])
                      for a, b in ((" + LM", f"lexicon {beam} + LM"), ("", f"lexicon-free {beam}, no LM"))]  # fmt: skip
            print(f"beam {beam}: {ratios[0]:.2f} x the time of flashlight's lexicon decoder, "
                  f"without LM {ratios[1]:.2f} x that of its lexicon-free one")  # fmt: skip
    if arguments.chart:
        _widths(tokens, lm, decoding, test, arguments.chart)
    _lengths(Decoder(tokens, beam=32, lm=lm, decoding=decoding), test, recognizer.frame_shift_s, arguments.seconds)


def _examples(recognizer: Recognizer, path: Path, limit: int) -> list[Example]:
    return [
        Example([recognizer.log_probs(audio.read(utterance.audio))], english(utterance.text))
        for utterance in manifest.read(path)[:limit]
    ]


def _scored(references: Sequence[str], texts: Sequence[str]) -> list[metrics.Scored]:
    rows = enumerate(zip(references, texts, strict=True))
    return [metrics.Scored(str(i), reference, text, None, 1.0) for i, (reference, text) in rows]


def _own(
    tokens: Tokens, beam: int, lm: NgramModel | None = None, decoding: Decoding | None = None
) -> Callable[[np.ndarray], str]:
    decoder = Decoder(tokens, beam=beam, lm=lm, decoding=decoding)

    def text(log_probs: np.ndarray) -> str:
        found = decoder.texts(decoder(log_probs), 1)
        return found[0][0] if found else ""

    return text


def _flashlight(
    tokens: Tokens, lm: NgramModel, dev: Sequence[Example]
) -> Callable[[int, bool], Callable[[np.ndarray], str]] | None:
    """What makes a decoder of a beam width, with the word model and lexicon or without, as torchaudio sets them up."""
    try:
        from flashlight.lib.text import decoder as fl
        from flashlight.lib.text.dictionary import Dictionary
    except ModuleNotFoundError:
        print("flashlight-text: not installed (pip install flashlight-text kenlm)")
        return None
    words = Dictionary()
    for word in ["<unk>", *lm.words[3:]]:
        words.add_entry(word)
    with tempfile.TemporaryDirectory() as folder:
        lm.write_arpa(Path(folder) / "lm.arpa")
        kenlm = fl.KenLM(str(Path(folder) / "lm.arpa"), words)
    space, n_tokens = tokens.symbols.index(" "), len(tokens)
    trie, start = fl.Trie(n_tokens, space), kenlm.start(False)
    for word in lm.words[3:]:
        if not tokens.unknown(word):
            index = words.get_index(word)
            trie.insert([*tokens.encode(word), space], index, kenlm.score(start, index)[1])
    trie.smear(fl.SmearingMode.MAX)

    def make(beam: int, lexicon: bool, weight: float = 0.0, bonus: float = 0.0) -> Callable[[np.ndarray], str]:
        if lexicon:
            options = fl.LexiconDecoderOptions(
                beam, n_tokens, 50.0, weight, bonus, -math.inf, 0.0, True, fl.CriterionType.CTC
            )
            decoder = fl.LexiconDecoder(options, trie, kenlm, space, 0, words.get_index("<unk>"), [], False)
        else:
            free = fl.LexiconFreeDecoderOptions(beam, n_tokens, 50.0, 0.0, 0.0, True, fl.CriterionType.CTC)
            decoder = fl.LexiconFreeDecoder(free, fl.ZeroLM(), space, 0, [])

        def text(log_probs: np.ndarray) -> str:
            log_probs = np.ascontiguousarray(log_probs, np.float32)
            best = decoder.decode(log_probs.ctypes.data, *log_probs.shape)[0]
            if lexicon:
                return " ".join(words.get_entry(index) for index in best.words if index >= 0)
            path = np.array(best.tokens)
            return " ".join(tokens.decode(path[np.diff(path, prepend=-1) != 0]).split())

        return text

    # Its language model's scores are decimal logarithms. A compass search from there, as asr tune does.
    best = (math.inf, 0.8 * math.log(10), 0.0)
    for step in (1.0, 0.5, 0.25, 0.125):
        moved = True
        while moved:
            moved = False
            for weight, bonus in ((step, 0.0), (-step, 0.0), (0.0, 2 * step), (0.0, -2 * step)):
                trial = make(32, True, best[1] + weight, best[2] + bonus)
                texts = [trial(example.parts[0]) for example in dev]
                rate = metrics.word_errors([example.reference for example in dev], texts).rate
                if rate < best[0]:
                    best, moved = (rate, best[1] + weight, best[2] + bonus), True
    print(
        f"flashlight's weights: lm_weight {best[1] / math.log(10):.3f} of natural logs, word_score {best[2]:.2f}; "
        f"dev WER {best[0]:.2%}"
    )
    return lambda beam, lexicon: make(beam, lexicon, *best[1:])


def _widths(tokens: Tokens, lm: NgramModel, decoding: Decoding, test: Sequence[Example], path: Path) -> None:
    """Errors and time against the width of the beam, as a picture."""
    import matplotlib.pyplot as plt

    widths = [1, 2, 4, 8, 16, 32, 64, 128]
    references = [example.reference for example in test]
    figure, (errors, times) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, model, words in (("without LM", None, None), ("with LM, closed", lm, decoding),
                               ("with LM, open", lm, replace(decoding, unknown=-14.0))):  # fmt: skip
        rates, costs = [], []
        for width in widths:
            decoder = _own(tokens, width, model, words)
            started = time.perf_counter()
            texts = [decoder(example.parts[0]) for example in test]
            costs.append(1e6 * (time.perf_counter() - started) / sum(len(example.parts[0]) for example in test))
            rates.append(100 * metrics.word_errors(references, texts).rate)
        errors.plot(widths, rates, marker="o", label=name)
        times.plot(widths, costs, marker="o", label=name)
        print(
            f"{name}: " + ", ".join(f"{w}: {r:.2f} % {c:.0f} us" for w, r, c in zip(widths, rates, costs, strict=True))
        )
    for axes, label in ((errors, "WER, %"), (times, "microseconds a frame")):
        axes.set(xscale="log", xlabel="beam", ylabel=label, ylim=(0, None))
        axes.set_xticks(widths, widths)
        axes.minorticks_off()
    errors.legend()
    figure.savefig(path, dpi=120)


def _lengths(decoder: Decoder, test: Sequence[Example], shift_s: float, lengths_s: Sequence[int]) -> None:
    """Cost of one search as the audio grows, nothing cut."""
    joined = np.concatenate([example.parts[0] for example in test])
    print("\naudio, decoded in one piece with beam 32 + LM: microseconds a frame")
    for seconds in lengths_s:
        frames = np.resize(joined, (round(seconds / shift_s), joined.shape[1]))
        search = decoder.search()
        started = time.perf_counter()
        search.advance(frames)
        search.hypotheses()
        print(f"{seconds:5d} s  {1e6 * (time.perf_counter() - started) / len(frames):.1f}")


def hotwords(arguments: argparse.Namespace) -> None:
    """Rare words of a test set named as hot words: how many are recovered, and how often they are heard where not said.

    The list is the --words rarest of the references' words of five letters or more, by the language model; each is
    expected in a few utterances and is a temptation in all others.
    """
    lm = NgramModel.load(arguments.lm)
    recognizer = Recognizer(arguments.model, lm=lm)
    test = _examples(recognizer, arguments.manifest, arguments.limit)
    said = sorted({word for example in test for word in example.reference.split() if len(word) >= 5})
    said = [word for word in said if not recognizer.tokens.unknown(word)]
    rarity = {word: lm.unigrams[lm.id(word)] if word in lm else -math.inf for word in said}
    names = sorted(said, key=rarity.__getitem__)[: arguments.words]
    unknown = sum(word not in lm for word in names)
    with_name = [set(example.reference.split()) & set(names) for example in test]
    print(f"{len(names)} words, {unknown} of them unknown to the language model: {', '.join(names[:12])} ...")
    print(f"{sum(map(bool, with_name))} of {len(test)} utterances have one\n")
    print("| weight | recovered | false alarms | WER, utterances with one | WER, the others |\n|---|---|---|---|---|")
    for weight in arguments.weights:
        steer = dict.fromkeys(names, weight) if weight else None
        decoder = Decoder(recognizer.tokens, beam=arguments.beam, lm=lm, decoding=recognizer.decoding, hotwords=steer)
        texts = [(decoder.texts(decoder(example.parts[0]), 1) or (("", 0.0),))[0][0] for example in test]
        right = alarms = total = 0
        for text, names_here in zip(texts, with_name, strict=True):
            heard = set(text.split()) & set(names)
            total, right, alarms = (
                total + len(names_here),
                right + len(heard & names_here),
                alarms + len(heard - names_here),
            )
        rates = [
            metrics.word_errors(*zip(*pairs, strict=True)).rate
            for wanted in (True, False)
            if (
                pairs := [(e.reference, t) for e, t, n in zip(test, texts, with_name, strict=True) if bool(n) == wanted]
            )
        ]
        print(
            f"| {weight:g} | {right} of {total} | {alarms} | " + " | ".join(f"{rate:.2%}" for rate in rates) + " |",
            flush=True,
        )
