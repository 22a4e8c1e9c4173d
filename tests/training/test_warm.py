"""Weights to start from, frozen parts, and learning rates by part."""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import Tensor

from asr.errors import ConfigError
from asr.manifest import Utterance, write
from asr.tokens import Tokens
from asr.training import checkpoint, config, loop, plots, warm
from asr.training.model import AcousticModel

NETWORK: dict[str, Any] = {"cell": "lstm", "layers": 2, "hidden": 4, "subsampling": 2, "conv_channels": 2, "dropout": 0}
ABC = Tokens.of(" abc")


def settings_of(**changes: Any) -> config.Config:
    tree: dict[str, Any] = {"name": "tiny", "features": {"n_mels": 10} | changes.pop("features", {})}
    return config.parse(
        tree | {"data": {"train": ["none"], "dev": "none", "alphabet": " abc"}, "network": NETWORK | changes}, "test"
    )


def drawn(settings: config.Config, tokens: Tokens = ABC, seed: int = 0) -> AcousticModel:
    torch.manual_seed(seed)
    return AcousticModel(settings, len(tokens))


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], str]]:
    """Start one model from another: the tensors of the donor, the fresh model and the started one; what is said."""

    def start(
        given: dict[str, Any], own: dict[str, Any], given_tokens: Tokens = ABC, own_tokens: Tokens = ABC
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], str]:
        donor_settings = settings_of(**given)
        donor = drawn(donor_settings, given_tokens, seed=1)
        donor.mean.fill_(3.0)
        state = {"config": config.to_dict(donor_settings), "tokens": given_tokens.symbols}
        checkpoint.save(tmp_path / "donor.safetensors", donor.state_dict(), state)
        settings = settings_of(**own).model_copy(update={"init": tmp_path / "donor.safetensors"})
        fresh, model = drawn(settings, own_tokens), drawn(settings, own_tokens)
        said = io.StringIO()
        warm.start(model, settings, own_tokens, Console(file=said, width=100))
        return donor.state_dict(), fresh.state_dict(), model.state_dict(), said.getvalue()

    return start


Start = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], str]]


# --- what is copied ---


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_the_same_network_is_copied_whole(started: Start, cell: str, norm: str) -> None:
    same = {"cell": cell, "norm": norm, "projection": 3}
    donor, _, model, said = started(same, same)
    for name in donor:
        assert torch.equal(model[name], donor[name]), name
    assert f"{len(donor)} of {len(donor)} tensors fit\n" in said


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn_relu", 1)])
def test_a_wider_layer_takes_each_gates_block(started: Start, cell: str, gates: int) -> None:
    donor, fresh, model, said = started({"cell": cell, "hidden": 4}, {"cell": cell, "hidden": 6})
    for direction in (0, 1):
        for side in ("hh", "ih"):
            name = f"network.layers.1.directions.{direction}.weight_{side}_l0"
            expected = fresh[name].clone().view(gates, 6, -1)
            old = donor[name].view(gates, 4, -1)
            if side == "hh":
                expected[:, :4, :4] = old
            else:  # the forward units below stand first, then the backward ones
                expected[:, :4, 0:4], expected[:, :4, 6:10] = old[..., :4], old[..., 4:]
            assert torch.equal(model[name], expected.view(gates * 6, -1))
            assert not torch.equal(model[name], fresh[name])
    bias = "network.layers.0.directions.1.bias_ih_l0"
    assert torch.equal(model[bias].view(gates, 6)[:, :4], donor[bias].view(gates, 4))
    assert torch.equal(model["network.conv.0.weight"], donor["network.conv.0.weight"])
    assert "in part: network.layers.0.directions.0.weight_ih_l0 (67%)" in said
    assert "layers.0.directions.0.weight_hh_l0 (44%)" in said


def test_a_narrower_layer_takes_the_first_units(started: Start) -> None:
    donor, _, model, said = started({"hidden": 6}, {"hidden": 4})
    assert "cut to the first of their units: " in said
    name = "network.layers.0.directions.0.weight_hh_l0"
    assert name in said
    assert f"{len(model)} of {len(model)} tensors fit" not in said
    assert torch.equal(model[name].view(4, 4, 4), donor[name].view(4, 6, 6)[:, :4, :4])


def test_one_direction_is_taken_from_two(started: Start) -> None:
    donor, _, model, said = started({}, {"bidirectional": False})
    for name, value in model.items():
        if "directions" in name:
            columns = value.shape[1:]
            assert torch.equal(value, donor[name][:, : columns[0]] if columns else donor[name]), name
    assert torch.equal(model["network.output.1.weight"], donor["network.output.1.weight"][:, :4])
    assert "drawn anew" not in said
    assert "left out: network.layers.0.directions.1.weight_ih_l0" in said


