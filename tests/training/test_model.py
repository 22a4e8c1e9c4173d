import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asr import audio
from asr.errors import ConfigError
from asr.training import config
from asr.training.model import AcousticModel, Dropout, Network, SequenceNorm, _reverse
from asr.training.summary import summarise

CELLS = ["rnn_tanh", "rnn_relu", "gru", "lstm"]
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
N_FEATURES, N_TOKENS = 17, 6


def settings_of(network: dict[str, Any], **sections: Any) -> config.Config:
    tree = {"name": "test", "data": {"train": ["train.jsonl"], "dev": "dev.jsonl"}, "network": network, **sections}
    return config.parse(tree, "test")


def acoustic_model(network: dict[str, Any] | None = None, **sections: Any) -> AcousticModel:
    small = {"layers": 1, "hidden": 8, "conv_channels": 2, "dropout": 0.0}
    torch.manual_seed(0)
    return AcousticModel(settings_of({**small, **(network or {})}, **sections), N_TOKENS)


def network(**options: Any) -> Network:
    small = {"layers": 2, "hidden": 12, "conv_channels": 3, "dropout": 0.0}
    torch.manual_seed(0)
    return Network(N_FEATURES, N_TOKENS, config.Network(**{**small, **options}))


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes ---


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("subsampling", [1, 2, 4, 8])
@pytest.mark.parametrize("projection", [None, 7])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_parameter_count(cell: str, bidirectional: bool, projection: int | None, subsampling: int, norm: str) -> None:
    """Against the formulas: a recurrent layer has G gates of H (I + H) weights and two biases of H, each direction."""
    layers, hidden, channels = 3, 12, 5
    rows = N_FEATURES
    convs, inputs = 0, 1
    for _ in range({1: 0, 2: 1, 4: 2, 8: 3}[subsampling]):
        convs += channels * inputs * 3 * 3 + channels
        inputs, rows = channels, (rows - 3) // 2 + 1
    size, recurrent = inputs * rows, 0
    for _ in range(layers):
        recurrent += 0 if norm == "none" else 2 * size
        recurrent += (2 if bidirectional else 1) * GATES[cell] * hidden * (size + hidden + 2)
        size = hidden * (2 if bidirectional else 1)
        if projection:
            recurrent += size * projection + projection
            size = projection
    output = 2 * size + size * N_TOKENS + N_TOKENS
    got = network(
        cell=cell,
        bidirectional=bidirectional,
        projection=projection,
        subsampling=subsampling,
        norm=norm,
        layers=layers,
        hidden=hidden,
        conv_channels=channels,
    )
    assert n_parameters(got) == convs + recurrent + output


@pytest.mark.parametrize("subsampling", [1, 2, 4, 8])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_summary_counts_every_parameter_once(norm: str, subsampling: int) -> None:
    net = acoustic_model({"norm": norm, "subsampling": subsampling, "layers": 3, "projection": 5}).train()
    rows = summarise(net, 1.01)
    assert sum(row.parameters for row in rows) == n_parameters(net)
    assert net.training
    frames = math.ceil(1.01 * audio.SAMPLE_RATE / net.geometry.frame_shift)
    shapes = {row.name: row.shape for row in rows}
    assert shapes["output"] == (frames, N_TOKENS)
    assert [shapes[f"layers.{i}"] for i in range(3)] == [(frames, 5)] * 3
    assert shapes["features"][1] == 80
    convs = [shape for name, shape in shapes.items() if name.startswith("conv.")]
    assert len(convs) == {1: 0, 2: 1, 4: 2, 8: 3}[subsampling]
    assert all(shape[1] == frames for shape in convs[-1:])
    assert (rows[0].name, rows[-1].name) == ("features", "output")


@pytest.mark.parametrize(
    ("cell", "bidirectional", "kind"),
    [("lstm", True, "Bidirectional LSTM"), ("gru", False, "GRU"), ("rnn_relu", True, "Bidirectional RNN relu")],
)
def test_summary_names_the_cell(cell: str, bidirectional: bool, kind: str) -> None:
    rows = summarise(acoustic_model({"cell": cell, "bidirectional": bidirectional}), 0.5)
    assert [row.kind for row in rows if row.name.startswith("layers")] == [kind]


