from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.fusion import Decoding, WordScorer
from asr.errors import LmError, OutputError
from asr.lm import binary
from asr.lm.model import BOS, EOS, SPECIAL_WORDS, UNK, Level, NgramModel
from asr.tokens import Tokens

# three.arpa and four.arpa are Witten-Bell models of thirty short sentences written for this test, some of their n-grams
# pruned, among them suffixes of longer ones as SRILM may; four.arpa has no <unk>. kenlm.json was written by
#
#     import json
#     import kenlm  # 0.3.0
#
#     sentences = open("sentences.txt", encoding="utf-8").read().split("\n")[:-1]
#     scores = {}
#     for name in ("three", "four"):
#         model = kenlm.Model(f"{name}.arpa")
#         scores[name] = [[round(score[0], 5) for score in model.full_scores(sentence)] for sentence in sentences]
#     json.dump({"sentences": sentences, **scores}, open("kenlm.json", "w"), ensure_ascii=False)
DATA = Path(__file__).parents[1] / "data" / "lm"
KENLM = json.loads((DATA / "kenlm.json").read_text(encoding="utf-8"))
LN10 = math.log(10)

Ngram = tuple[int, ...]

SMALL = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.7\t</s>
-0.4\ta\t-0.3
-0.6\tb\t-0.2

\\2-grams:
-0.2\t<s> a\t-0.1
-0.3\ta b\t-0.4
-0.8\tb a
-0.9\tb </s>

\\3-grams:
-0.1\t<s> a b
-0.15\ta b </s>

\\end\\
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.arpa"
    path.write_text(SMALL, encoding="utf-8")
    return path


def log10_scores(model: NgramModel, words: list[str]) -> list[float]:
    state, scores = np.array([model.start]), []
    for word in [*words, "</s>"]:
        log_prob, state = model.score(state, model.ids([word]))
        scores.append(float(log_prob[0]) / LN10)
    return scores


class Slow:
    """The definition, on dictionaries: every n-gram with its log-probability, every context with its back-off."""

    def __init__(self, levels: list[Level]) -> None:
        self.order = len(levels)
        self.log_probs: dict[Ngram, float] = {}
        self.backoffs: dict[Ngram, float] = {}
        for level in levels:
            for i, ngram in enumerate(map(tuple, level.ngrams.tolist())):
                self.log_probs[ngram] = float(level.log_probs[i])
                if level.backoffs is not None:
                    self.backoffs[ngram] = float(level.backoffs[i])
        self.log_probs[(BOS,)] = -99 * LN10

    def score(self, context: Ngram, word: int) -> float:
        if (*context, word) in self.log_probs:
            return self.log_probs[(*context, word)]
        return self.backoffs.get(context, 0.0) + self.score(context[1:], word)

    def sentence(self, words: list[int], bos: bool = True) -> list[float]:
        history, scores = (BOS,) if bos else (), []
        for word in words:
            scores.append(self.score(history[max(0, len(history) - self.order + 1) :], word))
            history = (*history, word)
        return scores


def vocabulary(n_words: int) -> list[str]:
    return [*SPECIAL_WORDS, *(f"w{i}" for i in range(3, n_words))]


def random_levels(rng: np.random.Generator, n_words: int, order: int, per_level: int) -> list[Level]:
    """A model of any shape: each n-gram extends one of the level below, whose suffix may or may not be there."""
    ngrams, levels = np.arange(n_words)[:, None], []
    for k in range(order):
        if k:
            grown = np.hstack(
                [ngrams[rng.integers(0, len(ngrams), per_level)], rng.integers(0, n_words, (per_level, 1))]
            )
            ngrams = np.unique(grown, axis=0)
        shuffled = rng.permutation(ngrams)
        log_probs = -rng.exponential(2.0, len(shuffled)).astype(np.float32)
        backoffs = rng.normal(-0.5, 0.5, len(shuffled)).astype(np.float32) if k < order - 1 else None
        levels.append(Level(shuffled, log_probs, backoffs))
    return levels


def random_model(seed: int, n_words: int = 9, order: int = 4, per_level: int = 30) -> NgramModel:
    return NgramModel.from_levels(
        vocabulary(n_words), random_levels(np.random.default_rng(seed), n_words, order, per_level)
    )


