"""The settings of one training: a YAML file checked by pydantic, with `key=value` overrides from the command line.

Every key has its default here, so that a recipe's `config.yaml` holds only what matters for its corpus. Paths in the file
are relative to the file; paths given as overrides are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from asr.errors import ConfigError, nearest
from asr.remote import Remote, locate


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"expected [low, high], got {list(pair)}")
    return pair


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("expected a list of at least one, got []")
    return values


# The same file, wherever a training is resumed from.
_Path = Annotated[Path, AfterValidator(lambda path: locate(path).absolute())]
_Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
_Speed = Annotated[float, Field(gt=0.25, lt=4)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """What is trained on. Manifests are JSON lines (see `asr.manifest`); several are joined; tars bring their own."""

    train: Annotated[tuple[_Path, ...], AfterValidator(_not_empty)]
    dev: _Path
    normaliser: str = "english"
    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"
    tokens: Literal["characters", "bpe"] = "characters"  # what the network emits; bpe: pieces of words, see `subwords`
    vocabulary: Annotated[int, Field(ge=1)] = 500  # tokens of bpe, the blank and the alphabet's characters among them
    max_s: Annotated[float, Field(gt=0)] = 30.0  # longer utterances are left out, counted and listed
    # Folder of the decoded audio, 115 MB an hour, which later trainings find there; null: beside the manifests.
    cache: _Path | None = None

    @property
    def n_tokens(self) -> int:
        """V, the outputs of the network."""
        return self.vocabulary if self.tokens == "bpe" else 1 + len(self.alphabet)

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.tokens == "bpe" and (" " not in self.alphabet or self.vocabulary <= 1 + len(self.alphabet)):
            raise ValueError(
                "expected for tokens = bpe an alphabet with a space, and a vocabulary of more than its "
                f"{len(self.alphabet)} characters and the blank, got {self.alphabet!r} and {self.vocabulary}"
            )
        return self


class Features(_Section):
    """The front end. Defaults: 25 ms windows every 10 ms, 80 mel bands."""

    kind: Literal["log_mel", "mfcc", "whisper"] = "log_mel"  # whisper: what network.encoder hears
    n_fft: Annotated[int, Field(ge=16)] = 512
    win_length: Annotated[int, Field(ge=16)] = 400
    hop_length: Annotated[int, Field(ge=1)] = 160
    n_mels: Annotated[int, Field(ge=1)] = 80
    f_min: Annotated[float, Field(ge=0)] = 20.0
    f_max: Annotated[float, Field(gt=0, le=8000)] = 7600.0
    n_mfcc: Annotated[int, Field(ge=1)] = 40
    deltas: Annotated[int, Field(ge=0, le=2)] = 0  # orders of regression deltas appended to MFCC

    @model_validator(mode="after")
    def _check(self) -> Features:
        if self.win_length > self.n_fft:
            raise ValueError(f"expected win_length <= n_fft, got {self.win_length} > {self.n_fft}")
        if self.hop_length > self.win_length:  # samples between the windows would be seen by no frame
            raise ValueError(f"expected hop_length <= win_length, got {self.hop_length} > {self.win_length}")
        if self.f_min >= self.f_max:
            raise ValueError(f"expected f_min < f_max, got {self.f_min} >= {self.f_max}")
        if self.kind == "mfcc" and self.n_mfcc > self.n_mels:
            raise ValueError(f"expected n_mfcc <= n_mels, got {self.n_mfcc} > {self.n_mels}")
        return self


WHISPER = Features(kind="whisper", n_fft=400, f_min=0.0, f_max=8000.0)


class Network(_Section):
    """Convolutional subsampling or a pre-trained encoder, then a stack of recurrent layers, then a linear layer."""

    # Folder of a Whisper model, see asr.training.encoder; its frames, of 20 ms, are joined to subsampling * 10 ms.
    encoder: Annotated[_Path | None, BeforeValidator(lambda value: None if value == "none" else value)] = None
    encoder_blocks: Annotated[int, Field(ge=1, le=64)] | None = None  # the first so many; null: all
    encoder_width: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] | None = None  # filled in from the folder
    cell: Literal["rnn_tanh", "rnn_relu", "gru", "lstm"] = "lstm"
    bidirectional: bool = True
    layers: Annotated[int, Field(ge=1, le=20)] = 3
    hidden: Annotated[int, Field(ge=1)] = 320  # cells a direction
    projection: Annotated[int, Field(ge=1)] | None = None  # linear layer after each recurrent layer
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    norm: Literal["none", "layer", "batch"] = "layer"
    subsampling: Literal[1, 2, 4, 8] = 4
    conv_channels: Annotated[int, Field(ge=1)] = 32


class SpecAugment(_Section):
    """Masks on the features (Park et al. 2019), on from the first epoch whose dev CER fell below start_cer."""

    start_cer: Annotated[float, Field(ge=0)] = 0.7  # earlier, it keeps a flat start on its plateau
    freq_masks: Annotated[int, Field(ge=0)] = 2
    freq_width: Annotated[int, Field(ge=0)] = 15  # feature rows
    time_masks: Annotated[int, Field(ge=0)] = 2
    time_width: Annotated[int, Field(ge=0)] = 25  # frames of 10 ms
    time_share: Annotated[float, Field(ge=0, le=1)] = 0.2  # no mask is longer than this share of the utterance


class Augment(_Section):
    """Perturbations, drawn anew for each utterance in each epoch."""

    # Of the utterances, continued by another up to data.max_s: trained on short ones alone, a network is lost in long ones.
    join_share: _Share = 0.0
    speed: Annotated[tuple[_Speed, ...], AfterValidator(_not_empty)] = (1.0,)  # factors; tempo and pitch together
    vtlp: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # voices stretched in frequency, up to +- this share; log_mel
    gain_db: _Range = (0.0, 0.0)  # uniform range
    equaliser_db: Annotated[float, Field(ge=0, le=40)] = 0.0  # random gain of each octave, up to +- this
    noise: _Path | None = None  # folder of noise recordings
    noise_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the utterances get noise, if there is a folder
    snr_db: _Range = (5.0, 25.0)  # uniform range
    rooms: _Path | None = None  # folder of rooms' impulse responses: tools/rooms.py makes some
    rooms_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the utterances are heard in one, if there is a folder
    band_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the utterances come as through a telephone or a codec
    spec_augment: SpecAugment | None = SpecAugment()


class Pronunciation(_Section):
    """A second CTC loss, of the words' sounds, at a lower layer; the trained model is without it.

    source: Krishna, Toshniwal & Livescu 2018, "Hierarchical Multitask Learning for CTC-based Speech Recognition".
    """

    dictionary: _Path  # in CMUdict's format; of an utterance with another word, the sounds are not learnt
    layer: Annotated[int, Field(ge=1)] = 2  # of the recurrent ones, counted from 1
    weight: Annotated[float, Field(gt=0)] = 0.5  # of its loss; that of the text has 1


class Stream(_Section):
    """Some of the batches are heard in parts, as a stream is, so that the same weights serve both.

    The parts' lengths are drawn anew for each batch, which also keeps the network from leaning on all of the past and
    future (soft forgetting: Audhkhasi et al. 2019, "Forget a Bit to Learn Better").
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the batches
    chunk_s: _Range = (0.3, 1.3)  # uniform range
    right_context_s: _Range = (0.15, 0.7)  # uniform range
    left_context_s: _Range = (
        1.0,
        4.0,
    )  # uniform range; of a pre-trained encoder alone: recurrent layers carry their state

    @model_validator(mode="after")
    def _check(self) -> Stream:
        if self.chunk_s[0] <= 0 or min(self.right_context_s[0], self.left_context_s[0]) < 0:
            raise ValueError(
                "expected chunk_s > 0, right_context_s and left_context_s >= 0, "
                f"got {self.chunk_s}, {self.right_context_s}, {self.left_context_s}"
            )
        return self


