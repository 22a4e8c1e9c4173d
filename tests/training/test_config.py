from pathlib import Path
from typing import Any

import pytest
import yaml

from asr.errors import ConfigError
from asr.training import config
from asr.training.config import Config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/config.yaml"))
LEAST: dict[str, Any] = {"name": "mine", "data": {"train": ["train.jsonl"], "dev": "dev.jsonl"}}


def written(folder: Path, text: str = "", **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(text or yaml.safe_dump({**LEAST, **sections}))
    return path


def parsed(**sections: Any) -> Config:
    return config.parse({**LEAST, **sections}, "here")


def refusal(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(**sections)
    return str(caught.value)


def read_error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.read(path, overrides)
    return str(caught.value)


# --- what is read ---


def test_defaults(tmp_path: Path) -> None:
    settings = config.read(written(tmp_path))
    assert settings.name == "mine"
    assert settings.features == config.Features(kind="log_mel", n_fft=512, win_length=400, hop_length=160, n_mels=80)
    assert (settings.network.cell, settings.network.bidirectional, settings.network.subsampling) == ("lstm", True, 4)
    assert settings.augment.speed == (1.0,)
    assert settings.augment.spec_augment == config.SpecAugment()
    assert settings.average == config.Average()
    assert settings.patience is None
    assert settings.precision == "auto"


def test_yaml_values(tmp_path: Path) -> None:
    text = """
name: other  # a comment
data: {train: [a.jsonl, b.jsonl], dev: c.jsonl}
optimiser: {lr: 1e-4}  # YAML 1.1 reads this as text
network: {cell: gru, projection: 64}
augment: {speed: [0.9, 1, 1.1], spec_augment: null}
"""
    settings = config.read(written(tmp_path, text))
    assert settings.optimiser.lr == 1e-4
    assert (settings.network.cell, settings.network.projection) == ("gru", 64)
    assert settings.network.layers == 3
    assert settings.augment.speed == (0.9, 1.0, 1.1)
    assert settings.augment.spec_augment is None


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("epochs=7", lambda c: c.epochs == 7),
        ("network.hidden=256", lambda c: c.network.hidden == 256),
        ("network.bidirectional=false", lambda c: c.network.bidirectional is False),
        ("network.projection=null", lambda c: c.network.projection is None),
        ("optimiser.lr=1e-3", lambda c: c.optimiser.lr == 0.001),
        ("optimiser.lr=2.5E-4", lambda c: c.optimiser.lr == 0.00025),
        ("augment.speed=[0.9, 1.1]", lambda c: c.augment.speed == (0.9, 1.1)),
        ("optimiser.betas=[0.9,99e-2]", lambda c: c.optimiser.betas == (0.9, 0.99)),
        ("augment.spec_augment=null", lambda c: c.augment.spec_augment is None),
        ("augment.spec_augment.freq_masks=1", lambda c: c.augment.spec_augment.freq_masks == 1),
        ("average=null", lambda c: c.average is None),
        ("average.n=3", lambda c: c.average == config.Average(n=3)),
        ("data.alphabet= ab", lambda c: c.data.alphabet == "ab"),  # YAML strips; quotes keep the space:
        ("data.alphabet=' ab'", lambda c: c.data.alphabet == " ab"),
        ("name=1e5", lambda c: c.name == "1e5"),
        ("description=a=b", lambda c: c.description == "a=b"),
        ("freeze=[conv, '*.norm']", lambda c: c.freeze == ("conv", "*.norm")),
        ("optimiser.lr_scale={layers.0: 0.1}", lambda c: c.optimiser.lr_scale == {"layers.0": 0.1}),
        ("data.train=x.jsonl", lambda c: c.data.train == (Path.cwd() / "x.jsonl",)),
        ("data.train=[x.jsonl, y.jsonl]", lambda c: c.data.train == (Path.cwd() / "x.jsonl", Path.cwd() / "y.jsonl")),
    ],
)
def test_overrides(tmp_path: Path, override: str, got: Any) -> None:
    assert got(config.read(written(tmp_path), [override]))


def test_overrides_leave_the_rest_and_the_last_one_holds(tmp_path: Path) -> None:
    path = written(tmp_path, network={"cell": "gru", "hidden": 10}, augment={"spec_augment": None})
    settings = config.read(path, ["network.hidden=20", "network.hidden=30", "augment.spec_augment.time_masks=1"])
    assert (settings.network.cell, settings.network.hidden) == ("gru", 30)
    assert settings.augment.spec_augment == config.SpecAugment(time_masks=1)


