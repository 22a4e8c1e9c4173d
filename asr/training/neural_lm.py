"""A recurrent language model of words: embedding -> LSTM -> adaptive softmax, trained on lines of text, exported to ONNX.

An n-gram model sees two or three words back; an LSTM sees the whole sentence, and knows that "likes" and "loves" are
alike. It is too slow to ask inside the beam search, but not to choose among the texts that the search ends with:
`asr.rescoring` does that with the file that is written here.

The softmax is what a word model spends its time on: 20 000 words cost four times what the LSTM does. The adaptive softmax
gives the most frequent words, which make up most of any text, an output each, and the rest to a few groups whose words
are only told apart, with fewer and fewer dimensions, where the text has one of them. It is exact: the probabilities of
all words sum to 1.

sources: Mikolov et al. 2010, "Recurrent neural network based language model"; Sundermeyer et al. 2012, "LSTM Neural
         Networks for Language Modeling"; Grave et al. 2017, "Efficient softmax approximation for GPUs".
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from asr import __version__
from asr.errors import AsrError
from asr.kneserney import Text, read
from asr.lm import BOS, EOS, UNK
from asr.training import checkpoint, export
from asr.training.model import Dropout, recurrent

SCHEMA = 1  # of the metadata; `asr.rescoring` refuses a newer one
MAX_WORDS = 100  # of a line; what follows is not learned from, as one endless line would fill the memory
_GROUPS = (0.1, 0.4)  # of the vocabulary: where the groups of the adaptive softmax begin
_WARMUP = 0.02  # of the training
_CHECKPOINT_S = 180.0
_TELL_S = 30.0
_TOLERANCE = 1e-4  # on log-probabilities, absolute and relative


class NeuralLmError(AsrError):
    """A training that cannot start or go on."""


@dataclass(frozen=True, slots=True)
class Settings:
    """vocabulary_size: words with a probability of their own, the most frequent; all others are <unk>.
    alphabet:    characters; a word with any other is not known, however frequent. None for no such limit.
    embedding, hidden: numbers that stand for a word, and cells of the LSTM.
    dropout:     share of the LSTM's inputs and outputs.
    epochs:      passes over the text, whole or not.
    batch_words: words a step, about.
    lr:          the highest learning rate, reached after a short warm-up; a half cosine takes it down to 0.
    bf16:        compute in bfloat16, weights kept in float32; None for where the processor is faster so (4 times).
    """

    vocabulary_size: int = 20_000
    alphabet: str | None = None
    embedding: int = 256
    hidden: int = 512
    dropout: float = 0.1
    epochs: float = 3.0
    batch_words: int = 4096
    lr: float = 2e-3
    clip_norm: float = 1.0
    bf16: bool | None = None
    seed: int = 1


class AdaptiveSoftmax(nn.Module):
    """log p(word | x) = log p(word or its group | x), and for a word in a group + log p(word | its group, x).

    A word's id must be its rank by frequency. The first group holds the words from 0.1 V on, the second those from 0.4 V.
    """

    def __init__(self, size: int, n_words: int) -> None:
        super().__init__()
        cuts = [*sorted({math.ceil(share * n_words) for share in _GROUPS} - {n_words}), n_words]
        self.n_own = cuts[0]  # words that are in no group
        self.bounds = list(pairwise(cuts))
        self.head = nn.Linear(size, self.n_own + len(self.bounds), bias=False)
        self.groups = nn.ModuleList(
            nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, end - start, bias=False))
            for (start, end), rank in zip(self.bounds, (max(1, size >> n) for n in count(1)), strict=False)
        )

    def losses(self, x: Tensor, words: Tensor) -> Tensor:
        """-log p of each of n words, in nats: (n, size), (n,) -> (n,). Only those groups are computed that they are in."""
        wanted = words.clone()
        for index, (start, end) in enumerate(self.bounds):
            wanted[(words >= start) & (words < end)] = self.n_own + index
        # In float32, or under autocast the sums would be rounded to bfloat16.
        losses = nn.functional.cross_entropy(self.head(x).float(), wanted, reduction="none")
        for index, ((start, _), group) in enumerate(zip(self.bounds, self.groups, strict=True)):
            rows = (wanted == self.n_own + index).nonzero()[:, 0]
            within = nn.functional.cross_entropy(group(x[rows]).float(), words[rows] - start, reduction="none")
            losses = losses.index_add(0, rows, within)
        return losses

    def forward(self, x: Tensor) -> Tensor:
        """The log-probabilities of all words, (..., size) -> (..., V): what a graph without branches can do."""
        head = self.head(x).log_softmax(dim=-1)
        parts = [head[..., : self.n_own]]
        for index, group in enumerate(self.groups, self.n_own):
            parts.append(group(x).log_softmax(dim=-1) + head[..., index : index + 1])
        return torch.cat(parts, dim=-1)


class NeuralLm(nn.Module):
    """Word ids -> how probable each was after those before it.

    forward: words (B, L) int64, each row <s>, a sentence's words, </s>, and anything after it
             -> (B, L - 1) float32, natural log p(words[:, i + 1] | words[:, : i + 1]).
    """

    def __init__(self, n_words: int, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, settings.embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = Dropout(settings.dropout)
        self.lstm = recurrent("lstm", settings.embedding, settings.hidden)
        self.projection = nn.Linear(settings.hidden, settings.embedding)
        self.softmax = AdaptiveSoftmax(settings.embedding, n_words)

    def encode(self, words: Tensor) -> Tensor:
        """(L, B) word ids -> (L, B, embedding), what the softmax tells the next word from."""
        x = self.lstm(self.dropout(self.embedding(words)))[0]
        encoded: Tensor = self.projection(self.dropout(x))
        return encoded

    def losses(self, words: Tensor, valid: Tensor) -> Tensor:
        """-log p of the n next words where `valid` (L - 1, B) says so, in nats, as (n,). words: (L, B)."""
        losses: Tensor = self.softmax.losses(self.encode(words[:-1])[valid], words[1:][valid])
        return losses

    def forward(self, words: Tensor) -> Tensor:
        log_probs = self.softmax(self.encode(words[:, :-1].transpose(0, 1)))
        following: Tensor = log_probs.gather(2, words[:, 1:, None].transpose(0, 1))[:, :, 0].transpose(0, 1)
        return following


def train(
    lines: Iterable[str],
    out: Path,
    settings: Settings | None = None,
    *,
    info: Mapping[str, Any] | None = None,
    resume: bool = False,
    int8: bool = True,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Train a model on lines of normalised words and write it as ONNX.

    info:     what the file is to say about its text, such as the normaliser; anything JSON can hold.
    resume:   go on from the checkpoint beside `out` (same name, .safetensors), which is removed at the end. As all that
              is random follows from the seed and the step, the result is that of a training never interrupted.
    int8:     store and multiply the weights in 8 bits.
    progress: is told now and then, one line.
    raises:   LmError if there are no words; NeuralLmError if a checkpoint stands there and is not to be resumed, or is
              of another training, or a loss is not finite; CheckpointError; ExportError.
    """
    settings = settings or Settings()
    tell = progress or (lambda _: None)
    kept = out.with_suffix(".safetensors")
    if kept.exists() and not resume:
        raise NeuralLmError(f"{kept}: holds an unfinished training; go on with --resume, or remove the file")
    text = read(lines, settings.vocabulary_size, settings.alphabet)
    tell(
        f"{text.n_tokens} words in {text.n_lines} lines ({text.n_empty} empty ones skipped); "
        f"{len(text.words) - 3} words known, {text.n_unknown} times another one"
    )
    session = _Session(text, settings)
    if resume and kept.exists():
        session.restore(kept)
    while session.step < session.n_steps:
        session.run(tell)
        session.save(kept)
    card = {
        "schema": SCHEMA,
        "kind": "neural language model",
        "words": text.words,
        "info": {
            **(info or {}),
            "estimator": f"LSTM of {settings.hidden}, adaptive softmax",
            "words": text.n_tokens,
            "unknown_words": text.n_unknown,
            "lines": text.n_lines,
            "minutes": round(session.elapsed_s / 60, 1),
            "loss": round(session.loss, 4),
            "settings": asdict(settings),
        },
        "version": __version__,
    }
    write(session.model, card, out, int8=int8)
    kept.unlink(missing_ok=True)