class Batch(_Section):
    """Batches hold utterances of similar lengths, up to a padded total."""

    seconds: Annotated[float, Field(gt=0)] = 80.0  # padded audio in a batch, on each device
    max_utterances: Annotated[int, Field(ge=1)] = 64
    # Batches that one update averages, all processes' together; each process has at least one.
    accumulate: Annotated[int, Field(ge=1)] = 1


class Optimiser(_Section):
    """AdamW (Loshchilov & Hutter 2019) with a schedule over the whole training."""

    lr: Annotated[float, Field(gt=0)] = 1e-3  # the peak
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    betas: tuple[_Share, _Share] = (0.9, 0.98)
    schedule: Literal["cosine", "one_cycle", "plateau", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of all steps (one_cycle: the rising part)
    final: Annotated[float, Field(ge=0, le=1)] = 0.01  # last learning rate as a share of the peak
    plateau_patience: Annotated[int, Field(ge=0)] = 2  # epochs without a better dev loss before the rate is halved
    clip_norm: Annotated[float, Field(gt=0)] = 5.0  # of the whole gradient (Pascanu et al. 2013)
    # Factors of the rate by parameters or modules of the network, globs allowed: {"conv": 0.1}. The last match wins.
    lr_scale: dict[str, Annotated[float, Field(gt=0)]] = {}
    # Of a pre-trained encoder: the factor of its highest block, and that of each block to the one above it.
    encoder_lr_scale: Annotated[float, Field(gt=0)] = 0.2
    encoder_lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.8


class Average(_Section):
    """Weights averaged over checkpoints at the end; kept only if dev errors fall."""

    kind: Literal["best", "last"] = "best"
    n: Annotated[int, Field(ge=1)] = 5


class Config(_Section):
    """One training, whole."""

    name: str
    licence: str = "unspecified"  # of the trained model; it follows the corpus
    description: str = ""  # of the training data, a line for the model's card
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # A run folder or weights file to start from: what fits is copied, what does not is listed.
    init: _Path | None = None
    # Parameters or modules of the network that stay as they are, globs allowed: [conv, layers.0, "*.norm"].
    freeze: tuple[str, ...] = ()
    epochs: Annotated[int, Field(ge=1)] = 30
    sortagrad_epochs: Annotated[int, Field(ge=0)] = 1  # first epochs in order of length (Amodei et al. 2016)
    patience: Annotated[int, Field(ge=1)] | None = None  # epochs without a better dev CER before stopping
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the weights' moving average; 0: off
    # Whose weights are the model's. last: of the last epoch, not averaged, so that nothing is chosen by the dev set.
    select: Literal["best", "last"] = "best"
    average: Average | None = Average()
    precision: Literal["32-true", "bf16-mixed", "auto"] = "auto"  # auto: bf16-mixed on CUDA, else 32-true
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 3.0
    data: Data
    features: Features = Features()
    network: Network = Network()
    augment: Augment = Augment()
    pronunciation: Pronunciation | None = None
    stream: Stream | None = None
    batch: Batch = Batch()
    optimiser: Optimiser = Optimiser()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.pronunciation and self.pronunciation.layer > self.network.layers:
            raise ValueError(
                f"expected pronunciation.layer <= network.layers, got {self.pronunciation.layer} > {self.network.layers}"
            )
        if self.augment.vtlp and self.features.kind == "mfcc":
            raise ValueError("expected features.kind = log_mel for augment.vtlp, got mfcc")
        return self._with_encoder() if self.network.encoder else self

    def _with_encoder(self) -> Config:
        """With the features that the encoder hears, which are its own."""
        if "features" in self.model_fields_set and self.features != WHISPER:
            raise ValueError("expected no features with network.encoder, which brings its own")
        if self.network.subsampling == 1:
            raise ValueError("expected network.subsampling = 2, 4 or 8 with network.encoder, got 1")
        if self.network.encoder_width and not self.network.encoder_blocks:
            raise ValueError("expected network.encoder_blocks with network.encoder_width, got none")
        if self.data.max_s > 30:
            raise ValueError(f"expected data.max_s <= 30 with network.encoder, got {self.data.max_s}")
        object.__setattr__(self, "features", WHISPER)
        return self


def read(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file, with overrides such as `network.hidden=256` laid over it.

    raises: ConfigError naming the key, the nearest known one, and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: expected a configuration file, got a folder; did you mean {path / 'config.yaml'}?")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such configuration file; the recipes have one each: recipes/*/config.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"{path}: expected YAML, got: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings such as 'name: mine', got {type(tree).__name__}")
    _resolve_paths(tree, path.parent)
    return parse(tree, str(path), overrides)


def parse(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """A configuration from plain values, such as a checkpoint holds. raises: ConfigError, prefixed with source."""
    for override in overrides:
        _apply(tree, override)
    if (
        isinstance(data := tree.get("data"), dict) and "cache_gb" in data
    ):  # of versions before 0.2; it changed no result
        tree = {**tree, "data": {key: value for key, value in data.items() if key != "cache_gb"}}
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_describe(dict(item)) for item in error.errors())) from None


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, for YAML and JSON; `parse` reads them back."""
    return config.model_dump(mode="json")


def _below(folder: Path, name: str) -> Path:
    return found if isinstance(found := locate(name), Remote) else folder / name


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    data, augment, pronunciation = (tree.get(section) for section in ("data", "augment", "pronunciation"))
    if isinstance(data, dict):
        if isinstance(data.get("train"), str):
            data["train"] = [data["train"]]
        if isinstance(data.get("train"), list):
            data["train"] = [str(_below(folder, item)) if isinstance(item, str) else item for item in data["train"]]
        if isinstance(data.get("dev"), str):
            data["dev"] = str(_below(folder, data["dev"]))
        if isinstance(data.get("cache"), str):
            data["cache"] = str(folder / data["cache"])
    if isinstance(tree.get("init"), str):
        tree["init"] = str(folder / tree["init"])
    for key in ("noise", "rooms"):
        if isinstance(augment, dict) and isinstance(augment.get(key), str):
            augment[key] = str(folder / augment[key])
    network = tree.get("network")
    if isinstance(network, dict) and isinstance(network.get("encoder"), str) and network["encoder"] != "none":
        network["encoder"] = str(folder / network["encoder"])
    if isinstance(pronunciation, dict) and isinstance(pronunciation.get("dictionary"), str):
        pronunciation["dictionary"] = str(folder / pronunciation["dictionary"])


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected an override such as network.hidden=256, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{key}: expected a YAML value after '=', got {text!r}") from None
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:  # absent, or switched off in the file (spec_augment: null)
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: '{parent}' is a value, not a group of settings")
        node = child
    node[last] = [value] if key == "data.train" and isinstance(value, str) else value


# pydantic's error types whose own words speak of Python, not of a file of settings.
_EXPECTED = {
    "model_type": "a group of settings",
    "dict_type": "a group of settings",
    "tuple_type": "a list",
    "too_long": "a list of at most {max_length}",
    "path_type": "a path",
    "string_type": "text",
    "invalid_key": "a name",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than": "a value > {gt:g}",
    "greater_than_equal": "a value >= {ge:g}",
    "less_than": "a value < {lt:g}",
    "less_than_equal": "a value <= {le:g}",
}


def _describe(item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    got = f", got {item['input']!r}"
    if item["type"] == "extra_forbidden":
        return f"unknown setting '{key}': {nearest(location[-1], _fields(location[:-1]))}"
    if item["type"] == "missing" and isinstance(item["loc"][-1], int):  # of a pair, say
        return f"{'.'.join(location[:-1])}: expected another value{got}"
    if item["type"] == "missing":
        return f"'{key}' is missing: expected it in the configuration"
    if item["type"] == "value_error":  # ours: says itself what was got
        return f"{key}: {str(item['msg']).removeprefix('Value error, ')}"
    known = _EXPECTED.get(item["type"], "")
    expected = known.format(**item.get("ctx", {})) or str(item["msg"]).removeprefix("Input should be ")
    return f"{key}: expected {expected}{got}"


def _fields(location: Sequence[str]) -> list[str]:
    """The settings known in a group."""
    model: type[BaseModel] = Config
    for name in location:
        annotation = model.model_fields[name].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