@pytest.mark.parametrize(("subsampling", "least"), [(1, 1), (2, 3), (4, 7), (8, 15)])
def test_too_few_features_for_the_subsampling(subsampling: Literal[1, 2, 4, 8], least: int) -> None:
    options = config.Network(subsampling=subsampling, layers=1, hidden=2, conv_channels=1)
    got = Network(least, 3, options)(torch.zeros(1, 20, least))[0]
    assert got.shape[2] == 3
    if least > 1:
        with pytest.raises(ConfigError, match=rf"at least {least} features.*raise n_mels or n_mfcc"):
            Network(least - 1, 3, options)


# --- a batch ---


def ragged(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of several lengths in one tensor; what lies after an utterance is noise, to be seen if it is used."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), N_FEATURES, generator=generator), torch.tensor(lengths)


@pytest.mark.parametrize("subsampling", [1, 4])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_gives_each_utterance_what_it_gets_alone(
    cell: str, bidirectional: bool, norm: str, subsampling: int
) -> None:
    net = network(cell=cell, bidirectional=bidirectional, norm=norm, subsampling=subsampling)
    net.train(norm != "batch")  # statistics of a batch are of the batch; all else must hold in training too
    x, lengths = ragged([40, 7, 23, 39])
    together, frames, _ = net(x, lengths)
    assert frames.tolist() == [net.output_frames(length) for length in lengths.tolist()]
    assert together.shape[1] == frames.max()
    for row, length, n in zip(range(4), lengths.tolist(), frames.tolist(), strict=True):
        alone, none, _ = net(x[row : row + 1, :length])
        assert none is None
        assert alone.shape[1] == n
        torch.testing.assert_close(together[row, :n], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_gets_no_gradient(cell: str, norm: str) -> None:
    net = network(cell=cell, norm=norm, subsampling=2).train()
    x, lengths = ragged([40, 7, 23])
    x.requires_grad_()
    log_probs, frames, _ = net(x, lengths)
    sum(log_probs[row, :n].square().sum() for row, n in enumerate(frames.tolist())).backward()
    assert x.grad is not None
    for row, length in enumerate(lengths.tolist()):
        assert (x.grad[row, length:] == 0).all()
        used = 2 * ((length - 3) // 2) + 3  # stride 2 may leave the last frame out
        assert (x.grad[row, :used].abs().sum(1) > 0).all()


def test_padding_changes_no_gradient_of_the_weights() -> None:
    net = network(norm="batch").train()
    x, lengths = ragged([40, 7, 23])
    grads = []
    for filler in (0.0, 1e3):
        for row, length in enumerate(lengths.tolist()):
            x[row, length:] = filler
        net.zero_grad()
        log_probs, frames, _ = net(x, lengths)
        sum(log_probs[row, :n, 0].sum() for row, n in enumerate(frames.tolist())).backward()
        grads.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_two_directions_equal_torchs_over_packed_sequences(cell: str) -> None:
    layer: Any = network(cell=cell, norm="none", subsampling=1).layers[0]
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)
    theirs = kind(N_FEATURES, 12, batch_first=True, bidirectional=True, **options)
    weights = dict(layer.directions[0].named_parameters())
    weights |= {f"{name}_reverse": weight for name, weight in layer.directions[1].named_parameters()}
    theirs.load_state_dict(weights)
    x, lengths = ragged([9, 1, 6])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    got = layer(x.transpose(0, 1), lengths).transpose(0, 1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize(
    ("cell", "bidirectional", "projection"), [*((cell, True, None) for cell in CELLS), ("lstm", False, 5)]
)
def test_packed_layers_give_what_padded_ones_give(
    cell: str, bidirectional: bool, projection: int | None, norm: str
) -> None:
    """A GPU runs over packed sequences, gradients and running means included.

    In float64: relu lets values grow from frame to frame, and with them in float32 what processors round differently.
    """
    one, other = (
        network(cell=cell, bidirectional=bidirectional, projection=projection, norm=norm).double() for _ in range(2)
    )
    lengths = torch.tensor([9, 23, 1, 16])
    first: Any = one.layers[0]
    padded = torch.randn(23, 4, first.directions[0].input_size, dtype=torch.float64)
    x = padded
    for layer in one.layers:
        x = layer(x, lengths)
    y, _ = other._forward_packed(padded, lengths)
    valid = torch.arange(23)[:, None] < lengths
    torch.testing.assert_close(x[valid], y[valid], rtol=1e-9, atol=1e-9)
    assert not y[~valid].any()
    weights = torch.randn_like(x[valid])
    for found in (x, y):
        torch.autograd.backward((found[valid] * weights).sum())
    for (name, left), right in zip(one.layers.named_parameters(), other.layers.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-9, atol=1e-9, msg=name)
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_lengths_may_be_plain_numbers() -> None:
    net, x = network().eval(), torch.randn(3, 40, N_FEATURES)
    for got, expected in zip(net(x, [40, 22, 31])[:2], net(x, torch.tensor([40, 22, 31]))[:2], strict=True):
        assert torch.equal(got, expected)


def test_log_probs_are_normalised() -> None:
    log_probs = network()(*ragged([30, 20]))[0]
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(log_probs.shape[:2]))


# --- time ---

FRONT_ENDS: list[dict[str, Any]] = [{"n_mels": 20}, {"kind": "mfcc", "n_mels": 20, "n_mfcc": 13, "deltas": 2}]


@pytest.mark.parametrize("features", FRONT_ENDS, ids=["log_mel", "mfcc-deltas"])
@pytest.mark.parametrize("subsampling", [1, 2, 4, 8])
def test_receptive_field_and_frame_shift_are_true(subsampling: int, features: dict[str, Any]) -> None:
    """Frame t of a forward network ends with sample t * frame_shift + receptive_field: not later, and not earlier."""
    options = {"bidirectional": False, "subsampling": subsampling, "hidden": 32, "conv_channels": 8}
    net = acoustic_model(options, features=features).eval()
    rng = np.random.default_rng(0)
    frames, t = 12, 5
    samples = net.geometry.samples(frames)
    waveform = torch.from_numpy(rng.normal(0, 0.1, (1, samples)).astype(np.float32))
    plain = net(waveform)
    assert plain.shape[1] == frames
    assert net(waveform[:, :-1]).shape[1] == frames - 1
    end = net.geometry.samples(t + 1)
    later = waveform.clone()
    later[:, end:] += 1.0
    assert torch.equal(net(later)[:, : t + 1], plain[:, : t + 1])
    inside = waveform.clone()
    inside[:, end - 40 : end] += 30.0
    assert torch.equal(net(inside)[:, :t], plain[:, :t])
    assert not torch.allclose(net(inside)[:, t], plain[:, t])
    # With the recurrent state cut off, frame t begins where the docstring says too.
    first = t * net.geometry.frame_shift
    cut = net(waveform[:, first:end])
    earlier = waveform[:, first:end].clone()
    earlier[:, :40] += 30.0
    assert cut.shape[1] == 1
    assert not torch.allclose(net(earlier), cut)


NETS = [
    acoustic_model({"subsampling": subsampling, "hidden": 2}, features=features)
    for subsampling in (1, 2, 4)
    for features in [*FRONT_ENDS, {"n_mels": 20, "win_length": 321, "hop_length": 101}]
]


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.geometry.frame_shift}-{net.features.size}")
@settings(max_examples=30)
@given(samples=st.integers(1, 6000))
def test_padding_gives_the_promised_frames(net: AcousticModel, samples: int) -> None:
    padded = net.geometry.pad(np.zeros(samples, np.float32))
    expected = math.ceil(samples / net.geometry.frame_shift)
    assert net.network.output_frames(net.features.frames(len(padded))) == expected
    with torch.no_grad():
        assert net(torch.from_numpy(padded)[None]).shape == (1, expected, N_TOKENS)


# --- initial values ---


@pytest.mark.parametrize("cell", CELLS)
def test_initial_weights(cell: str) -> None:
    hidden = 12
    layers: Any = network(cell=cell).layers
    for layer in layers:
        for rnn in layer.directions:
            weights = dict(rnn.named_parameters())
            for block in weights["weight_hh_l0"].split(hidden):
                torch.testing.assert_close(block @ block.T, torch.eye(hidden), atol=1e-5, rtol=0)
            biases = (weights["bias_ih_l0"] + weights["bias_hh_l0"]).tolist()
            expected = [0.0] * GATES[cell] * hidden
            if cell == "lstm":
                expected[hidden : 2 * hidden] = [1.0] * hidden
            assert biases == expected
            bound = math.sqrt(6 / (rnn.input_size + hidden))
            assert 0.9 * bound < weights["weight_ih_l0"].abs().max() <= bound


def test_the_forget_gate_is_the_one_that_starts_open() -> None:
    """Not by PyTorch's documentation but by behaviour: a state survives a step with no input."""
    layer: Any = network(cell="lstm", norm="none").layers[0]
    rnn = layer.directions[0]
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()
    state = torch.full((1, 1, 12), 2.0)
    _, (_, after) = rnn(torch.zeros(1, 1, rnn.input_size), (torch.zeros_like(state), state))
    torch.testing.assert_close(after, state * torch.sigmoid(torch.tensor(1.0)))


def test_the_seed_decides_the_weights() -> None:
    one, other = network().state_dict(), network().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- normalisation ---


def test_sequence_norm_ignores_padding() -> None:
    norm = SequenceNorm(N_FEATURES).train()
    x, lengths = ragged([9, 4])
    x[1, 4:] = 1e6
    y = norm(x.transpose(0, 1), lengths).transpose(0, 1)
    valid = torch.cat([x[0], x[1, :4]])
    expected = (valid - valid.mean(0)) / (valid.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(torch.cat([y[0], y[1, :4]]), expected, atol=1e-5, rtol=0)
    assert (y[1, 4:] == 0).all()
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * valid.mean(0))
    torch.testing.assert_close(norm.norm.running_var, 0.9 + 0.1 * valid.var(0))


def test_gradients_pass_through_the_reversal() -> None:
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 1, 4])
    assert torch.equal(_reverse(_reverse(x, lengths), lengths), x)
    assert torch.autograd.gradcheck(lambda x: _reverse(x, lengths), (x,))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(rate), torch.ones(1001, 999)
    y = dropout(x)
    assert abs(float((y == 0).float().mean()) - rate) < 0.004  # of a rate in steps of 1/256
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([256 / dropout.kept]))
    assert abs(float(y.mean()) - 1) < 0.004
    rows, columns = (y == 0).float().mean(1), (y == 0).float().mean(0)
    assert float(rows.std()) < 0.02  # no pattern along either axis
    assert float(columns.std()) < 0.02
    assert torch.equal(dropout.eval()(x), x)


