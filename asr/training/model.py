"""The acoustic model: waveform -> features -> convolutional subsampling -> recurrent layers -> CTC log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from asr.audio import Geometry
from asr.errors import ConfigError
from asr.training import config, encoder, features

_RNNS = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
_PACKED_RNNS = {"rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu, "gru": torch.gru, "lstm": torch.lstm}
_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


class SequenceNorm(nn.Module):
    """Batch normalisation over the valid frames of a batch (Laurent et al. 2016); padding does not enter its statistics."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x: (T, B, F); lengths: (B,) frames, or None where every frame is valid -> (T, B, F)."""
        if lengths is None or not self.training:
            y: Tensor = self.norm(x.flatten(0, 1))
            return y.view(x.shape)
        valid = torch.arange(len(x), device=x.device)[:, None] < lengths
        normed = self.norm(x[valid])
        return torch.zeros_like(x, dtype=normed.dtype).masked_scatter(valid[..., None], normed)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) at a rate that is a multiple of 1/256.

    On a CPU one byte is drawn for each element. PyTorch's own draws 64 bits, which took 8 % of a training step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.kept = 256 - round(rate * 256)  # of 256

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.kept == 256:
            return x
        if x.is_cuda:
            return nn.functional.dropout(x, 1 - self.kept / 256)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) < self.kept
        return x * keep.to(x.dtype).mul_(256 / self.kept)