def assert_equal(found: NgramModel, expected: NgramModel) -> None:
    """Also where they differ in no score: the arrays are one to one with the n-grams, so nothing else can be compared."""
    assert (found.words, found.counts, found.start) == (expected.words, expected.counts, expected.start)
    for name in ("keys", "suffixes", "log_probs", "backoffs", "last_words", "children", "longer_suffixes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


# Scores


@pytest.mark.parametrize("name", ["three", "four"])
@pytest.mark.parametrize("ending", [".arpa", ".arpa.gz", ".lm"])
def test_scores_are_those_of_kenlm(name: str, ending: str, tmp_path: Path) -> None:
    model = NgramModel.load(DATA / f"{name}.arpa")
    if ending == ".lm":
        model.save(tmp_path / "model.lm")
        model = NgramModel.load(tmp_path / "model.lm")
    elif ending == ".arpa.gz":
        model.write_arpa(tmp_path / "model.arpa.gz")
        model = NgramModel.load(tmp_path / "model.arpa.gz")
    assert (model.unigrams[UNK] / LN10 > -50) == (name == "three")
    for sentence, expected in zip(KENLM["sentences"], KENLM[name], strict=True):
        np.testing.assert_allclose(log10_scores(model, sentence.split()), expected, atol=1e-4, err_msg=sentence)


def test_back_off_by_hand(small: Path) -> None:
    model = NgramModel.load(small)
    assert (model.order, model.counts, model.words) == (3, (5, 4, 2), ["<unk>", "<s>", "</s>", "a", "b"])
    # <s> a b </s>: listed as bigram, trigram, trigram.
    np.testing.assert_allclose(log10_scores(model, ["a", "b"]), [-0.2, -0.1, -0.15], atol=1e-6)
    # <s> b: not listed, -0.5 - 0.6. "<s> b" is no context, so b a: -0.8. b a </s>: "b a" has back-off 0, "a" -0.3.
    np.testing.assert_allclose(log10_scores(model, ["b", "a"]), [-1.1, -0.8, -0.3 - 0.7], atol=1e-6)
    # An unknown word leaves no context but its own, which has no back-off.
    np.testing.assert_allclose(log10_scores(model, ["x", "b"]), [-0.5 - 1.0, -0.6, -0.9], atol=1e-6)
    # All back-offs of a chain are paid: (a b) -0.4, (b) -0.2, then the unigram.
    assert model.log_prob(["a", "b", "b"], bos=False, eos=False) / LN10 == pytest.approx(-0.4 - 0.3 - 0.4 - 0.2 - 0.6)


def test_words_and_ids(small: Path) -> None:
    model = NgramModel.load(small)
    assert (model.id("a"), model.id("x"), model.id("</s>")) == (3, UNK, EOS)
    assert model.ids(["b", "x", "a"]).tolist() == [4, UNK, 3]
    assert "a" in model
    assert "x" not in model
    assert repr(model) == "<NgramModel: 5 1-grams, 4 2-grams, 2 3-grams>"
    np.testing.assert_allclose(model.unigrams / LN10, [-1.0, -99, -0.7, -0.4, -0.6], rtol=1e-6)


def test_probabilities_sum_to_one_after_every_context() -> None:
    model = NgramModel.load(DATA / "three.arpa")
    words = np.arange(model.counts[0])
    states = np.arange(1 + sum(model.counts[:-1]))
    log_probs, _ = model.score(np.repeat(states, len(words)), np.tile(words, len(states)))
    np.testing.assert_allclose(np.exp(log_probs).reshape(len(states), -1).sum(axis=1), 1.0, atol=1e-4)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), order=st.integers(1, 5), n_words=st.integers(3, 8), per_level=st.integers(1, 60))
def test_score_equals_the_slow_definition(seed: int, order: int, n_words: int, per_level: int) -> None:
    rng = np.random.default_rng(seed)
    levels = random_levels(rng, n_words, order, per_level)
    model, slow = NgramModel.from_levels(vocabulary(n_words), levels), Slow(levels)
    sentences = rng.integers(0, n_words, (8, 12))
    for bos in (True, False):
        states = np.full(8, model.start if bos else 0)
        found = []
        for words in sentences.T:
            one_by_one = list(map(model.score_word, states.tolist(), words.tolist()))
            log_probs, states = model.score(states, words)
            np.testing.assert_allclose([log_prob for log_prob, _ in one_by_one], log_probs, atol=1e-5)
            assert [state for _, state in one_by_one] == states.tolist()
            assert (str(log_probs.dtype), str(states.dtype)) == ("float64", "int64")
            found.append(log_probs)
        expected = [slow.sentence(sentence, bos) for sentence in sentences.tolist()]
        np.testing.assert_allclose(np.array(found).T, expected, atol=1e-4)


