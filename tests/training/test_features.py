import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchaudio
from torch import Tensor

from asr.errors import ConfigError
from asr.training import config, features

RATE = 16_000
KINDS = [
    pytest.param({}, id="log_mel"),
    pytest.param({"kind": "mfcc"}, id="mfcc"),
    pytest.param({"kind": "mfcc", "deltas": 2, "n_mfcc": 13}, id="mfcc-deltas"),
]


def front_end(**settings: Any) -> Any:
    return features.build(config.Features(**settings))


def waveform(samples: int, seed: int = 0) -> Tensor:
    """(1, N): noise of slowly changing level, never silent, with a tone in it, so that frames and bands differ."""
    rng = np.random.default_rng(seed)
    at = np.arange(samples) / RATE
    noise = rng.normal(0, 0.1, samples) * (1.3 + np.sin(2 * np.pi * 3 * at))
    return torch.from_numpy((noise + 0.3 * np.sin(2 * np.pi * 700 * at)).astype(np.float32))[None]


def in_their_frames(samples: Tensor, settings: config.Features) -> Tensor:
    """The samples that make their first frame ours: theirs hold n_fft samples with the window in the middle."""
    left = (settings.n_fft - settings.win_length) // 2
    right = settings.n_fft - settings.win_length - left
    return torch.nn.functional.pad(samples, (left, right))


def mel_options(settings: config.Features) -> dict[str, Any]:
    return {
        "n_fft": settings.n_fft,
        "win_length": settings.win_length,
        "hop_length": settings.hop_length,
        "f_min": settings.f_min,
        "f_max": settings.f_max,
        "n_mels": settings.n_mels,
        "norm": "slaney",
        "mel_scale": "slaney",
        "center": False,
    }


SHAPES = [
    pytest.param({}, id="default"),
    pytest.param({"n_fft": 400, "n_mels": 40, "f_max": 4000.0}, id="window-fills-frame"),
    pytest.param({"n_fft": 1024, "win_length": 321, "hop_length": 100, "f_min": 0.0, "f_max": 8000.0}, id="odd-window"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_log_mel_is_the_logarithm_of_torchaudios_mel_spectrogram(shape: dict[str, Any]) -> None:
    settings = config.Features(**shape)
    samples = waveform(12_345)
    theirs = torchaudio.transforms.MelSpectrogram(RATE, **mel_options(settings))(in_their_frames(samples, settings))
    expected = torch.log(theirs + 1e-6).transpose(1, 2)
    got = features.LogMel(settings)(samples)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_mfcc_equals_torchaudios(shape: dict[str, Any]) -> None:
    settings = config.Features(kind="mfcc", n_mfcc=20, **shape)
    samples = waveform(12_345)
    theirs = torchaudio.transforms.MFCC(RATE, n_mfcc=20, norm="ortho", log_mels=True, melkwargs=mel_options(settings))(
        in_their_frames(samples, settings)
    )
    torch.testing.assert_close(features.Mfcc(settings)(samples), theirs.transpose(1, 2), atol=2e-3, rtol=0)


def test_features_equal_librosas() -> None:
    import librosa

    settings = config.Features(kind="mfcc", n_mfcc=20)
    samples = waveform(8_000)
    theirs = librosa.feature.melspectrogram(
        y=in_their_frames(samples, settings)[0].numpy(),
        sr=RATE,
        n_fft=settings.n_fft,
        win_length=settings.win_length,
        hop_length=settings.hop_length,
        center=False,
        n_mels=settings.n_mels,
        fmin=settings.f_min,
        fmax=settings.f_max,
    )
    log_mel = np.log(theirs + 1e-6)
    np.testing.assert_allclose(features.LogMel(settings)(samples)[0].numpy(), log_mel.T, atol=1e-3)
    mfcc = librosa.feature.mfcc(S=log_mel, n_mfcc=20, dct_type=2, norm="ortho")
    np.testing.assert_allclose(features.Mfcc(settings)(samples)[0].numpy(), mfcc.T, atol=2e-3)


def naive_log_mel(samples: np.ndarray, settings: config.Features) -> np.ndarray:
    """From the definition, in float64: one frame, one bin, one triangle at a time."""
    n_fft, win = settings.n_fft, settings.win_length
    n = np.arange(win)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / win)
    bins = np.arange(n_fft // 2 + 1)

    def to_mel(hertz: float) -> float:  # Slaney's scale: linear below 1 kHz, logarithmic above
        return hertz / (200 / 3) if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    low, high = to_mel(settings.f_min), to_mel(settings.f_max)
    corners = [to_hertz(low + (high - low) * i / (settings.n_mels + 1)) for i in range(settings.n_mels + 2)]
    rows = []
    for start in range(0, len(samples) - win + 1, settings.hop_length):
        frame = samples[start : start + win] * window
        power = np.array([abs(np.sum(frame * np.exp(-2j * np.pi * k * n / n_fft))) ** 2 for k in bins])
        energies = []
        for left, centre, right in zip(corners, corners[1:], corners[2:], strict=False):
            hertz = bins * RATE / n_fft
            triangle = np.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)).clip(min=0)
            energies.append(np.sum(power * triangle) * 2 / (right - left))
        rows.append(np.log(np.array(energies) + 1e-6))
    return np.array(rows)


def test_log_mel_equals_the_definition() -> None:
    settings = config.Features(n_mels=20)
    samples = waveform(1_000)
    expected = naive_log_mel(samples[0].double().numpy(), settings)
    assert expected.shape == (4, 20)
    np.testing.assert_allclose(features.LogMel(settings)(samples)[0].numpy(), expected, atol=1e-3)