def test_two_directions_take_the_forward_one(started: Start) -> None:
    donor, fresh, model, said = started({"bidirectional": False}, {})
    forward, backward = (f"network.layers.0.directions.{direction}.weight_ih_l0" for direction in (0, 1))
    assert torch.equal(model[forward], donor[forward])
    assert torch.equal(model[backward], fresh[backward])
    assert f"drawn anew: {backward}" in said


def test_another_cell_is_drawn_anew(started: Start) -> None:
    donor, fresh, model, said = started({"cell": "rnn_tanh"}, {"cell": "rnn_relu"})  # of the same shapes
    for name, value in model.items():
        if "directions" in name:
            assert torch.equal(value, fresh[name]), name
            assert name in said
    for name in ("network.conv.0.weight", "network.layers.0.norm.weight", "network.output.1.bias"):
        assert torch.equal(model[name], donor[name]), name


@pytest.mark.parametrize("layers", [1, 3])
def test_of_another_depth_the_common_layers_are_taken(started: Start, layers: int) -> None:
    donor, fresh, model, _ = started({"layers": 2}, {"layers": layers})
    for name, value in model.items():
        if "layers" in name:
            common = int(name.split(".")[2]) < 2
            assert torch.equal(value, (donor if common else fresh)[name]), name
    # The output layer would hear another layer than it learnt to.
    assert torch.equal(model["network.output.1.weight"], fresh["network.output.1.weight"])
    assert torch.equal(model["network.output.1.bias"], donor["network.output.1.bias"])


def test_tokens_keep_their_rows_by_symbol(started: Start) -> None:
    old, new = Tokens.of(" abc"), Tokens(["<blank>", "c", "x", "a", " ", " ca"])
    donor, fresh, model, said = started({}, {}, old, new)
    for name in ("network.output.1.weight", "network.output.1.bias"):
        for row, symbol in enumerate(new.symbols):
            like = {" ca": "c"}.get(symbol, symbol)  # a piece begins as its first letter
            expected = donor[name][old.symbols.index(like)] if like in old.symbols else fresh[name][row]
            assert torch.equal(model[name][row], expected), symbol
    assert said.endswith("; new tokens: 'x', ' ca'; tokens left out: 'b'\n")
    assert "in part: network.output.1.weight (83%), network.output.1.bias (83%)" in said


def test_of_many_new_tokens_the_first_are_named(started: Start) -> None:
    many = Tokens.of(" abc" + "".join(map(chr, range(0x4E00, 0x4E00 + 60))))
    *_, said = started({}, {}, ABC, many)
    assert "and 20 more" in said
    assert said.count("'") == 2 * 40


@pytest.mark.parametrize("change", [{"features": {"f_max": 4000}}, {"features": {"n_mels": 12}}])
def test_mean_and_deviation_are_of_the_same_features_only(started: Start, change: dict[str, Any]) -> None:
    assert torch.equal(started({}, {})[2]["mean"], torch.full((10,), 3.0))
    *_, model, said = started(change, {})
    assert not model["mean"].any()
    assert "fitted anew: mean, std" in said


NETWORKS: list[dict[str, Any]] = [
    {},
    {"cell": "gru", "hidden": 5, "norm": "batch"},
    {"bidirectional": False, "layers": 3, "norm": "none"},
    {"subsampling": 1, "projection": 3},
    {"subsampling": 4, "features": {"n_mels": 16}, "conv_channels": 3},
    {"features": {"kind": "mfcc", "n_mfcc": 10}, "projection": 5, "hidden": 3},
    {},
]


@pytest.mark.parametrize(("given", "own"), [*pairwise(NETWORKS), *pairwise(NETWORKS[::-1]), *pairwise(NETWORKS[::2])])
def test_any_network_starts_from_any_other(started: Start, given: dict[str, Any], own: dict[str, Any]) -> None:
    *_, model, said = started(given, own)
    assert all(value.isfinite().all() for value in model.values())
    assert f"of {len(model)} tensors fit; " in said


# --- what is trained, and how fast ---


def groups_of(network: torch.nn.Module, **changes: Any) -> dict[str, float]:
    """The factor of the learning rate of each parameter that is trained."""
    tree = config.to_dict(settings_of())
    tree["freeze"] = changes.get("freeze", [])
    tree["optimiser"]["lr_scale"] = changes.get("lr_scale", {})
    groups = warm.parameter_groups(network, config.parse(tree, "test"))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group["scale"] for group in groups for parameter in group["params"]}


