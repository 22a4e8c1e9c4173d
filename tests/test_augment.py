from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr import audio
from asr.training import augment, config
from asr.training.augment import Perturbation

RATE = audio.SAMPLE_RATE


def tone(hertz: float, samples: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * RATE / len(waveform)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def applied(
    waveforms: list[np.ndarray], perturbations: list[Perturbation], noises: np.ndarray | None = None
) -> list[np.ndarray]:
    """Each waveform of a batch after its perturbation, having checked that there is nothing behind its end."""
    batch = torch.zeros(len(waveforms), max(map(len, waveforms)))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    before = batch.clone()
    lengths = [len(waveform) for waveform in waveforms]
    got, new_lengths = augment.apply(
        batch, lengths, perturbations, None if noises is None else torch.from_numpy(noises)
    )
    assert torch.equal(batch, before)
    assert got.dtype == torch.float32
    assert got.shape == (len(waveforms), max(new_lengths))
    assert all(not row[length:].any() for row, length in zip(got, new_lengths, strict=True))
    return [row[:length].numpy() for row, length in zip(got, new_lengths, strict=True)]


# --- draws ---


def drawn(count: int = 400, seed: int = 0, **settings: object) -> list[Perturbation]:
    chosen, rng = config.Augment.model_validate(settings), generator(seed)
    return [augment.draw(chosen, 1.0, rng) for _ in range(count)]


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    got = drawn(gain_db=[-12, 6], equaliser_db=10, noise="folder", noise_share=0.25, snr_db=[5, 25])
    gains = np.array([one.gain_db for one in got])
    octaves = np.array([one.octaves_db for one in got])
    noises = np.array([one.noise for one in got if one.noise])
    assert -12 <= gains.min() < -11.5
    assert 5.5 < gains.max() <= 6
    assert gains.mean() == pytest.approx(-3, abs=0.8)
    assert octaves.shape == (400, 7)
    assert -10 <= octaves.min() < -9.8
    assert 9.8 < octaves.max() <= 10
    assert np.abs(np.corrcoef(octaves.T) - np.eye(7)).max() < 0.3  # each octave its own
    assert 70 <= len(noises) <= 130
    assert 0 <= noises[:, 0].min() < 0.05
    assert 0.95 < noises[:, 0].max() < 1
    assert 5 <= noises[:, 1].min() < 6
    assert 24 < noises[:, 1].max() <= 25


def test_nothing_is_drawn_that_was_not_asked_for() -> None:
    assert set(drawn(20)) == {Perturbation()}


def test_the_same_generator_draws_the_same() -> None:
    settings = {"gain_db": [-6, 6], "equaliser_db": 6, "noise": "folder"}
    assert drawn(9, 3, **settings) == drawn(9, 3, **settings) != drawn(9, 4, **settings)


# --- waveforms ---


@pytest.mark.parametrize("factor", [0.8, 0.9, 0.95, 1.1, 1.25, 1.337])
@pytest.mark.parametrize("samples", [RATE, 12_345])
def test_speed_moves_length_and_pitch(factor: float, samples: int) -> None:
    (got,) = applied([tone(1000, samples)], [Perturbation(factor)])
    assert len(got) == round(samples / factor)
    assert loudest_hertz(got) == pytest.approx(1000 * factor, abs=2)
    middle = got[len(got) // 4 : -len(got) // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_agrees_with_another_resampler(factor: float) -> None:
    waveform = generator().standard_normal(RATE).astype(np.float32)
    spectrum = np.fft.rfft(waveform)
    spectrum[5_000:] = 0  # where the filters of resamplers differ
    waveform = np.fft.irfft(spectrum).astype(np.float32)
    (got,) = applied([waveform], [Perturbation(factor)])
    expected = audio.resample(waveform, round(RATE * factor), RATE)
    inner = slice(200, -200)
    assert np.abs(got[inner] - expected[inner]).max() < 0.02 * np.abs(expected).max()


def test_each_utterance_of_a_batch_has_its_own_perturbation() -> None:
    waveforms = [tone(500, 8_000), tone(700, 12_000), tone(900, 10_000), tone(1100, 4_000)]
    chosen = [Perturbation(0.9), Perturbation(), Perturbation(1.1, gain_db=-6.0), Perturbation(0.9, gain_db=6.0)]
    together = applied(waveforms, chosen)
    for waveform, perturbation, got in zip(waveforms, chosen, together, strict=True):
        np.testing.assert_allclose(got, applied([waveform], [perturbation])[0], atol=1e-6)
    np.testing.assert_array_equal(together[1], waveforms[1])  # untouched in every bit


def test_a_sample_is_never_left_without_another() -> None:
    assert [len(one) for one in applied([tone(10, 1), tone(10, 2)], [Perturbation(3.9)] * 2)] == [1, 1]


def test_gain_is_in_decibels() -> None:
    waveform = tone(100, 50)
    for got, gain_db in zip(
        applied([waveform] * 2, [Perturbation(gain_db=db) for db in (-12, 6)]), (-12, 6), strict=True
    ):
        np.testing.assert_allclose(got, waveform * 10 ** (gain_db / 20), rtol=1e-5, atol=1e-9)


def test_equaliser_changes_each_octave_by_its_own_gain() -> None:
    hertz = [125, 250, 500, 1000, 2000, 4000]
    tones = sum(tone(one, level=0.05) for one in hertz)
    gains_db = (-12.0, 6.0, 0.0, 12.0, -3.0, 9.0, 5.0)
    got, untouched = applied([tones, tones], [Perturbation(octaves_db=gains_db), Perturbation()])
    bins = np.array(hertz)
    found = 20 * np.log10((np.abs(np.fft.rfft(got)) / np.abs(np.fft.rfft(tones)))[bins])
    np.testing.assert_allclose(found, gains_db[:6], atol=0.3)
    np.testing.assert_allclose(untouched, tones, atol=1e-6)


@pytest.mark.parametrize("noise_samples", [100, RATE - 1, RATE, 5 * RATE])
def test_noise_reaches_its_ratio(noise_samples: int) -> None:
    waveforms = [tone(440), tone(440, 4_000), tone(440, 9_000)]
    noise = (0.03 * generator(1).standard_normal(noise_samples)).astype(np.float32)
    ratios = [5.0, 25.0, 10.0]
    got = applied(waveforms, [Perturbation(noise=(0.7, ratio)) for ratio in ratios], noise)
    for one, waveform, ratio in zip(got, waveforms, ratios, strict=True):
        added = one.astype(np.float64) - waveform
        assert 10 * np.log10(np.mean(waveform.astype(np.float64) ** 2) / np.mean(added**2)) == pytest.approx(
            ratio, abs=0.02
        )


def test_noise_is_a_stretch_from_its_start_that_begins_anew() -> None:
    noise = np.arange(1, 8, dtype=np.float32)
    for start in range(7):
        (got,) = applied([np.ones(20, np.float32)], [Perturbation(noise=((start + 0.5) / 7, 0.0))], noise)
        added = got - 1
        np.testing.assert_array_equal(np.rint(added / added.min()).astype(int), np.resize(np.roll(noise, -start), 20))


def test_who_draws_no_noise_gets_none() -> None:
    quiet, noisy = applied([tone(440)] * 2, [Perturbation(), Perturbation(noise=(0.0, 5.0))], tone(3000))
    np.testing.assert_array_equal(quiet, tone(440))
    assert not np.array_equal(noisy, tone(440))


@pytest.mark.parametrize("noise", [np.zeros(500, np.float32), np.full(500, 1e-30, np.float32)])
def test_silent_noise_is_harmless(noise: np.ndarray) -> None:
    (got,) = applied([tone(440)], [Perturbation(noise=(0.2, 5.0))], noise)
    np.testing.assert_array_equal(got, tone(440))


def test_a_silent_signal_stays_silent() -> None:
    (got,) = applied([np.zeros(500, np.float32)], [Perturbation(noise=(0.2, 5.0))], tone(440))
    np.testing.assert_array_equal(got, np.zeros(500))


def test_noises_are_read_from_a_folder_and_those_below(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    soundfile.write(tmp_path / "b.WAV", tone(100, 300), RATE)
    soundfile.write(tmp_path / "deeper" / "a.flac", tone(100, 8000), 8000)
    (tmp_path / "README.md").write_text("no sound")
    assert augment.read_noises(tmp_path).shape == (16_300,)


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_noise_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.md").write_text("no sound")
    with pytest.raises(config.ConfigError, match=r"augment\.noise: .*found none in"):
        augment.read_noises(tmp_path / name)


# --- features ---


def masked(settings: config.SpecAugment, shape: tuple[int, int, int] = (64, 100, 40)) -> np.ndarray:
    """(B, T, F) bool: where the mask is, after checking that nothing else changed."""
    torch.manual_seed(0)
    features = 1 + torch.rand(shape)
    before = features.clone()
    got = augment.spec_augment(features, settings)
    assert torch.equal(features, before)
    assert ((got == 0) | (got == before)).all()
    return (got == 0).numpy()


def longest_run(line: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def test_frequency_mask() -> None:
    mask = masked(config.SpecAugment(freq_masks=1, freq_width=8, time_masks=0))
    rows = mask.any(axis=1)  # (B, F)
    assert (mask == rows[:, None, :]).all()  # whole rows
    widths = rows.sum(axis=1)
    assert all(longest_run(line) == width for line, width in zip(rows, widths, strict=True))
    assert 6 <= widths.max() <= 8
    assert len(set(widths)) > 3
    assert len({line.tobytes() for line in rows}) > 32  # each utterance its own
    assert rows.any(axis=0).mean() > 0.9  # anywhere


def test_time_mask() -> None:
    mask = masked(config.SpecAugment(freq_masks=0, time_masks=1, time_width=12, time_share=1.0))
    frames = mask.any(axis=2)  # (B, T)
    assert (mask == frames[:, :, None]).all()
    widths = frames.sum(axis=1)
    assert all(longest_run(line) == width for line, width in zip(frames, widths, strict=True))
    assert 9 <= widths.max() <= 12
    assert len({line.tobytes() for line in frames}) > 32
    assert frames.any(axis=0).mean() > 0.9


def test_time_masks_cover_at_most_their_share() -> None:
    widths = (
        masked(config.SpecAugment(freq_masks=0, time_masks=1, time_width=90, time_share=0.1)).any(axis=2).sum(axis=1)
    )
    assert 7 <= widths.max() <= 10


def test_number_of_masks() -> None:
    settings = config.SpecAugment(freq_masks=3, freq_width=4, time_masks=2, time_width=6)
    mask = masked(settings)
    rows, frames = mask.all(axis=1), mask.all(axis=2)
    assert (mask == (rows[:, None, :] | frames[:, :, None])).all()
    assert 8 < rows.sum(axis=1).max() <= 12
    assert 8 < frames.sum(axis=1).max() <= 12


def test_no_masks_and_masks_wider_than_the_features() -> None:
    assert not masked(config.SpecAugment(freq_masks=0, time_masks=0)).any()
    assert masked(config.SpecAugment(freq_width=50, time_width=50), (4, 3, 5)).shape == (4, 3, 5)
