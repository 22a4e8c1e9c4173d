"""Training of a recurrent language model of words: embedding -> LSTM -> adaptive softmax, from lines of text to ONNX.

The softmax is what a word model spends its time on: 20,000 words cost four times what the LSTM does. The adaptive softmax
gives the most frequent words an output each, and the rest to groups whose words are told apart, with fewer dimensions, only
where the text has one of them. It is exact: the probabilities of all words sum to 1.

sources: Mikolov et al. 2010, "Recurrent neural network based language model"; Sundermeyer et al. 2012, "LSTM Neural Networks
         for Language Modeling"; Grave et al. 2017, "Efficient softmax approximation for GPUs".
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from asr import __version__
from asr.errors import TrainingError, number_of
from asr.lm.kneserney import Text, read
from asr.lm.model import BOS, EOS
from asr.lm.neural import KIND, SCHEMA, NeuralLm
from asr.training import checkpoint, config, export, graph, launch, schedule

MAX_WORDS = 100  # of a line; what follows is not learned from, as one endless line would fill the memory
_GROUPS = (0.1, 0.4)  # of the vocabulary: where the groups of the adaptive softmax begin
SCHEDULE = config.Optimiser(
    schedule="cosine", warmup=0.02, final=0.0
)  # of the learning rate; its peak is that of Settings
_CHECKPOINT_S = 180.0
_TELL_S = 30.0
_QUANTISED = ("LSTM", "MatMul", "Gather")  # the embedding is two thirds of the weights
_TOLERANCE = 1e-4  # on log-probabilities, absolute and relative


@dataclass(frozen=True, slots=True)
class Settings:
    """vocabulary_size: words with a probability of their own, the most frequent; all others are <unk>.
    alphabet:    characters; a word with any other is not known, however frequent. None for no such limit.
    embedding, hidden: numbers that stand for a word, and cells of the LSTM.
    dropout:     share of the LSTM's inputs and outputs.
    epochs:      passes over the text, whole or not.
    batch_words: words a step, about.
    lr:          the highest learning rate, reached after a short warm-up; a half cosine takes it down to 0.
    """

    vocabulary_size: int = 20_000
    alphabet: str | None = None
    embedding: int = 256
    hidden: int = 512
    dropout: float = 0.1
    epochs: float = 1.0
    batch_words: int = 4096
    lr: float = 2e-3
    clip_norm: float = 1.0
    seed: int = 1


class Network(nn.Module):
    """The language model. Ids of words are their ranks by frequency, as the adaptive softmax wants them."""

    def __init__(self, n_words: int, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, settings.embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(settings.dropout)
        self.lstm = nn.LSTM(settings.embedding, settings.hidden)
        self.projection = nn.Linear(settings.hidden, settings.embedding)
        cutoffs = sorted({math.ceil(share * n_words) for share in _GROUPS} - {n_words})
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(settings.embedding, n_words, cutoffs, div_value=2.0)

    def losses(self, words: Tensor, valid: Tensor) -> Tensor:
        """-log p, in nats, of the n next words where `valid` (L - 1, B) says so, as (n,). words: (L, B)."""
        heard = self.lstm(self.dropout(self.embedding(words[:-1])))[0]
        log_probs: Tensor = self.softmax(self.projection(self.dropout(heard))[valid], words[1:][valid]).output
        return -log_probs

    def forward(self, word: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: (n,) ids and (2, n, H) states -> (n, V) natural log p of the next word, and the next states."""
        heard, (h, c) = self.lstm(self.embedding(word)[None], (state[:1], state[1:]))
        x = self.projection(heard)
        head = self.softmax.head(x).log_softmax(dim=2)
        parts = [head[..., : self.softmax.shortlist_size]]
        for index, group in enumerate(self.softmax.tail, self.softmax.shortlist_size):
            parts.append(group(x).log_softmax(dim=2) + head[..., index : index + 1])
        return torch.cat(parts, dim=2)[0], torch.cat([h, c])


def train(
    lines: Iterable[str],
    out: Path,
    settings: Settings | None = None,
    *,
    info: Mapping[str, Any] | None = None,
    resume: bool = False,
    int8: bool = True,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] | None = None,
) -> bool:
    """Train a model on lines of normalised words and write it as ONNX, on a GPU where there is one; whether it is finished.

    info:     what the file is to say about its text, such as the normaliser; anything JSON can hold.
    resume:   go on from the checkpoint beside `out` (same name, .safetensors), which is removed at the end. All that is
              random follows from the seed and the step.
    int8:     store and multiply the weights in 8 bits.
    stop:     asked after each step; if so, a checkpoint is all that is written.
    progress: is told now and then, one line.
    raises:   LmError if there are no words; TrainingError if a checkpoint stands there and is not to be resumed, or is of
              another training, or a loss is not finite; CheckpointError; OutputError.
    """
    settings = settings or Settings()
    tell = progress or (lambda _: None)
    kept = out.with_suffix(".safetensors")
    if kept.exists() and not resume:
        raise TrainingError(f"{kept}: holds an unfinished training; go on with --resume, or remove the file")
    launch.shield_from_signals()
    text = read(lines, settings.vocabulary_size, settings.alphabet)
    tell(
        f"{number_of(text.n_tokens, 'word')} in {number_of(text.n_lines, 'line')}; "
        f"{len(text.words) - 3} words known, {text.n_unknown} times others"
    )
    session = _Session(text, settings)
    if resume and kept.exists():
        session.restore(kept)
    while session.step < session.n_steps:
        session.run(tell, stop)
        session.save(kept)
        if stop():
            return False
    told = {"estimator": f"LSTM of {settings.hidden}", "words": text.n_tokens, "unknown_words": text.n_unknown}
    told |= {"lines": text.n_lines, "minutes": round(session.elapsed_s / 60, 1), "loss": round(session.loss, 4)}
    write(session.network, text.words, {**(info or {}), **told, "settings": asdict(settings)}, out, int8=int8)
    kept.unlink(missing_ok=True)
    return True