class _Session:
    """One training in memory: model, optimiser, text and progress."""

    def __init__(self, text: Text, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batches = Batches(text.ids, settings)
        self.n_steps = max(1, round(settings.epochs * len(self.batches)))
        torch.manual_seed(settings.seed)
        self.model = NeuralLm(len(text.words), settings).to(self.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, fused=True)
        self.bf16 = settings.bf16
        if self.bf16 is None:
            self.bf16 = self.device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        self.step = 0
        self.elapsed_s = 0.0
        self.loss = math.log(len(text.words))  # nats a word, a running mean
        self.identity = {"settings": asdict(settings), "text": zlib.crc32(text.ids.tobytes())}

    def run(self, tell: Callable[[str], None]) -> None:
        """Train until the end, or until it is time for a checkpoint."""
        self.model.train()
        started = told = time.monotonic()
        n_words = 0
        while self.step < self.n_steps:
            n_words += self._step()
            now = time.monotonic()
            if now - told >= _TELL_S:
                tell(
                    f"step {self.step} of {self.n_steps}: perplexity {math.exp(self.loss):.1f} in training, "
                    f"{n_words / (now - started):.0f} words/s"
                )
                told = now
            if now - started >= _CHECKPOINT_S:
                break
        self.elapsed_s += time.monotonic() - started

    def _step(self) -> int:
        """One update; returns how many words it learned from."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * _rate(self.step / self.n_steps)
        words, valid = (part.to(self.device) for part in self.batches[self.step])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bool(self.bf16)):
            losses = self.model.losses(words, valid)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        loss = float(losses.detach().mean())
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise NeuralLmError(f"the loss or its gradient is not finite at step {self.step}; lower the learning rate")
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.loss += (loss - self.loss) * max(0.01, 1 / (self.step + 1))
        self.step += 1
        return len(losses)

    def save(self, path: Path) -> None:
        """Write the checkpoint that --resume goes on from."""
        slots = {str(index): tensors for index, tensors in self.optimiser.state_dict()["state"].items()}
        tensors = checkpoint.pack("model", self.model.state_dict()) | checkpoint.pack("optimiser", slots)
        progress = {"step": self.step, "elapsed_s": self.elapsed_s, "loss": self.loss}
        checkpoint.save(path, tensors, {"identity": self.identity, "progress": progress})

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        tensors, state = checkpoint.load(path)
        if state.get("identity") != self.identity:
            raise NeuralLmError(
                f"{path}: expected a training on this text with these settings, got another; "
                "give those of then, or remove the file to start anew"
            )
        checkpoint.load_weights(self.model, checkpoint.unpack("model", tensors), path)
        slots = {int(index): values for index, values in checkpoint.unpack("optimiser", tensors).items()}
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": slots, "param_groups": groups})
        self.step, self.elapsed_s, self.loss = (state["progress"][name] for name in ("step", "elapsed_s", "loss"))


class Batches:
    """The lines of a text in batches of similar lengths, in another order each epoch. batches[step]: words, valid.

    words: (L, B) int64, a column a line: <s>, words, </s>, padding.
    valid: (L - 1, B) bool, whether the next word in `words` is one of the line and not padding.
    len:   batches an epoch.
    """

    def __init__(self, ids: np.ndarray, settings: Settings) -> None:
        self._ids, self._seed = ids, settings.seed
        self._first = np.flatnonzero(ids == BOS)
        lengths = np.diff(self._first, append=len(ids))
        self._lengths = np.minimum(lengths, MAX_WORDS + 2)
        # Equally long lines are shuffled anew each epoch, so that the batches differ but not their number.
        self._cuts = np.flatnonzero(np.diff(np.sort(self._lengths).cumsum() // settings.batch_words)) + 1
        self._epoch, self._plan = -1, [self._first]

    def __len__(self) -> int:
        return len(self._cuts) + 1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(step, len(self))
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, epoch))
            lines = rng.permutation(len(self._first))
            lines = lines[np.argsort(self._lengths[lines], kind="stable")]
            plan = np.split(lines, self._cuts)
            self._epoch, self._plan = epoch, [plan[i] for i in rng.permutation(len(plan))]
        lines = self._plan[index]
        lengths = self._lengths[lines]
        at = np.arange(lengths.max())[:, None]
        inside = at < lengths
        words = np.where(inside, self._ids[np.where(inside, self._first[lines] + at, 0)], EOS)
        return torch.from_numpy(words.astype(np.int64)), torch.from_numpy(inside[1:])


def write(model: NeuralLm, card: Mapping[str, Any], out: Path, *, int8: bool) -> None:
    """Write the model as ONNX: "words" (B, L) int64 -> "log_probs" (B, L - 1) float32, as `NeuralLm.forward` says.

    raises: ExportError if the float graph differs from torch by more than 1e-4, or the file cannot be written.
    """
    model = model.cpu().eval()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the older exporter says that it is
        torch.onnx.export(
            model,
            (torch.full((2, 5), BOS),),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["words"],
            output_names=["log_probs"],
            dynamic_axes={"words": {0: "sentences", 1: "words"}, "log_probs": {0: "sentences", 1: "following"}},
        )
        graph = onnx.load(Path(folder) / "model.onnx")
        _check_parity(model, graph.SerializeToString())
        if int8:
            graph = export.quantised(graph, Path(folder), ["LSTM", "MatMul", "Gemm", "Gather"])
    export.write(graph, {**card, "precision": "int8" if int8 else "float32"}, out)


def _check_parity(model: NeuralLm, data: bytes) -> None:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for shape in ((1, 2), (1, 30), (16, 9), (3, 100)):
        words = rng.integers(UNK, model.embedding.num_embeddings, shape)
        got = session.run(["log_probs"], {"words": words})[0]
        with torch.no_grad():
            expected = model(torch.from_numpy(words)).numpy()
        if got.shape != expected.shape or not np.allclose(got, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
            raise export.ExportError(
                f"expected the exported graph to match torch within {_TOLERANCE} for words of shape {shape}, got another "
                "result; nothing was written: check the versions of torch, onnx and onnxruntime"
            )


def _rate(progress: float) -> float:
    """The learning rate as a share of its peak: linear up, a half cosine down to 0 (Loshchilov & Hutter 2017)."""
    if progress < _WARMUP:
        return max(progress / _WARMUP, 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))
