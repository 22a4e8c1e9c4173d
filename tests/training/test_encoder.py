"""A pre-trained encoder: equal to the original, whatever it is read from, in a batch as alone, in windows, exported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import onnx
import pytest
import torch
from ctranslate2.specs import whisper_spec
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from asr import Recognizer
from asr.errors import ConfigError, ModelError
from asr.models import onnxfile
from asr.models.network import Network
from asr.tokens import Tokens
from asr.training import checkpoint, config, encoder, export, features, run, warm
from asr.training.model import AcousticModel

WIDTH, BLOCKS = 128, 2


def whisper(folder: Path, seed: int = 0) -> Path:
    """A small Whisper model with random weights, written by CTranslate2 itself."""
    rng = np.random.default_rng(seed)
    spec = whisper_spec.WhisperSpec(BLOCKS, WIDTH // 64, 1, WIDTH // 64)

    def of(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = 1 + of(WIDTH), of(WIDTH)

    def linear(layer: Any, inputs: int, outputs: int) -> None:
        layer.weight, layer.bias = of(outputs, inputs), of(outputs)

    def attention(layer: Any, sizes: list[int]) -> None:
        norm(layer.layer_norm)
        for one, size in zip(layer.linear, sizes, strict=True):
            linear(one, WIDTH, size)

    both: list[Any] = [*spec.encoder.layer, *spec.decoder.layer]
    for layer in both:
        attention(layer.self_attention, [3 * WIDTH, WIDTH])
        layer.self_attention.linear[0].bias[WIDTH : 2 * WIDTH] = 0  # the keys have none
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, WIDTH, 4 * WIDTH)
        linear(layer.ffn.linear_1, 4 * WIDTH, WIDTH)
    for layer in spec.decoder.layer:
        attention(layer.attention, [WIDTH, 2 * WIDTH, WIDTH])
    for conv, inputs in ((spec.encoder.conv1, 80), (spec.encoder.conv2, WIDTH)):
        conv.weight, conv.bias = of(WIDTH, inputs, 3), of(WIDTH)
    spec.encoder.position_encodings.encodings = encoder._sinusoids(1500, WIDTH).numpy()
    norm(spec.encoder.layer_norm)
    spec.decoder.embeddings.weight = of(32, WIDTH)
    linear(spec.decoder.projection, WIDTH, 32)
    spec.decoder.position_encodings.encodings = of(448, WIDTH)
    norm(spec.decoder.layer_norm)
    spec.register_vocabulary([f"<{number}>" for number in range(32)])
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper(tmp_path_factory.mktemp("whisper") / "small")


def read(folder: Path) -> encoder.Encoder:
    settings = config.Network(encoder=folder)
    made = encoder.Encoder(encoder.shape_of(settings))
    encoder.load(made, folder)
    return made.eval()


def settings_of(folder: Path, **sections: Any) -> config.Config:
    network = {"encoder": str(folder), "hidden": 8, "layers": 2, "dropout": 0.0, **sections.pop("network", {})}
    tree = {"name": "t", "data": {"train": ["a"], "dev": "b", "alphabet": " abc"}, "network": network, **sections}
    return run.with_encoder(config.parse(tree, "test"))


def model_of(folder: Path, **sections: Any) -> tuple[AcousticModel, config.Config]:
    torch.manual_seed(0)
    settings = settings_of(folder, **sections)
    model = AcousticModel(settings, 5)
    assert model.network.encoder is not None
    encoder.load(model.network.encoder, folder)
    return model.eval(), settings


def test_equals_the_original(folder: Path) -> None:
    mels = np.random.default_rng(1).normal(0, 0.5, (1, 80, 3000)).astype(np.float32)
    original = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")
    expected = np.array(original.encode(ctranslate2.StorageView.from_array(mels)))
    with torch.no_grad():
        got = read(folder).encode(torch.from_numpy(mels).transpose(1, 2))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder.", ""])
def test_reads_safetensors(folder: Path, tmp_path: Path, prefix: str) -> None:
    """Written as transformers writes it: in other names, the queries, keys and values apart."""
    expected = read(folder).state_dict()
    names = {ours: theirs for ours, (theirs, _) in encoder._LAYERS.items()}
    tensors: dict[str, Tensor] = {}
    for name, value in expected.items():
        parts = name.split(".")
        if parts[0].startswith("conv"):
            kernel = value.view(WIDTH, 3, -1).transpose(1, 2) if parts[-1] == "weight" else value
            tensors[f"{prefix}{name}"] = kernel.contiguous()
        elif parts[0] == "norm":
            tensors[f"{prefix}layer_norm.{parts[-1]}"] = value
        elif parts[2] == "qkv":
            for one, part in zip("qkv", value.chunk(3), strict=True):
                if (one, parts[-1]) != ("k", "bias"):
                    tensors[f"{prefix}layers.{parts[1]}.self_attn.{one}_proj.{parts[-1]}"] = part.clone()
        else:
            tensors[f"{prefix}layers.{parts[1]}.{names[parts[2]]}.{parts[-1]}"] = value
    save_file(tensors | {f"{prefix}embed_positions.weight": torch.zeros(1500, WIDTH)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"encoder_attention_heads": 2, "num_mel_bins": 80}))
    got = read(tmp_path).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_first_blocks(folder: Path) -> None:
    settings = settings_of(folder, network={"encoder_blocks": 1})
    assert (settings.network.encoder_blocks, settings.network.encoder_width) == (1, WIDTH)
    assert len(AcousticModel(settings, 5).network.encoder.blocks) == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"encoder_blocks: expected at most the 2 of .*, got 3"):
        settings_of(folder, network={"encoder_blocks": 3})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no model.safetensors or model.bin in it"),
        ({"model.bin": b"not a model"}, "CTranslate2's format; it may be damaged"),
        ({"model.bin": b""}, "expected a file that can be read"),
        ({"model.safetensors": b"neither"}, "safetensors' format"),
    ],
)
def test_a_folder_without_an_encoder(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        settings_of(tmp_path)


def test_a_file_cut_short(folder: Path, tmp_path: Path) -> None:
    data = (folder / "model.bin").read_bytes()
    for length in (3, 20, len(data) // 2):
        (tmp_path / "model.bin").write_bytes(data[:length])
        with pytest.raises(ConfigError, match="may be damaged"):
            encoder.read_ctranslate2(tmp_path / "model.bin")


def test_quantised_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Of the same size, so that nothing but their type tells."""
    data = bytearray((folder / "model.bin").read_bytes())
    at = data.index(b"encoder/conv1/bias\0") + len(b"encoder/conv1/bias\0")
    assert data[at] == 1  # dimension
    sizes = (2 * WIDTH).to_bytes(4, "little"), bytes([2]), (4 * WIDTH).to_bytes(4, "little")  # int16
    data[at + 1 : at + 10] = b"".join(sizes)
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected weights in float32 or float16, got int16"):
        model_of(tmp_path)