def test_quiet_bands_survive_beside_a_loud_one() -> None:
    """float32 keeps a tone 100 dB below another; a half-precision basis would not."""
    at = np.arange(4_000) / RATE
    samples = 0.9 * np.sin(2 * np.pi * 500 * at) + 0.9e-5 * np.sin(2 * np.pi * 6_000 * at)
    settings = config.Features(n_mels=40)
    expected = naive_log_mel(samples[:1_000], settings)
    got = features.LogMel(settings)(torch.from_numpy(samples[:1_000].astype(np.float32))[None])[0].numpy()
    np.testing.assert_allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_the_exported_file_equal_the_fft(shape: dict[str, Any]) -> None:
    layer = front_end(**shape)
    for samples in (layer.win_length, layer.win_length + 1, 5_000):
        x = waveform(samples)
        expected = layer(x)
        assert expected.shape[1] == layer.frames(samples)
        got = torch.log(layer._mel_energies_by_products(x) + features.LOG_OFFSET)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("deltas", [1, 2])
def test_deltas_equal_torchaudios_on_frames_with_neighbours(deltas: int) -> None:
    size = 13
    samples = waveform(16_000)
    static = front_end(kind="mfcc", n_mfcc=size)(samples)
    got = front_end(kind="mfcc", n_mfcc=size, deltas=deltas)(samples)
    cut = 2 * deltas
    assert got.shape == (1, static.shape[1] - 2 * cut, size * (1 + deltas))
    order = static.transpose(1, 2)
    for i in range(deltas + 1):
        expected = order[:, :, cut:-cut].transpose(1, 2)
        torch.testing.assert_close(got[:, :, i * size : (i + 1) * size], expected, atol=1e-4, rtol=0)
        order = torchaudio.functional.compute_deltas(order, win_length=5)


@pytest.mark.parametrize("settings", KINDS)
def test_a_frame_depends_on_its_own_samples_only(settings: dict[str, Any]) -> None:
    front = front_end(**settings)
    samples = waveform(6_400)
    plain = front(samples)
    start, end = 9 * front.hop_length, 9 * front.hop_length + front.receptive_field()
    outside = samples + 1.0
    outside[:, start:end] = samples[:, start:end]
    assert torch.equal(front(outside)[:, 9], plain[:, 9])
    assert not torch.allclose(front(outside)[:, 8], plain[:, 8])
    assert not torch.allclose(front(outside)[:, 10], plain[:, 10])
    # Its first sample has weight zero in a Hann window; the next, and the last, have little but some.
    for sample in (start + 1, end - 1):
        touched = samples.clone()
        touched[:, sample] += 100.0
        assert not torch.equal(front(touched)[:, 9], plain[:, 9])


@pytest.mark.parametrize("settings", KINDS)
def test_a_frame_is_the_same_wherever_the_waveform_is_cut(settings: dict[str, Any]) -> None:
    front = front_end(**settings)
    samples = waveform(8_000)
    plain = front(samples)
    part = front(samples[:, 5 * front.hop_length :])
    torch.testing.assert_close(part, plain[:, 5:], atol=2e-4, rtol=0)


@pytest.mark.parametrize("settings", KINDS)
def test_frames_tells_how_many_there_are(settings: dict[str, Any]) -> None:
    front = front_end(**settings)
    window, hop = front.receptive_field(), front.hop_length
    assert [front.frames(n) for n in (0, 1, window - 1)] == [0, 0, 0]
    assert [front.frames(n) for n in (window, window + hop - 1, window + hop)] == [1, 1, 2]
    for samples in (window, window + 1, window + hop - 1, window + hop, window + 7 * hop - 1, window + 7 * hop):
        assert front(torch.zeros(1, samples)).shape == (1, front.frames(samples), front.size)


def test_utterances_of_a_batch_do_not_meet() -> None:
    front = front_end(kind="mfcc", deltas=1)
    one, other = waveform(4_000, seed=1), waveform(4_000, seed=2)
    both = front(torch.cat([one, other]))
    torch.testing.assert_close(both[:1], front(one), atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1:], front(other), atol=1e-4, rtol=0)


def test_empty_mel_bands_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"200 mel bands.*lower n_mels or raise n_fft"):
        front_end(n_mels=200)


@pytest.mark.parametrize("settings", KINDS)
def test_silence_and_full_scale_give_finite_features(settings: dict[str, Any]) -> None:
    front = front_end(**settings)
    square = torch.ones(1, 4_000)
    square[:, ::2] = -1.0
    for samples in (torch.zeros(1, 4_000), torch.ones(1, 4_000), square, torch.full((1, 4_000), 1e-30)):
        assert torch.isfinite(front(samples)).all()


def test_silence_is_the_logarithm_of_the_offset() -> None:
    got = front_end()(torch.zeros(1, 1_000))
    torch.testing.assert_close(got, torch.full_like(got, float(np.log(1e-6))))


def test_buffers_stay_out_of_checkpoints() -> None:
    assert front_end(kind="mfcc", deltas=1).state_dict() == {}


@pytest.mark.parametrize("settings", KINDS)
def test_exported_features_equal_torchs_at_every_length(tmp_path: Path, settings: dict[str, Any]) -> None:
    front = front_end(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is
        torch.onnx.export(
            front,
            (waveform(8_000),),
            tmp_path / "features.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["waveform"],
            output_names=["features"],
            dynamic_axes={"waveform": {1: "samples"}, "features": {1: "frames"}},
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(tmp_path / "features.onnx"), options, providers=["CPUExecutionProvider"])
    for frames in (1, 2, 51, 1000):
        samples = waveform(front.receptive_field() + (frames - 1) * front.hop_length)
        (got,) = session.run(None, {"waveform": samples.numpy()})
        assert got.shape == (1, frames, front.size)
        np.testing.assert_allclose(got, front(samples).numpy(), atol=1e-4, rtol=0)