def test_paths_in_the_file_are_relative_to_it_and_overrides_are_not(tmp_path: Path) -> None:
    data = {"train": ["a.jsonl", "/abs/b.jsonl"], "dev": "../dev.jsonl"}
    path = written(tmp_path, data=data, augment={"noise": "noise"})
    settings = config.read(path)
    assert settings.data.train == (tmp_path / "a.jsonl", Path("/abs/b.jsonl"))
    assert settings.data.dev == tmp_path / "../dev.jsonl"
    assert settings.augment.noise == tmp_path / "noise"
    settings = config.read(path, ["data.dev=dev.jsonl", "augment.noise=here"])
    assert (settings.data.dev, settings.augment.noise) == (Path.cwd() / "dev.jsonl", Path.cwd() / "here")


def test_a_single_training_manifest_needs_no_list(tmp_path: Path) -> None:
    path = written(tmp_path, data={"train": "a.jsonl", "dev": "b.jsonl"})
    assert config.read(path).data.train == (tmp_path / "a.jsonl",)


def test_plain_values_come_back(tmp_path: Path) -> None:
    settings = parsed(
        features={"kind": "mfcc", "deltas": 2},
        augment={"speed": [0.9, 1.1], "noise": "somewhere", "gain_db": [-3, 3], "spec_augment": None},
        average=None,
        patience=4,
    )
    plain = config.to_dict(settings)
    assert config.parse(plain, "again") == settings
    path = tmp_path / "written.yaml"
    path.write_text(yaml.safe_dump(plain))  # nothing in it that YAML could not name
    assert config.parse(yaml.safe_load(path.read_text()), "again") == settings


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes(path: Path) -> None:
    settings = config.read(path)
    assert settings.licence != "unspecified"
    assert settings.data.dev.is_relative_to(path.parent)


def test_there_are_recipes() -> None:
    assert RECIPES


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().epochs = 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"epoch": 3}, "here: unknown setting 'epoch': did you mean 'epochs'?"),
        ({"optimizer": {}}, "here: unknown setting 'optimizer': did you mean 'optimiser'?"),
        ({"network": {"hiden": 3}}, "here: unknown setting 'network.hiden': did you mean 'hidden'?"),
        ({"average": {"knd": "best"}}, "here: unknown setting 'average.knd': did you mean 'kind'?"),
        (
            {"augment": {"spec_augment": {"freq_mask": 1}}},
            "here: unknown setting 'augment.spec_augment.freq_mask': did you mean 'freq_masks'?",
        ),
        ({"batch": {"zebra": 1}}, "here: unknown setting 'batch.zebra': known: seconds, max_utterances, accumulate"),
    ],
)
def test_unknown_settings_name_the_nearest(sections: dict[str, Any], message: str) -> None:
    assert refusal(**sections) == message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"epochs": 0}, "epochs: expected a value >= 1, got 0"),
        ({"seed": -1}, "seed: expected a value >= 0, got -1"),
        ({"network": {"dropout": 1.0}}, "network.dropout: expected a value < 1, got 1.0"),
        ({"network": {"projection": 0}}, "network.projection: expected a value >= 1, got 0"),
        ({"network": {"subsampling": 3}}, "network.subsampling: expected 1, 2, 4 or 8, got 3"),
        ({"network": {"cell": "lstn"}}, "network.cell: expected 'rnn_tanh', 'rnn_relu', 'gru' or 'lstm', got 'lstn'"),
        ({"optimiser": {"lr": 0}}, "optimiser.lr: expected a value > 0, got 0"),
        ({"optimiser": {"lr": float("inf")}}, "optimiser.lr: expected a finite number, got inf"),
        ({"optimiser": {"betas": [0.9, 1.0]}}, "optimiser.betas.1: expected a value < 1, got 1.0"),
        ({"average": {"n": 0}}, "average.n: expected a value >= 1, got 0"),
        ({"optimiser": {"lr_scale": {"conv": 0}}}, "optimiser.lr_scale.conv: expected a value > 0, got 0"),
        ({"select": "first"}, "select: expected 'best' or 'last', got 'first'"),
        (
            {"augment": {"spec_augment": {"time_share": 2}}},
            "augment.spec_augment.time_share: expected a value <= 1, got 2",
        ),
        ({"augment": {"speed": [1, 9]}}, "augment.speed.1: expected a value < 4, got 9"),
        ({"augment": {"speed": []}}, "augment.speed: expected a list of at least one, got []"),
        ({"augment": {"gain_db": [6, -6]}}, "augment.gain_db: expected [low, high], got [6.0, -6.0]"),
        ({"augment": {"snr_db": [1]}}, "augment.snr_db: expected another value, got [1]"),
        ({"augment": {"snr_db": [1, 2, 3]}}, "augment.snr_db: expected a list of at most 2, got [1, 2, 3]"),
        ({"features": {"win_length": 513}}, "features: expected win_length <= n_fft, got 513 > 512"),
        ({"features": {"hop_length": 401}}, "features: expected hop_length <= win_length, got 401 > 400"),
        ({"features": {"f_min": 7600}}, "features: expected f_min < f_max, got 7600.0 >= 7600.0"),
        ({"features": {"kind": "mfcc", "n_mfcc": 81}}, "features: expected n_mfcc <= n_mels, got 81 > 80"),
        ({"features": {"f_max": 8001}}, "features.f_max: expected a value <= 8000, got 8001"),
        ({"data": {"train": [], "dev": "d"}}, "data.train: expected a list of at least one, got []"),
    ],
)
def test_out_of_range(sections: dict[str, Any], message: str) -> None:
    assert refusal(**sections).removeprefix("here: ") == message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"name": 5}, "name: expected text, got 5"),
        ({"epochs": "many"}, "epochs: expected an integer, got 'many'"),
        ({"epochs": 2.5}, "epochs: expected an integer, got 2.5"),
        ({"ema": "much"}, "ema: expected a number, got 'much'"),
        ({"network": {"bidirectional": "perhaps"}}, "network.bidirectional: expected true or false, got 'perhaps'"),
        ({"network": None}, "network: expected a group of settings, got None"),
        ({"network": [1]}, "network: expected a group of settings, got [1]"),
        ({"average": 3}, "average: expected a group of settings, got 3"),
        ({"freeze": "conv"}, "freeze: expected a list, got 'conv'"),
        ({"optimiser": {"lr_scale": [1]}}, "optimiser.lr_scale: expected a group of settings, got [1]"),
        ({"augment": {"spec_augment": True}}, "augment.spec_augment: expected a group of settings, got True"),
        ({"augment": {"speed": 1.1}}, "augment.speed: expected a list, got 1.1"),
        ({"data": {"train": [5], "dev": "d"}}, "data.train.0: expected a path, got 5"),
    ],
)
def test_wrong_type(sections: dict[str, Any], message: str) -> None:
    assert refusal(**sections).removeprefix("here: ") == message