def test_features_are_whispers(folder: Path) -> None:
    """Against the definition, naively; without the two bins that hear a constant offset."""
    samples = np.random.default_rng(0).normal(0, 0.1, 1040).astype(np.float32)
    front_end = features.WhisperLogMel(config.WHISPER)
    got = front_end(torch.from_numpy(samples)[None])[0].numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for t in range(len(got)):
        power = np.abs(np.fft.rfft(samples[160 * t : 160 * t + 400] * window)) ** 2
        power[:2] = 0
        expected = np.log10(np.maximum(power @ front_end.mel.numpy(), 1e-13))
        np.testing.assert_allclose(got[t], expected, atol=1e-4)


@pytest.mark.parametrize("change", [lambda x: x * 10 ** (-40 / 20), lambda x: x * 2, lambda x: x + 0.1])
def test_neither_level_nor_offset_changes_anything(folder: Path, change: Any) -> None:
    model, _ = model_of(folder)
    t = np.arange(32000) / 16000
    noise = np.random.default_rng(0).normal(0, 1e-3, len(t))
    speech = (0.2 * np.sin(2 * np.pi * 300 * t) * (1 + np.sin(2 * np.pi * 3 * t)) + noise).astype(np.float32)
    with torch.no_grad():
        expected, got = (model(torch.from_numpy(x.astype(np.float32))[None]) for x in (speech, change(speech)))
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=0)


def test_faint_noise_is_not_made_loud() -> None:
    loud, faint = (encoder.level((torch.full((1, 4, 80), db / 10) + 4) / 4) for db in (0, -120))
    assert loud.max() == pytest.approx(1.2)
    assert faint.max() < 0.5


@pytest.mark.parametrize("subsampling", [2, 4, 8])
def test_in_a_batch_as_alone(folder: Path, subsampling: int) -> None:
    model, _ = model_of(folder, network={"subsampling": subsampling})
    rng = torch.Generator().manual_seed(0)
    long, short = (torch.randn(1, n, 80, generator=rng) * 0.3 for n in (400, 240))
    batch = torch.cat([long, torch.nn.functional.pad(short, (0, 0, 0, 160), value=-1.5)])
    with torch.no_grad():
        together, lengths, _ = model.network(batch, [400, 240])
        assert lengths is not None
        for row, one in enumerate((long, short)):
            alone = model.network(one)[0][0]
            assert int(lengths[row]) == len(alone) == one.shape[1] // subsampling
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-4, rtol=0)