def test_no_words_no_scores() -> None:
    log_probs, states = random_model(0).score(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (log_probs.shape, states.shape) == ((0,), (0,))


def test_equal_histories_share_a_state(small: Path) -> None:
    model = NgramModel.load(small)
    _, states = model.score(np.full(4, model.start), model.ids(["x", "y", "b", "a"]))
    assert states[0] == states[1] == 1 + UNK
    assert states[2] == 1 + model.id("b")  # "<s> b" is not listed
    assert states[3] > model.counts[0]  # "<s> a" is


# Sentences


def test_perplexity_is_the_sum_of_sentences() -> None:
    model = NgramModel.load(DATA / "three.arpa")
    sentences = [sentence.split() for sentence in KENLM["sentences"]]
    found = model.perplexity(KENLM["sentences"])
    scores = [log10_scores(model, sentence) for sentence in sentences]
    tokens = [word for sentence in sentences for word in (*sentence, "</s>")]
    known = [score for score, token in zip(itertools.chain(*scores), tokens, strict=True) if token in model]
    assert found.sentences == len(sentences)
    assert found.words == sum(map(len, sentences))
    assert found.oovs == len(tokens) - len(known) > 5
    assert found.log_prob == pytest.approx(sum(model.log_prob(sentence) for sentence in sentences))
    assert found.log_prob == pytest.approx(LN10 * sum(map(sum, scores)))
    assert found.including_oovs == pytest.approx(10 ** -np.mean(list(itertools.chain(*scores))))
    assert found.excluding_oovs == pytest.approx(10 ** -np.mean(known))


def test_perplexity_by_hand(small: Path) -> None:
    found = NgramModel.load(small).perplexity(iter(["a b\n", "x\n", "\n"]))
    assert (found.words, found.sentences, found.oovs) == (3, 3, 1)
    known = -0.2 - 0.1 - 0.15 - 0.7 - (0.5 + 0.7)  # </s> after x, and in the empty sentence
    assert found.log_prob == pytest.approx(LN10 * (known - 0.5 - 1.0), rel=1e-6)
    assert found.including_oovs == pytest.approx(10 ** ((1.5 - known) / 6))
    assert found.excluding_oovs == pytest.approx(10 ** (-known / 5))


def test_perplexity_of_many_batches(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NgramModel.load(small)
    whole = model.perplexity(KENLM["sentences"])
    monkeypatch.setattr("asr.lm.model.BATCH", 3)
    pieces = model.perplexity(KENLM["sentences"])
    assert pieces.log_prob == pytest.approx(whole.log_prob)
    assert (pieces.words, pieces.sentences, pieces.oovs) == (whole.words, whole.sentences, whole.oovs)


def test_perplexity_of_nothing(small: Path) -> None:
    model = NgramModel.load(small)
    assert model.perplexity([]).including_oovs == 1.0
    assert model.log_prob([], eos=False) == 0.0


# Files


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["model.lm", "model.arpa", "model.arpa.gz"])
def test_round_trip(order: int, name: str, tmp_path: Path) -> None:
    model = random_model(order, order=order)
    model.info["source"] = "chance"
    path = tmp_path / "new folder" / name
    (model.save if name == "model.lm" else model.write_arpa)(path)
    found = NgramModel.load(path)
    assert_equal(found, model)
    assert found.info == (model.info if name == "model.lm" else {})
    assert [file.name for file in path.parent.iterdir()] == [name]
    again = tmp_path / name
    (found.save if name == "model.lm" else found.write_arpa)(again)
    assert again.read_bytes() == path.read_bytes()


def test_arpa_to_binary_to_arpa(tmp_path: Path) -> None:
    for name in ("three", "four"):
        read = NgramModel.load(DATA / f"{name}.arpa")
        read.save(tmp_path / "model.lm")
        NgramModel.load(tmp_path / "model.lm").write_arpa(tmp_path / "model.arpa")
        assert_equal(NgramModel.load(tmp_path / "model.arpa"), read)


def test_large_vocabulary_round_trip(tmp_path: Path) -> None:
    model = random_model(1, n_words=(1 << 16) + 2, order=2, per_level=500)  # ids of four bytes
    model.save(tmp_path / "model.lm")
    assert_equal(NgramModel.load(tmp_path / "model.lm"), model)


def test_a_level_may_be_empty(tmp_path: Path) -> None:
    levels = [*random_levels(np.random.default_rng(0), 5, 2, 6), Level(np.zeros((0, 3), int), np.zeros(0))]
    model = NgramModel.from_levels(vocabulary(5), levels)
    for name in ("model.lm", "model.arpa"):
        (model.save if name == "model.lm" else model.write_arpa)(tmp_path / name)
        assert_equal(NgramModel.load(tmp_path / name), model)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace("\t", "  \t "),
        lambda text: "made by hand\n\n" + text + "anything\n",
        lambda text: text.replace("ngram 1=5", "ngram  1 = 5"),
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: text.replace("a b </s>", "a b </s>\t0.0"),
        lambda text: text.replace("-99", "0"),  # as KenLM's lmplz writes <s>
    ],
)
def test_arpa_dialects(change: Callable[[str], str], small: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.arpa"
    path.write_bytes(change(SMALL).encode())
    assert_equal(NgramModel.load(path), NgramModel.load(small))


def test_words_may_hold_any_white_space_but_ascii(small: Path) -> None:
    small.write_text(
        SMALL.replace("a\t", "ä\u00a0\u2028\t").replace("a b", "ä\u00a0\u2028 b").replace("b a", "b ä\u00a0\u2028")
    )
    assert NgramModel.load(small).words[3] == "ä\u00a0\u2028"


def test_arpa_without_unk(small: Path) -> None:
    small.write_text(SMALL.replace("-1.0\t<unk>\n", "").replace("1=5", "1=4"))
    model = NgramModel.load(small)
    assert model.words[:3] == ["<unk>", "<s>", "</s>"]
    assert model.unigrams[UNK] / LN10 == pytest.approx(-100)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("ngram 1=5", "ngram 1=6", 13, "expected 6 1-grams as .* got 5"),
        ("ngram 2=4", "ngram 2=3", 17, "expected 3 2-grams as .* got another"),
        ("ngram 3=2", "ngram 3=3", 23, "expected 3 3-grams as .* got 2"),
        ("ngram 1=5", "ngram 0=5", 2, "expected the count of 1-grams"),
        ("ngram 1=5", "ngram -1=5", 2, "expected the count of 1-grams"),
        ("ngram 2=4", "ngram 3=4", 3, "expected the count of 2-grams"),
        ("ngram 2=4", "ngram 2=-4", 3, "expected a count such as"),
        ("ngram 1=5", "ngram 1=99999999999", 2, "expected at most 10000000 words"),
        ("ngram 3=2", "ngram 3=99999999999", 4, "2147483646 n-grams"),
        ("ngram 3=2\n", "".join(f"ngram {k}=0\n" for k in range(3, 12)), 12, "at most 10-grams"),
        ("ngram 1=5\nngram 2=4\nngram 3=2\n", "", 3, "expected a count such as"),
        ("\\2-grams:", "\\3-grams:", 13, r"expected \\2-grams:, got '\\\\3-grams:'"),
        ("\\3-grams:\n-0.1\t<s> a b\n-0.15\ta b </s>\n\n", "", 19, r"expected \\3-grams:, got '\\\\end\\\\'"),
        ("\\end\\", "\\4-grams:", 23, r"expected \\end\\"),
        ("\\end\\\n", "", 22, "cut short"),
        ("-0.8\tb a", "-0.8\ta b", 16, "expected each 2-gram once"),
        ("-1.0\t<unk>", "-1.0\tb", 11, "expected each 1-gram once"),
        ("-0.8\tb a", "-0.8\tb c", 16, "expected the words of a 2-gram to be 1-grams, 'c' is none"),
        ("-0.8\tb a", "-0.8\tb", 16, "expected a log-probability, 2 words"),
        ("-0.8\tb a", "-0.8\tb a 0 0", 16, "expected a log-probability, 2 words"),
        ("-0.8\tb a", "-x\tb a", 16, "expected a number"),
        ("-0.8\tb a", "-0.8\tb a\tb", 16, "expected a number"),
        ("-0.8\tb a", "nan\tb a", 16, "expected a finite log-probability"),
        ("-0.8\tb a", "-inf\tb a", 16, "expected a finite log-probability"),
        ("-0.8\tb a", "0.1\tb a", 16, "log-probability of at most 0"),
        ("-0.8\tb a", "-0.8\tb a\tinf", 16, "expected a finite back-off"),
        ("-0.8\tb a", "-0.8\tb a\t1e39", 16, "expected a finite back-off"),
        ("-0.1\t<s> a b", "-0.1\t<s> b a", 20, "expected its first 2 words to be a 2-gram"),
        ("-0.1\t<s> a b", "-0.1\t<s> a b\t-1", 20, "expected no back-off"),
        ("-0.7\t</s>", "-0.7\tc", 13, "expected </s> among the 1-grams"),
        ("-0.6\tb", "-0.6\t\udcff", 11, "expected UTF-8, got byte 0xff"),
        ("-0.8\tb a", "-0.8\tb \udcff", 16, "expected UTF-8, got byte 0xff"),
        ("-0.8\tb a", "-0.8\tb a" + " " * (1 << 20), 16, "expected lines of at most 1048576 bytes"),
        (SMALL, "", 1, r"without a line \\data\\"),
        (SMALL, "two\nlines", 2, r"without a line \\data\\"),
        (SMALL, "\\data\\", 1, "cut short"),
    ],
)
def test_bad_arpa_names_the_line(old: str, new: str, line: int, message: str, small: Path) -> None:
    assert old in SMALL
    small.write_bytes(SMALL.replace(old, new, 1).encode(errors="surrogateescape"))
    with pytest.raises(LmError, match=rf"small\.arpa:{line}: .*{message}"):
        NgramModel.load(small)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed(small: Path, compress: Callable[[bytes], bytes]) -> None:
    plain = NgramModel.load(small)
    packed = compress(SMALL.encode())
    small.write_bytes(packed)
    assert NgramModel.load(small).counts == plain.counts
    for data in (packed[: len(packed) // 2], packed[:20] + bytes(20) + packed[40:]):
        small.write_bytes(data)
        with pytest.raises(LmError, match="damaged or cut short"):
            NgramModel.load(small)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LmError, match="no such language model"):
        NgramModel.load(tmp_path / "none.arpa")
    with pytest.raises(LmError, match="cannot be read"):
        NgramModel.load(tmp_path)
    (tmp_path / "file").touch()
    for write in (random_model(0).save, random_model(0).write_arpa):
        with pytest.raises(OutputError, match="expected a folder to write to"):
            write(tmp_path / "file" / "model")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "model.arpa", random_model(0)
    path.write_text("old")

    def fail(*_: object) -> list[str]:
        raise OSError("disk full")

    monkeypatch.setattr(model, "word_ids", fail)
    with pytest.raises(OutputError, match="disk full"):
        model.write_arpa(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# The binary file, damaged


def parts(path: Path) -> tuple[dict, bytes, list]:  # type: ignore[type-arg]
    """Header, bytes and sections of a binary file."""
    data = path.read_bytes()
    size = struct.unpack_from("<8sII", data)[2]
    header = json.loads(data[16 : 16 + size])
    return header, data, binary._sections(data[8], size, header)


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.lm"
    random_model(0).save(path)
    _, data, sections = parts(path)
    ends = [8, 12, 16, 30, *(at for section in sections for at in (section.offset, section.end - 1))]
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(LmError, match="expected"):
            NgramModel.load(path)
    path.write_bytes(data + b"\n")
    with pytest.raises(LmError, match=f"expected {len(data)} bytes, got {len(data) + 1}"):
        NgramModel.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [10**7, 10**9, 10**9]}, "expected .* bytes with its log_probs"),
        ({"counts": [10**7, 2**31]}, "expected counts"),
        ({"counts": [9] * 11}, "expected counts"),
        ({"counts": []}, "expected counts"),
        ({"counts": [2]}, "expected counts"),
        ({"counts": [9, -1]}, "expected counts"),
        ({"counts": [9, True]}, "expected counts"),
        ({"counts": [9.0]}, "expected counts"),
        ({"counts": "9"}, "expected counts"),
        ({"vocabulary_bytes": None}, "expected counts"),
        ({"vocabulary_bytes": -1}, "expected counts"),
        ({"info": None}, "expected counts"),
        ({"spellings": 1}, "expected counts"),
        ({"spellings": 10**9}, "expected .* bytes with its spelling_children"),
        ({"letters": None}, "expected counts"),
        ({"letters": ["w"]}, "expected counts"),
    ],
)
def test_headers_that_lie(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.lm"
    random_model(0).save(path)
    header, data, _ = parts(path)
    encoded = json.dumps(header | change).encode()
    path.write_bytes(struct.pack("<8sII", data[:8], 2, len(encoded)) + encoded + data[16:])
    with pytest.raises(LmError, match=message):
        NgramModel.load(path)


def test_other_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.lm"
    random_model(0).save(path)
    magic = path.read_bytes()[:8]
    for version, size, text, message in [
        (0, 2, b"{}", "expected version 1 to 2 of the file, got 0"),
        (3, 2, b"{}", "expected version 1 to 2 of the file, got 3"),
        (2, 1 << 30, b"{}", "expected a header of at most"),
        (1, 2, b"[]", "expected a header of JSON"),
        (1, 3, b"{a}", "expected a header of JSON"),
        (1, 90000, b"[" * 90000, "expected a header of JSON"),
        (1, 2, b"{}", "expected counts"),
        (2, 2, b"{}", "expected counts"),
        (1, 1, b"\xff", "expected a header of JSON"),
    ]:
        path.write_bytes(struct.pack("<8sII", magic, version, size) + text)
        with pytest.raises(LmError, match=message):
            NgramModel.load(path)


@pytest.mark.parametrize(
    ("section", "index", "value", "message"),
    [
        ("log_probs", 5, math.nan, "expected log-probabilities"),
        ("log_probs", 5, 0.1, "expected log-probabilities"),
        ("backoffs", 5, math.inf, "expected finite back-offs"),
        ("words", 3, 9, "expected word ids below 9"),
        ("children", 0, 0, "expected the words as children of the root"),
        ("children", 1, 9, "expected 9 1-grams, got 8"),
        ("children", 5, 2**32 - 1, "expected the children of n-grams in order"),
        ("children", -1, 900, "expected 30 4-grams, got .* below the 3-grams"),
        ("suffixes", 0, -1, "expected the suffixes of 3-grams to be shorter"),
        ("suffixes", 0, 0, "expected the suffixes of 3-grams to be shorter"),
        ("suffixes", -1, 10**6, "expected the suffixes of 3-grams to be shorter"),
        ("vocabulary", 0, 0xFF, "expected 9 words of UTF-8, got something else"),
        ("vocabulary", 7, ord("\n"), "expected 9 words of UTF-8, got 10"),
        ("vocabulary", 1, ord("U"), "expected a vocabulary that starts with"),
        ("spelling_children", 0, 0, "expected a tree of spellings"),
        ("spelling_children", 3, 99, "expected a tree of spellings"),
        ("spelling_children", -1, 99, "expected a tree of spellings"),
        ("spelling_words", 3, 9, "expected a tree of spellings"),
        ("spelling_best", 3, math.nan, "expected a tree of spellings"),
        ("spelling_best", 3, math.inf, "expected a tree of spellings"),
        ("spelling_letters", 3, 99, "expected a tree of spellings"),
    ],
)
def test_arrays_that_lie(section: str, index: int, value: float, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.lm"
    random_model(0).save(path)
    _, data, sections = parts(path)
    place = next(one for one in sections if one.name == section)
    changed = bytearray(data)
    np.frombuffer(changed, place.dtype, place.count, place.offset)[index] = value
    path.write_bytes(changed)
    with pytest.raises(LmError, match=f"model.lm: .*{message}"):
        NgramModel.load(path)


def test_a_word_that_stands_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "model.lm"
    random_model(0).save(path)
    path.write_bytes(path.read_bytes()[:-1] + b"7")
    with pytest.raises(LmError, match="expected each word once"):  # where words are asked for
        NgramModel.load(path).id("w7")


def test_files_of_version_1(tmp_path: Path) -> None:
    old, new = NgramModel.load(DATA / "version1.lm"), NgramModel.load(DATA / "four.arpa")
    assert_equal(old, new)
    assert old.info == {"source": "four.arpa"}
    old.save(tmp_path / "model.lm")
    new.info["source"] = "four.arpa"
    new.save(tmp_path / "new.lm")
    assert (tmp_path / "model.lm").read_bytes() == (tmp_path / "new.lm").read_bytes()


@settings(max_examples=200)
@given(data=st.data())
def test_any_damaged_byte_is_refused_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lm") / "model.lm"
    version = data.draw(st.sampled_from([1, 2]))
    if version == 1:
        path.write_bytes((DATA / "version1.lm").read_bytes())
    else:
        random_model(0).save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        model = NgramModel.load(path)
    except LmError:
        return
    states = np.full(9, model.start)
    for _ in range(5):
        log_probs, states = model.score(states, np.arange(9))
        assert np.isfinite(log_probs).all()
        for word, state in enumerate(states.tolist()):
            assert math.isfinite(model.score_word(state, word)[0])
    scorer = WordScorer(model, Tokens.of(" abcdefghijklmnopqrstuvwxyz0123456789"), Decoding())
    states = np.array([scorer.start])
    for _ in range(5):
        states = np.unique(np.concatenate([scorer.advance(states, np.full(len(states), i)) for i in range(1, 38)]))[:99]
        assert len(scorer.scores(states, np.arange(1, 38)))


# from_levels


def unigrams(n_words: int) -> Level:
    return Level(np.arange(n_words)[:, None], np.full(n_words, -1.0), np.zeros(n_words))


def bigrams(*ngrams: tuple[int, int], log_prob: float = -1.0) -> Level:
    return Level(np.array(ngrams), np.full(len(ngrams), log_prob))


@pytest.mark.parametrize(
    ("words", "levels", "message"),
    [
        (["a", "b", "c"], [unigrams(3)], "expected a vocabulary that starts with <unk>"),
        ([*vocabulary(4), "w3"], [unigrams(5)], "expected each word once"),
        ([*vocabulary(4), "a b"], [unigrams(5)], "without white space, got 'a b'"),
        ([*vocabulary(4), ""], [unigrams(5)], "without white space, got ''"),
        ([*vocabulary(4), "a\n"], [unigrams(5)], r"without white space, got 'a\\n'"),
        ([*vocabulary(4), "\ud800"], [unigrams(5)], "surrogate"),
        (vocabulary(4), [], "an order of 1 to 10"),
        (vocabulary(4), [unigrams(3)], "expected each word as a 1-gram, 'w3' is none"),
        (vocabulary(4), [unigrams(5)], "1-gram '#4': expected word ids from 0 to 3"),
        (
            vocabulary(3),
            [Level(np.arange(3)[:, None], np.zeros(3), np.ones(3))],
            "1-gram '<unk>': expected no back-off for a 1-gram, the longest",
        ),
        (vocabulary(4), [unigrams(4), unigrams(4)], r"expected 2-grams \(n, 2\)"),
        (vocabulary(4), [unigrams(4), bigrams((3, 4))], "2-gram 'w3 #4': expected word ids"),
        (vocabulary(4), [unigrams(4), bigrams((3, 3), (3, 2), (3, 3))], "2-gram 'w3 w3': expected each 2-gram once"),
        (vocabulary(4), [unigrams(4), bigrams((3, 3), log_prob=1.0)], "2-gram 'w3 w3': expected a finite log-prob"),
        (
            vocabulary(4),
            [unigrams(4), bigrams((1, 3)), Level(np.array([[3, 3, 2]]), np.array([-1.0]))],
            "3-gram 'w3 w3 </s>': expected its first 2 words to be a 2-gram",
        ),
    ],
)
def test_levels_that_make_no_model(words: list[str], levels: list[Level], message: str) -> None:
    with pytest.raises(LmError, match=message):
        NgramModel.from_levels(words, levels)


@pytest.mark.parametrize("info", [{"a": {1, 2}}, {"a": math.nan}, {"a": "x" * (1 << 20)}])
def test_info_that_a_file_cannot_hold(info: dict[str, object], tmp_path: Path) -> None:
    model = NgramModel.from_levels(vocabulary(3), [unigrams(3)], info)
    with pytest.raises(LmError, match="expected an info"):
        model.save(tmp_path / "model.lm")
    assert not list(tmp_path.iterdir())