class _Session:
    """One training in memory: network, optimiser, text and progress."""

    def __init__(self, text: Text, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batches = Batches(text.ids, settings)
        self.n_steps = max(1, round(settings.epochs * len(self.batches)))
        torch.manual_seed(settings.seed)
        self.network = Network(len(text.words), settings).to(self.device)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.lr, fused=True)
        self.step = 0
        self.elapsed_s = 0.0
        self.loss = math.log(len(text.words))  # nats a word, a running mean
        self.identity = {"settings": asdict(settings), "text": zlib.crc32(text.ids.tobytes())}

    def run(self, tell: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Train until the end, or until it is time for a checkpoint or to stop."""
        self.network.train()
        started = told = time.monotonic()
        n_words = 0
        while self.step < self.n_steps:
            n_words += self._update()
            now = time.monotonic()
            if now - told >= _TELL_S:
                perplexity, speed = math.exp(self.loss), n_words / (now - started)
                left_s = (now - started) / n_words * (self.n_steps - self.step) * self.settings.batch_words
                tell(
                    f"step {self.step} of {self.n_steps}: perplexity {perplexity:.1f} in training, {speed:.0f} words/s, "
                    f"{left_s / 60:.0f} minutes left"
                )
                told = now
            if now - started >= _CHECKPOINT_S or stop():
                break
        self.elapsed_s += time.monotonic() - started

    def _update(self) -> int:
        """Returns how many words it learned from."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * schedule.rate(SCHEDULE, self.step / self.n_steps)
        words, valid = (part.to(self.device) for part in self.batches[self.step])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = self.network.losses(words, valid)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        loss = float(losses.detach().mean())
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise TrainingError(f"the loss or its gradient is not finite at step {self.step}; lower the learning rate")
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.loss += (loss - self.loss) * max(0.01, 1 / (self.step + 1))
        self.step += 1
        return len(losses)

    def save(self, path: Path) -> None:
        """Write the checkpoint that --resume goes on from."""
        slots = {str(index): tensors for index, tensors in self.optimiser.state_dict()["state"].items()}
        tensors = checkpoint.pack("model", self.network.state_dict()) | checkpoint.pack("optimiser", slots)
        progress = {"step": self.step, "elapsed_s": self.elapsed_s, "loss": self.loss}
        checkpoint.save(path, tensors, {"identity": self.identity, "progress": progress})

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        tensors, state = checkpoint.load(path)
        if state.get("identity") != self.identity:
            raise TrainingError(
                f"{path}: expected a training on this text with these settings, got another; "
                "give those of then, or remove the file to start anew"
            )
        checkpoint.load_weights(self.network, checkpoint.unpack("model", tensors), path)
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
        self._lengths = np.minimum(np.diff(self._first, append=len(ids)), MAX_WORDS + 2)
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


def write(network: Network, words: list[str], info: Mapping[str, Any], out: Path, *, int8: bool) -> None:
    """Write the network's step (`Network.forward`) as ONNX: "word", "state" -> "log_probs", "next_state".

    raises: TrainingError if the float graph differs from torch by more than 1e-4; OutputError.
    """
    network = network.cpu().eval()
    card = {"kind": KIND, "schema": SCHEMA, "words": words, "info": dict(info), "version": __version__}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the older exporter says that it is
        torch.onnx.export(
            network,
            (torch.full((3,), BOS), torch.zeros(2, 3, network.lstm.hidden_size)),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["word", "state"],
            output_names=["log_probs", "next_state"],
            dynamic_axes={"word": {0: "n"}, "state": {1: "n"}, "log_probs": {0: "n"}, "next_state": {1: "n"}},
        )
        plain = onnx.load(Path(folder) / "model.onnx")
        export.write(plain, card | {"precision": "float32"}, Path(folder) / "float.onnx")
        _check_parity(network, NeuralLm(Path(folder) / "float.onnx"))
        made = graph.quantise(plain, Path(folder), set(), _QUANTISED) if int8 else plain
    export.write(made, card | {"precision": "int8" if int8 else "float32"}, out)


def _check_parity(network: Network, written: NeuralLm) -> None:
    rng = np.random.default_rng(0)
    texts = [
        " ".join(written.words[number] for number in rng.integers(3, len(written.words), length))
        for length in (0, 1, 30)
    ]
    for text, got in zip(texts, written.log_probs(texts), strict=True):
        ids = torch.tensor([BOS, *written.ids(text.split()), EOS])[:, None]
        with torch.no_grad():
            expected = -network.losses(ids, torch.ones(len(ids) - 1, 1, dtype=torch.bool)).numpy()
        if not np.allclose(got, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
            raise TrainingError(
                f"expected the exported graph to match torch within {_TOLERANCE} for {len(ids) - 2} words, got another "
                "result; nothing was written: check the versions of torch, onnx and onnxruntime"
            )