def test_in_parts_as_a_stream_hears_it(folder: Path) -> None:
    """Training in parts is the exported stream, part by part, with left context."""
    model, _ = model_of(folder)
    part, context, left, frames = 7, 3, 5, 20
    waveform = torch.randn(1, model.geometry.samples(frames)) * 0.1
    with torch.no_grad():
        expected, _, _ = model.network(model.normalised_features(waveform), [frames * 4], (part, context), left)
        state, got = model.network.first_state(1), []
        for start in range(0, frames, part):
            skip, keep = min(start, left), min(part, frames - start)
            end = min(frames, start + part + context)
            samples = waveform[:, (start - skip) * 640 : (end - 1) * 640 + model.geometry.receptive_field]
            log_probs, state = model.stream(samples, torch.tensor(keep), state, skip)
            got.append(log_probs[:, :keep])
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-4, rtol=0)


def test_an_utterance_longer_than_its_windows(folder: Path) -> None:
    model, _ = model_of(folder)
    with pytest.raises(ValueError, match=r"at most 30 s, got 30\.02 s"):
        model.network.encoder.encode(torch.zeros(1, 3002, 80))  # type: ignore[union-attr]


def test_learning_rates_fall_towards_the_bottom(folder: Path) -> None:
    model, settings = model_of(folder, optimiser={"encoder_lr_scale": 0.5, "encoder_lr_decay": 0.5})
    named = {id(value): name for name, value in model.network.named_parameters()}
    scales = {
        named[id(p)]: group["scale"]
        for group in warm.parameter_groups(model.network, settings)
        for p in group["params"]
    }
    assert scales["layers.0.directions.0.weight_ih_l0"] == 1
    assert scales["encoder.norm.weight"] == scales["encoder.blocks.1.up.weight"] == 0.5
    assert scales["encoder.blocks.0.up.weight"] == 0.25
    assert scales["encoder.conv1.weight"] == 0.125


def test_starting_from_a_network_without_an_encoder_reads_it_from_its_folder(folder: Path, tmp_path: Path) -> None:
    tokens = Tokens(["<blank>", *" abc"])
    without = config.parse({"name": "t", "data": {"train": ["a"], "dev": "b"}, "network": {"hidden": 8}}, "test")
    donor = AcousticModel(without, len(tokens))
    origin = {"config": config.to_dict(without), "tokens": tokens.symbols}
    checkpoint.save(tmp_path / "donor.safetensors", donor.state_dict(), origin)
    settings = settings_of(folder, init=str(tmp_path / "donor.safetensors"))
    model, said = AcousticModel(settings, len(tokens)), io.StringIO()
    warm.start(model, settings, tokens, Console(file=said, width=100))
    assert model.network.encoder is not None
    torch.testing.assert_close(model.network.encoder.state_dict(), read(folder).state_dict())
    assert f"; encoder: {folder}" in said.getvalue()
    assert "network.encoder" not in said.getvalue()
    assert "fitted anew" not in said.getvalue()  # an encoder has its own scale


@pytest.mark.parametrize("section", [{"features": {"n_mels": 40}}, {"network": {"subsampling": 1}}, {"data.max_s": 40}])
def test_settings_that_do_not_fit_an_encoder(folder: Path, section: dict[str, Any]) -> None:
    tree: dict[str, Any] = {"name": "t", "data": {"train": ["a"], "dev": "b"}, "network": {"encoder": str(folder)}}
    for key, value in section.items():
        name, _, inner = key.partition(".")
        tree[name] = tree.get(name, {}) | ({inner: value} if inner else value)
    with pytest.raises(ConfigError, match=r"network\.encoder"):
        config.parse(tree, "test")


def test_no_encoder_by_that_name() -> None:
    assert config.Network.model_validate({"encoder": "none"}).encoder is None


# --- exported ---


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AcousticModel, Path]:
    model, settings = model_of(folder)
    path = tmp_path_factory.mktemp("exported") / "m.safetensors"
    origin = {"config": config.to_dict(settings), "tokens": ["<blank>", *" abc"]}
    checkpoint.save(path, model.state_dict(), origin)
    export.export(path, path.with_suffix(".onnx"))
    return model, path