def test_patterns_name_parameters_and_modules() -> None:
    def trained(*patterns: str) -> set[str]:
        network = drawn(settings_of()).network
        found = groups_of(network, freeze=list(patterns))
        assert {name for name, one in network.named_parameters() if one.requires_grad} == found.keys()
        return set(found)

    everything = trained()
    assert everything == {name for name, _ in drawn(settings_of()).network.named_parameters()}
    assert trained("conv") == {name for name in everything if not name.startswith("conv")}
    assert trained("layers.*.norm") == {name for name in everything if ".norm." not in name}
    assert trained("layers.1", "*.bias*") == {
        name for name in everything if "layers.1" not in name and "bias" not in name
    }
    assert trained("conv", "layers") == {"output.0.weight", "output.0.bias", "output.1.weight", "output.1.bias"}


def test_of_the_factors_the_last_that_matches_holds() -> None:
    found = groups_of(
        drawn(settings_of()).network, freeze=["output"], lr_scale={"*": 0.5, "layers": 0.25, "layers.1.norm": 2.0}
    )
    assert found["conv.0.weight"] == 0.5
    assert found["layers.1.directions.0.weight_hh_l0"] == 0.25
    assert found["layers.1.norm.bias"] == 2.0
    assert not any(name.startswith("output") for name in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["convs"]}, "freeze: no parameter is named 'convs': did you mean 'conv'?"),
        ({"freeze": ["layer.0"]}, "freeze: no parameter is named 'layer.0': did you mean 'layers.0'?"),
        ({"lr_scale": {"layers.9": 0.1}}, "optimiser.lr_scale: no parameter is named 'layers.9': did you mean 'layers"),
        ({"freeze": ["*"]}, "freeze: expected something left to train, but every parameter is frozen"),
    ],
)
def test_patterns_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        groups_of(drawn(settings_of()).network, **changes)
    assert str(caught.value).startswith(message)


# --- in a training ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    utterances = []
    for number, text in enumerate(["ab", "cab", "b", "ca"]):
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, 9600), 16000)
        utterances.append(Utterance(folder / f"{number}.wav", 0.6, text))
    write(folder / "all.jsonl", utterances)
    return str(folder / "all.jsonl")


@pytest.fixture
def trained(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Tensor]]:
    monkeypatch.setattr(plots, "curves", lambda run: None)
    monkeypatch.setattr(plots, "gradients", lambda run: None)

    def train(
        name: str, network: dict[str, Any] | None = None, resume: bool = False, **changes: Any
    ) -> dict[str, Tensor]:
        tree = config.to_dict(settings_of(**network or {}))
        tree["data"] |= {"train": [corpus], "dev": corpus}
        tree |= {"epochs": 2, "average": None, "sortagrad_epochs": 0, "freeze": changes.pop("freeze", [])}
        tree["batch"]["max_utterances"] = 2
        tree["optimiser"] |= {"lr": 0.01} | changes
        settings = config.parse(tree, "test")
        quiet = Console(quiet=True)
        loop.train(settings, tmp_path / name, resume=resume, device="cpu", threads=1, console=quiet)
        return checkpoint.load(tmp_path / name / "model.safetensors")[0]

    return train


def moved(after: dict[str, Tensor], network: dict[str, Any] | None = None) -> dict[str, float]:
    """How far each tensor of the network went from where it was drawn."""
    before = drawn(settings_of(**network or {})).state_dict()
    return {name: float((after[name] - before[name]).abs().max()) for name in after if name.startswith("network")}


def test_frozen_parameters_and_their_statistics_stay(trained: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    distances = moved(trained("run", {"norm": "batch"}, freeze=["conv", "layers.0"]), {"norm": "batch"})
    for name, distance in distances.items():
        assert (distance == 0) == ("conv" in name or "layers.0" in name), name
    assert "network.layers.0.norm.norm.running_mean" in distances
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert '"layers.1.directions.0"' in log
    assert '"layers.0' not in log  # of the gradients' norms


def test_rates_are_scaled(trained: Callable[..., dict[str, Tensor]]) -> None:
    distances = moved(trained("run", lr_scale={"layers": 1e-3}))
    of_layers = [distance for name, distance in distances.items() if "layers" in name]
    others = [distance for name, distance in distances.items() if "layers" not in name]
    assert 0 < max(of_layers) < 1e-2 * min(others)


def test_with_groups_it_resumes_to_the_same_weights(
    trained: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"freeze": ["conv"], "lr_scale": {"layers.0": 0.3, "output": 3.0}}
    whole = trained("whole", **chosen)

    class Killed(BaseException):
        pass

    real, saves = checkpoint.save, iter(range(100))

    def save(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if path.name == "last.safetensors" and next(saves) == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            trained("killed", **chosen)
    resumed = trained("killed", resume=True, **chosen)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
