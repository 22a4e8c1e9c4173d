"""The tree of spellings, against the plain definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.lm import kneserney
from asr.lm.lexicon import MAX_LETTERS, OUTSIDE, ROOT, Lexicon
from asr.lm.model import NgramModel


@given(words=st.sets(st.text("abcé\u4e2d", min_size=1, max_size=6), min_size=1, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_the_tree_spells_every_word_and_knows_the_best_to_come(words: set[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = rng.permutation(sorted(words)).tolist()
    values = rng.normal(size=len(vocabulary)).astype(np.float32)
    lexicon = Lexicon.of(vocabulary, np.arange(len(vocabulary)) + 3, values)
    assert lexicon.letters == "".join(sorted(set("".join(words))))
    nodes = {"": ROOT}
    for prefix in sorted({word[:length] for word in words for length in range(1, len(word) + 1)}):
        node = nodes[prefix] = lexicon.find(prefix)
        assert lexicon.children[nodes[prefix[:-1]]] <= node < lexicon.children[nodes[prefix[:-1]] + 1]
        assert lexicon.letters[lexicon.letter[node]] == prefix[-1]
        below = [index for index, word in enumerate(vocabulary) if word.startswith(prefix)]
        assert lexicon.best[node] == values[below].max()
        assert lexicon.word[node] == (vocabulary.index(prefix) + 3 if prefix in words else 0)
    assert len(set(nodes.values())) == len(nodes) == len(lexicon) - 1
    assert lexicon.children[OUTSIDE] == lexicon.children[OUTSIDE + 1]
    assert lexicon.find("d") == lexicon.find("aaaaaaa") == OUTSIDE
    assert lexicon.n_words == len(words)
    assert lexicon.has_longer == any(len(word) > 1 for word in words)


def test_what_no_tree_holds() -> None:
    words = ["", "a" * (MAX_LETTERS + 1)]
    lexicon = Lexicon.of(words, np.array([3, 4]), np.zeros(2, np.float32))
    assert (len(lexicon), lexicon.letters, lexicon.n_words, lexicon.find("a")) == (2, "", 0, OUTSIDE)


def test_a_file_has_the_tree(tmp_path: Path) -> None:
    for lines in (["a few words", "a word"], ["w" * 70]):
        model = kneserney.train(lines, order=2)
        model.save(tmp_path / "model.lm")
        found = NgramModel.load(tmp_path / "model.lm").lexicon
        assert found.letters == model.lexicon.letters
        for name in ("children", "letter", "word", "best"):
            np.testing.assert_array_equal(getattr(found, name), getattr(model.lexicon, name), name)