class RecurrentLayer(nn.Module):
    """Normalisation, one recurrent layer in one or both directions, optional projection, dropout.

    The backward direction is a forward pass over a copy reversed within each utterance's own length: padding stays at the
    end, where it can touch nothing. So no utterance sees another's length, and the CPU is spared packed sequences (2.8
    times slower there). Time comes first, as in the kernels, which would otherwise copy what goes in and out.
    source: Schuster & Paliwal 1997, "Bidirectional recurrent neural networks".
    """

    def __init__(self, input_size: int, settings: config.Network) -> None:
        super().__init__()
        self.norm_kind = settings.norm
        self.cell = settings.cell
        self.norm: nn.Module = {"layer": nn.LayerNorm, "batch": SequenceNorm, "none": nn.Identity}[settings.norm](
            input_size
        )
        directions = 2 if settings.bidirectional else 1
        self.directions = nn.ModuleList(_rnn(settings.cell, input_size, settings.hidden) for _ in range(directions))
        out = settings.hidden * directions
        self.projection = nn.Linear(out, settings.projection) if settings.projection else nn.Identity()
        self.dropout = Dropout(settings.dropout)
        self.size = settings.projection or out

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x: (T, B, F); lengths: (B,) frames, or None where every frame is valid -> (T, B, size)."""
        x = self.norm(x, lengths) if self.norm_kind == "batch" else self.norm(x)
        return self._finish(x, lengths, self.directions[0](x)[0])

    def forward_packed(self, x: Tensor, batch_sizes: Tensor) -> Tensor:
        """The same over packed sequences, in both directions at once: (sum of T, F) -> (sum of T, size)."""
        x = self.norm.norm(x) if isinstance(self.norm, SequenceNorm) else self.norm(x)
        directions: Any = self.directions
        zeros = x.new_zeros(len(directions), int(batch_sizes[0]), directions[0].hidden_size)
        state = (zeros, zeros) if self.cell == "lstm" else zeros
        weights = [parameter for rnn in directions for parameter in rnn.parameters()]
        run: Any = _PACKED_RNNS[self.cell]
        y = run(x, batch_sizes, state, weights, True, 1, 0.0, self.training, len(directions) == 2)[0]
        result: Tensor = self.dropout(self.projection(y))
        return result

    def chunk(self, x: Tensor, lengths: Tensor | None, keep: int | Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A part of an utterance, and context to the right of it that the backward direction sees as well.

        The forward direction carries its state from part to part; over the context it runs ahead without keeping it, for
        the layers above to have something to look at. The backward direction starts from zero where the context ends.

        x: (T, B, F), the first `keep` frames of which are the part; state: (S, B, hidden), S = 2 for an LSTM, else 1.
        returns: (T, B, size), in one direction only the part's frames; and the state after the part.
        """
        x = self.norm(x, lengths) if self.norm_kind == "batch" else self.norm(x)
        forward, state = self._carry(x[:keep], state)
        if len(self.directions) == 1:  # nothing looks at the context
            return self._finish(x, lengths, forward), state
        # One frame of nothing more, or a part without context would be a sequence without frames, which ONNX has not.
        ahead = torch.cat([x[keep:], torch.zeros_like(x[:1])])
        return self._finish(x, lengths, torch.cat([forward, self._carry(ahead, state)[0][:-1]])), state

    def _carry(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rnn = self.directions[0]
        if isinstance(rnn, nn.LSTM):
            y, (h, c) = rnn(x, (state[:1].contiguous(), state[1:].contiguous()))
            return y, torch.cat([h, c])
        y, h = rnn(x, state)
        return y, h

    def _finish(self, x: Tensor, lengths: Tensor | None, forward: Tensor) -> Tensor:
        """The layer's output, given its normalised input and that of its forward direction."""
        outputs = [forward]
        if len(self.directions) == 2:
            outputs.append(_reverse(self.directions[1](_reverse(x, lengths))[0], lengths))
        y: Tensor = self.dropout(self.projection(torch.cat(outputs, dim=2)))
        return y


class Network(nn.Module):
    """What is trained: normalised features -> log-probabilities.

    forward: features (B, T, F), lengths (B,) frames or None for whole -> log_probs (B, T', V), lengths' (B,) or None, and
             log-probabilities (B, T', S) of the sounds in training if they were added, else None;
             lengths are taken and given on the host, for a GPU would have to be asked for them; as plain numbers they stay
             there, where DistributedDataParallel moves tensors to its GPU.
             T' = output_frames(T). Nothing is padded in time, so an utterance gets in a batch what it gets alone.
    source:  Graves, Mohamed & Hinton 2013, "Speech recognition with deep recurrent neural networks".
    """

    def __init__(self, n_features: int, n_tokens: int, settings: config.Network) -> None:
        super().__init__()
        self.encoder = encoder.Encoder(encoder.shape_of(settings)) if settings.encoder else None
        self.subsampling = settings.subsampling
        stages = 0 if self.encoder else {1: 0, 2: 1, 4: 2, 8: 3}[settings.subsampling]
        if n_features < 2 ** (stages + 1) - 1:
            raise ConfigError(
                f"network.subsampling: expected at least {2 ** (stages + 1) - 1} features for {settings.subsampling}x, "
                f"got {n_features}; raise n_mels or n_mfcc"
            )
        channels = [1] + [settings.conv_channels] * stages
        self.conv = nn.Sequential()
        for i in range(stages):
            self.conv.append(nn.Conv2d(channels[i], channels[i + 1], 3, stride=2))
            self.conv.append(nn.ReLU())
        size = _after_convs(n_features, stages) * channels[-1]
        if self.encoder:
            size = self.encoder.width * settings.subsampling // 2
        self.stages = stages
        self.layers = nn.ModuleList()
        for _ in range(settings.layers):
            layer = RecurrentLayer(size, settings)
            self.layers.append(layer)
            size = layer.size
        self.output = _output(size, n_tokens)
        self.sounds: nn.Sequential | None = None
        self.sounds_layer = 0

    def add_sounds(self, layer: int, n_sounds: int) -> None:
        """A second output of so many classes, which hears recurrent layer number `layer`, counted from 1, in training."""
        below: Any = self.layers[layer - 1]
        self.sounds, self.sounds_layer = _output(below.size, n_sounds), layer

    def output_frames(self, n_frames: int) -> int:
        """How many frames come out of T frames of features."""
        return n_frames // self.subsampling if self.encoder else max(0, _after_convs(n_frames, self.stages))

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        chunk: tuple[int, int] | None = None,
        left: int = 0,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """chunk: output frames of each part and of the context to its right, as a stream hears them; None for the whole.
        left: of a pre-trained encoder, how many output frames before the part it hears with it."""
        heard = x
        if lengths is not None:
            lengths = torch.as_tensor([self.output_frames(int(length)) for length in lengths])
        if chunk is None or not self.encoder:
            x = self.subsample(x, lengths)
        if chunk is None and lengths is not None and x.is_cuda:
            return self._outputs(*self._forward_packed(x, lengths), lengths)
        ends = None if lengths is None else lengths.to(x.device, non_blocking=True)
        if chunk is None:
            lower = x
            for number, layer in enumerate(self.layers, 1):
                x = layer(x, ends)
                lower = x if number == self.sounds_layer else lower
            return self._outputs(x, lower, lengths)
        part, context = chunk
        frames = self.output_frames(heard.shape[1])
        state = self.first_state(len(heard)).to(x)
        tops, lowers = [], []
        for start in range(0, frames, part):
            if self.encoder:
                first, end = max(0, start - left), start + part + context
                own = None if lengths is None else (lengths - first).clamp(min=0)
                window = self.subsample(heard[:, first * self.subsampling : end * self.subsampling], own)
                window = window[start - first :]
            else:
                window = x[start : start + part + context]
            ahead = None if ends is None else (ends - start).clamp(min=0, max=len(window))
            keep = min(part, len(window))
            top, lower, state = self._chunk(window, ahead, keep, state)
            tops.append(top[:keep])
            lowers.append(lower[:keep])
        return self._outputs(torch.cat(tops), torch.cat(lowers), lengths)

    def _forward_packed(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The layers over packed sequences, (T, B, F) -> (T, B, size) twice, as _chunk: what a GPU is fastest at."""
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        data = lower = packed.data
        layer: Any
        for number, layer in enumerate(self.layers, 1):
            data = layer.forward_packed(data, packed.batch_sizes)
            lower = data if number == self.sounds_layer else lower
        order = packed.sorted_indices, packed.unsorted_indices

        def padded(values: Tensor) -> Tensor:
            return pad_packed_sequence(PackedSequence(values, packed.batch_sizes, *order), total_length=len(x))[0]

        return padded(data), padded(lower) if self.sounds_layer else x

    def chunk(self, x: Tensor, lengths: Tensor | None, keep: int | Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, V) of a part with its context, subsampled (T, B, F); the state (L S, B, hidden) after it.

        source: Zhang et al. 2016, "Highway Long Short-Term Memory RNNs for Distant Speech Recognition" (latency-controlled
                bidirectional layers); Xue & Yan 2017, "Improving latency-controlled BLSTM acoustic models".
        """
        x, _, state = self._chunk(x, lengths, keep, state)
        return _log_probs(self.output, x), state

    def _chunk(
        self, x: Tensor, lengths: Tensor | None, keep: int | Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output of the last layer, and of that which the sounds hear (if none, its own input); the state."""
        lower, states = x, []
        layer: Any
        for number, (layer, before) in enumerate(zip(self.layers, state.chunk(len(self.layers)), strict=True), 1):
            x, after = layer.chunk(x, lengths, keep, before)
            states.append(after)
            lower = x if number == self.sounds_layer else lower
        return x, lower, torch.cat(states)

    def first_state(self, batch: int) -> Tensor:
        """The state of all forward directions before the first frame, (L S, B, hidden) zeros."""
        layer: Any = self.layers[0]
        rnn = layer.directions[0]
        per_layer = 2 if isinstance(rnn, nn.LSTM) else 1
        return torch.zeros(len(self.layers) * per_layer, batch, rnn.hidden_size)

    def subsample(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, F), lengths' (B,) of the output -> (T', B, F')."""
        if self.encoder:
            if not torch.onnx.is_in_onnx_export():  # where it is a multiple already
                x = x[:, : x.shape[1] // self.subsampling * self.subsampling]
            own = None if lengths is None else lengths.to(x.device, non_blocking=True) * self.subsampling
            x = self.encoder(x, own)
            x = x.reshape(len(x), -1, x.shape[2] * (self.subsampling // 2))  # neighbouring frames as one
        elif self.stages:
            x = self.conv(x[:, None]).transpose(1, 2).flatten(2)  # (B, C, T', F') -> (B, T', C F')
        return x.transpose(0, 1)

    def _outputs(
        self, top: Tensor, lower: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sounds = _log_probs(self.sounds, lower) if self.sounds is not None and self.training else None
        return _log_probs(self.output, top), lengths, sounds


class AcousticModel(nn.Module):
    """The whole recogniser before decoding; what is exported.

    forward: waveform (B, N) float32 at 16 kHz -> log_probs (B, T, V).
             N samples must be padded by `geometry.pad`, which makes T = ceil(N_unpadded / frame_shift).
    """

    def __init__(self, settings: config.Config, n_tokens: int) -> None:
        super().__init__()
        self.features = features.build(settings.features)
        self.register_buffer("mean", torch.zeros(self.features.size))
        self.register_buffer("std", torch.ones(self.features.size))
        self.mean: Tensor
        self.std: Tensor
        if isinstance(self.features, features.WhisperLogMel):
            self.mean.fill_(self.features.MEAN)
            self.std.fill_(self.features.STD)
        self.network = Network(self.features.size, n_tokens, settings.network)
        self.subsampling = settings.network.subsampling

    @property
    def geometry(self) -> Geometry:
        """Of the output frames; the receptive field is what the convolutions see (the recurrent layers see all)."""
        feature_frames = 2 ** (self.network.stages + 1) - 1  # 3x3 kernels with stride 2: 1, 3, 7, 15
        if self.network.encoder:  # hears its window; the frames from whose middle it makes one
            feature_frames = self.subsampling
        receptive_field = self.features.receptive_field() + (feature_frames - 1) * self.features.hop_length
        return Geometry(receptive_field, self.features.hop_length * self.subsampling)

    @torch.no_grad()
    def fit(self, waveforms: list[Tensor]) -> None:
        """Set the global mean and deviation of each feature from a sample of the training audio, (N,) each."""
        count = 0
        total, squares = torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for waveform in waveforms:
            x = self.features(waveform[None])[0].double()
            count += len(x)
            total += x.sum(0)
            squares += x.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=1e-8).sqrt())

    def feature_frames(self, lengths: Sequence[int]) -> Tensor:
        """How many frames of features waveforms of these lengths give, (B,), on the host."""
        return torch.tensor([self.features.frames(length) for length in lengths])

    def normalised_features(self, waveform: Tensor) -> Tensor:
        """(B, N) -> (B, T, F), each feature with zero mean and unit variance over the training data."""
        features: Tensor = self.features(waveform)
        return (features - self.mean) / self.std

    def forward(self, waveform: Tensor) -> Tensor:
        log_probs: Tensor = self.network(self.normalised_features(waveform))[0]
        return log_probs

    def stream(
        self, waveform: Tensor, keep: Tensor, state: Tensor, skip: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One part of a stream, as the exported graph computes it; a whole utterance is one part without context.

        waveform: (B, N), the samples that the frames of the part and of its contexts see.
        keep:     the frames of the part.  state: of Network.first_state, or from the part before.
        skip:     of a pre-trained encoder, the frames of the left context, which it alone hears.
        returns:  (B, T, V) log-probabilities, of which the first `keep` count, and the state for the next part.
        """
        x = self.network.subsample(self.normalised_features(waveform))
        return self.network.chunk(x if skip is None else x[skip:], None, keep, state)


def _rnn(cell: str, input_size: int, hidden: int) -> nn.RNNBase:
    """One direction of one layer, with the initial weights that let gradients through time.

    Recurrent matrices are orthogonal (Saxe et al. 2014); an LSTM's forget gate starts open (Gers et al. 2000; Jozefowicz
    et al. 2015).
    """
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    rnn: nn.RNNBase = _RNNS[cell](input_size, hidden, **options)
    weight_ih, weight_hh, bias_ih, bias_hh = (parameter.data for parameter in rnn.parameters())
    for gate in range(_GATES[cell]):
        rows = slice(gate * hidden, (gate + 1) * hidden)
        nn.init.orthogonal_(weight_hh[rows])
        nn.init.xavier_uniform_(weight_ih[rows])
    bias_ih.zero_()
    bias_hh.zero_()
    if cell == "lstm":
        bias_ih[hidden : 2 * hidden] = 1.0  # gates in PyTorch's order: input, forget, cell, output
    return rnn


def _output(size: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, classes))


def _log_probs(output: nn.Module, x: Tensor) -> Tensor:
    """(T, B, size) -> (B, T, classes), in float32 whatever the layers' precision."""
    log_probs: Tensor = output(x).float().log_softmax(dim=2).transpose(0, 1)
    return log_probs


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, F) with the first lengths[b] frames of each utterance in reverse order; padding stays where it is."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(len(x), device=x.device)[:, None]
    rows = torch.where(t < lengths, lengths - 1 - t, t) * x.shape[1] + torch.arange(x.shape[1], device=x.device)
    reversed_: Tensor = _Permute.apply(x.flatten(0, 1), rows.flatten())  # type: ignore[no-untyped-call]
    return reversed_.view(x.shape)


class _Permute(torch.autograd.Function):
    """Rows of a matrix in another order that is its own inverse: the gradient goes the same way back, without sums."""

    @staticmethod
    def forward(context: Any, x: Tensor, rows: Tensor) -> Tensor:
        context.save_for_backward(rows)
        return x.index_select(0, rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,) = context.saved_tensors
        return gradients[0].index_select(0, rows), None


def _after_convs(size: int, stages: int) -> int:
    for _ in range(stages):
        size = math.floor((size - 3) / 2) + 1
    return size