def test_names_that_are_not_text() -> None:
    with pytest.raises(ConfigError, match="here: 1: expected a name, got 1"):
        config.parse({**LEAST, 1: 2}, "here")  # type: ignore[dict-item]


def test_every_fault_is_named() -> None:
    assert refusal(epochs=0, data={"train": ["a"]}) == (
        "here: epochs: expected a value >= 1, got 0; 'data.dev' is missing: expected it in the configuration"
    )
    with pytest.raises(ConfigError) as caught:
        config.parse({}, "here")
    assert "'name' is missing" in str(caught.value)
    assert "'data' is missing" in str(caught.value)


@pytest.mark.parametrize("text", ["name: [", "name: 2024-13-45", "a: b: c", "\x00"])
def test_what_is_not_yaml(tmp_path: Path, text: str) -> None:
    message = read_error(written(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'config.yaml'}: expected YAML, got: ")
    assert "\n" not in message


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("words", "str"), ("# nothing", "NoneType")])
def test_yaml_that_holds_no_settings(tmp_path: Path, text: str, kind: str) -> None:
    assert read_error(written(tmp_path, text)).endswith(f"expected settings such as 'name: mine', got {kind}")


def test_paths_that_are_not_text_are_refused(tmp_path: Path) -> None:
    message = read_error(written(tmp_path, data={"train": ["a", 5], "dev": 7}))
    assert "data.train.1: expected a path, got 5" in message
    assert "data.dev: expected a path, got 7" in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such configuration file" in read_error(tmp_path / "absent.yaml")
    assert f"got a folder; did you mean {tmp_path / 'config.yaml'}?" in read_error(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: café".encode("latin-1"))
    assert "cannot be read" in read_error(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.hidden", "expected an override such as network.hidden=256, got 'network.hidden'"),
        ("=3", "expected an override such as network.hidden=256, got '=3'"),
        ("network.hidden=[1", "network.hidden: expected a YAML value after '=', got '[1'"),
        ("name=2024-13-45", "name: expected a YAML value after '=', got '2024-13-45'"),
        ("name.first=x", "name.first: 'name' is a value, not a group of settings"),
    ],
)
def test_overrides_that_are_none(tmp_path: Path, override: str, message: str) -> None:
    assert read_error(written(tmp_path), override) == message


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert "'network.hiden': did you mean 'hidden'?" in read_error(path, "network.hiden=3")
    assert "unknown setting 'netwrk': did you mean 'network'?" in read_error(path, "netwrk.hidden=3")
    assert "network.hidden: expected an integer, got 'x'" in read_error(path, "network.hidden=x")