def test_fit_gives_zero_mean_and_unit_variance() -> None:
    net = acoustic_model(features={"n_mels": 20})
    rng = np.random.default_rng(0)
    levels_and_lengths = [(0.01, 4_000), (0.5, 9_000), (0.1, 1_000)]
    waveforms = [torch.from_numpy(rng.normal(0, level, n).astype(np.float32)) for level, n in levels_and_lengths]
    net.fit(waveforms)
    frames = torch.cat([net.normalised_features(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(frames.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0, unbiased=False), torch.ones(20), atol=1e-4, rtol=0)
    assert {"mean", "std"} < net.state_dict().keys()


def test_fit_survives_features_that_never_change() -> None:
    net = acoustic_model(features={"n_mels": 20})
    net.fit([torch.zeros(4_000)])
    assert torch.isfinite(net(torch.zeros(1, 4_000))).all()


@pytest.mark.parametrize("chunk", [(5, 3), (16, 0)])
def test_a_batch_in_parts_gives_each_what_it_gets_alone(chunk: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Network(20, 6, config.Network(layers=2, hidden=12)).eval()
    features, lengths = torch.randn(3, 200, 20), torch.tensor([200, 131, 60])
    with torch.no_grad():
        together, frames, _ = network(features, lengths, chunk)
        assert frames is not None
        for row, (length, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
            alone = network(features[row : row + 1, :length], None, chunk)[0]
            torch.testing.assert_close(together[row, :count], alone[0], atol=1e-5, rtol=1e-5)