def test_exports(exported: tuple[AcousticModel, Path]) -> None:
    model, path = exported
    recognizer = Recognizer(path.with_suffix(".onnx"))
    assert recognizer.card["schema"] == 4
    assert recognizer.card["config"]["network"]["encoder"] == "small"
    waveform = np.random.default_rng(0).normal(0, 0.1, 12345).astype(np.float32)
    padded = model.geometry.pad(waveform)
    with torch.no_grad():
        expected = model(torch.from_numpy(padded)[None])[0].numpy()
    np.testing.assert_allclose(recognizer.log_probs(waveform), expected, atol=1e-3)


def test_hears_nothing_in_nothing(exported: tuple[AcousticModel, Path]) -> None:
    """In files and streams; what a muted microphone gives, and the silence before a recording's first sound."""
    network = Network(exported[1].with_suffix(".onnx"))
    noise = np.random.default_rng(0).normal(0, 1, 16000).astype(np.float32)
    for silence in (np.zeros(16000, np.float32), 1e-6 * noise, np.zeros(40 * 16000, np.float32)):
        log_probs = network.log_probs(silence)
        assert len(log_probs) == -(-len(silence) // network.geometry.frame_shift)
        assert (log_probs.argmax(axis=1) == 0).all()
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, atol=1e-6)
    before, state = network.part(
        np.zeros(network.geometry.receptive_field, np.float32), state=network.first_state() + 1
    )
    assert before.shape == (1, len(network.tokens))
    assert (state == 1).all()  # as if it had not been there
    assert not (network.log_probs(noise * 1e-4).max(axis=1) == 0).any()  # a quiet room is heard


def test_positions_take_half_the_room(exported: tuple[AcousticModel, Path]) -> None:
    """Nothing is lost by it, see test_exports."""
    graph = onnx.load(exported[1].with_suffix(".onnx")).graph
    half = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert [list(tensor.dims) for tensor in half] == [[1500, WIDTH]]


def test_its_folder_is_not_needed_again(exported: tuple[AcousticModel, Path], tmp_path: Path) -> None:
    tensors, state = checkpoint.load(exported[1])
    state["config"]["network"]["encoder"] = str(tmp_path / "gone")
    checkpoint.save(tmp_path / "m.safetensors", tensors, state)
    model = checkpoint.load_model(tmp_path / "m.safetensors")[0]
    assert torch.equal(model.state_dict()["network.encoder.conv1.weight"], tensors["network.encoder.conv1.weight"])


def test_long_recordings_are_heard_in_windows(exported: tuple[AcousticModel, Path]) -> None:
    """A frame in the middle of its window, away from the seams, has what the window alone gives it."""
    network = Network(exported[1].with_suffix(".onnx"))
    assert network.window == 375  # 15 s
    samples = np.random.default_rng(0).normal(0, 0.1, 40 * 16000).astype(np.float32)
    whole = network.log_probs(samples)
    assert whole.shape == (1000, 5)
    context, shift = 50, network.geometry.frame_shift
    second = 375 - 2 * context  # the first frame of the second window's own
    padded = network.geometry.pad(samples)
    first = second - context
    window = padded[first * shift : first * shift + network.geometry.samples(375)]
    alone = network.part(window)[0]
    np.testing.assert_allclose(whole[second : second + 275], alone[context : context + 275], atol=1e-5)


def test_a_stream_gives_the_same_however_it_is_cut(exported: tuple[AcousticModel, Path]) -> None:
    recognizer = Recognizer(exported[1].with_suffix(".onnx"), beam=4)
    samples = np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32)

    def events(size: int) -> list[Any]:
        stream = recognizer.stream()
        found = [event for at in range(0, len(samples), size) for event in stream.feed(samples[at : at + size])]
        return found + stream.flush()

    assert events(1000) == events(7777) == events(len(samples))


@pytest.mark.parametrize("wrong", [{"window_s": 100}, {"left_context_s": -1}, {"window_s": "all"}])
def test_a_card_with_impossible_windows(
    exported: tuple[AcousticModel, Path], tmp_path: Path, wrong: dict[str, Any]
) -> None:
    data = onnxfile.read(exported[1].with_suffix(".onnx"))
    card = json.loads(onnxfile.metadata(data, "asr")) | wrong
    (tmp_path / "m.onnx").write_bytes(onnxfile.with_metadata(data, "asr", json.dumps(card)))
    with pytest.raises(ModelError, match="expected windows of 1 to 30 s"):
        Network(tmp_path / "m.onnx")
