from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr import audio
from asr.training import augment, config

RATE = audio.SAMPLE_RATE


def tone(hertz: float, samples: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * RATE / len(waveform)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- waveforms ---


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
@pytest.mark.parametrize("samples", [RATE, 12_345])
def test_speed_moves_length_and_pitch(factor: float, samples: int) -> None:
    got = augment.speed(tone(1000, samples), factor)
    assert got.dtype == np.float32
    assert len(got) == round(samples / factor)
    assert loudest_hertz(got) == pytest.approx(1000 * factor, abs=2)
    middle = got[len(got) // 4 : -len(got) // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.01)


def test_speed_one_changes_nothing() -> None:
    waveform = tone(1000)
    np.testing.assert_array_equal(augment.speed(waveform, 1.0), waveform)


def test_gain_is_uniform_in_its_range() -> None:
    waveform, rng = tone(100, 50), generator()
    got = [augment.gain(waveform, (-12.0, 6.0), rng) for _ in range(400)]
    assert all(one.dtype == np.float32 for one in got)
    gains_db = np.array([20 * np.log10(one[7] / waveform[7]) for one in got])
    for one, gain_db in zip(got, gains_db, strict=True):
        np.testing.assert_allclose(one, waveform * 10 ** (gain_db / 20), rtol=1e-5, atol=1e-9)
    assert -12.001 <= gains_db.min() < -11.5
    assert 5.5 < gains_db.max() <= 6.001
    assert gains_db.mean() == pytest.approx(-3, abs=0.8)


def test_equaliser_changes_each_octave_by_its_own_gain() -> None:
    tones, rng = sum(tone(hertz, level=0.05) for hertz in (250, 500, 1000, 2000, 4000)), generator()
    got = [augment.equalise(tones, 12.0, rng) for _ in range(200)]
    assert all(one.dtype == np.float32 and len(one) == len(tones) for one in got)
    before = np.abs(np.fft.rfft(tones))
    gains_db = np.array(
        [20 * np.log10((np.abs(np.fft.rfft(one)) / before)[[250, 500, 1000, 2000, 4000]]) for one in got]
    )
    assert -12.01 <= gains_db.min() < -11
    assert 11 < gains_db.max() <= 12.01
    np.testing.assert_allclose(gains_db.mean(0), 0, atol=2)
    assert np.abs(np.corrcoef(gains_db.T) - np.eye(5)).max() < 0.3  # drawn independently


@pytest.mark.parametrize("noise_samples", [100, RATE - 1, RATE, 5 * RATE])
def test_noise_reaches_its_ratio(noise_samples: int) -> None:
    waveform = tone(440)
    noise = (0.03 * generator(1).standard_normal(noise_samples)).astype(np.float32)
    ratios = []
    rng = generator()
    for _ in range(50):
        got = augment.add_noise(waveform, [noise], (5.0, 25.0), rng)
        assert got.dtype == np.float32
        assert len(got) == len(waveform)
        added = got.astype(np.float64) - waveform
        ratios.append(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2) / np.mean(added**2)))
    assert 4.99 < min(ratios) < 8
    assert 22 < max(ratios) < 25.01


def test_a_fixed_ratio_is_met() -> None:
    waveform = tone(440)
    got = augment.add_noise(waveform, [tone(3000, 3333, level=0.001)], (10.0, 10.0), generator())
    assert np.mean(waveform**2) / np.mean((got - waveform) ** 2) == pytest.approx(10, rel=1e-3)


def test_short_noise_is_repeated_from_a_random_start() -> None:
    noise = np.arange(1, 8, dtype=np.float32)
    starts = set()
    for seed in range(40):
        added = augment.add_noise(np.ones(20, np.float32), [noise], (0.0, 0.0), generator(seed)) - 1
        ranks = np.rint(added / added.min()).astype(int)
        np.testing.assert_array_equal(ranks, np.resize(np.roll(noise, 1 - ranks[0]), 20))
        starts.add(int(ranks[0]))
    assert starts == set(range(1, 8))


def test_long_noise_gives_one_stretch_of_itself() -> None:
    noise = np.arange(1, 1001, dtype=np.float32)
    offsets = set()
    for seed in range(10):
        added = augment.add_noise(np.ones(50, np.float32), [noise], (0.0, 0.0), generator(seed)).astype(float) - 1
        start = int(np.rint(1 / (added[1] / added[0] - 1)))
        np.testing.assert_allclose(added / added[0], (start + np.arange(50)) / start, rtol=0.01)
        offsets.add(start)
    assert len(offsets) > 5


def test_every_noise_is_drawn() -> None:
    noises = [tone(hertz, 800) for hertz in (1000, 2000, 3000)]
    silence_and_click = np.zeros(RATE, np.float32)
    silence_and_click[0] = 1.0
    rng = generator()
    heard = {
        round(loudest_hertz(augment.add_noise(silence_and_click, noises, (-20.0, -20.0), rng)), -2) for _ in range(30)
    }
    assert heard == {1000, 2000, 3000}


@pytest.mark.parametrize("noise", [np.zeros(500, np.float32), np.full(500, 1e-30, np.float32)])
def test_silent_noise_is_harmless(noise: np.ndarray) -> None:
    waveform = tone(440)
    np.testing.assert_array_equal(augment.add_noise(waveform, [noise], (5.0, 5.0), generator()), waveform)


def test_a_silent_signal_stays_silent() -> None:
    got = augment.add_noise(np.zeros(500, np.float32), [tone(440)], (5.0, 5.0), generator())
    np.testing.assert_array_equal(got, np.zeros(500))


def test_the_same_generator_draws_the_same() -> None:
    noises = [tone(1000, 900), tone(2000, 700)]
    one, again, other = (augment.add_noise(tone(440), noises, (5.0, 25.0), generator(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_noises_are_read_from_a_folder_and_those_below(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    soundfile.write(tmp_path / "b.WAV", tone(100, 300), RATE)
    soundfile.write(tmp_path / "deeper" / "a.flac", tone(100, 8000), 8000)
    (tmp_path / "README.md").write_text("no sound")
    assert [len(noise) for noise in augment.read_noises(tmp_path)] == [300, 16_000]


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
