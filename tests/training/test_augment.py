import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch

from asr import audio
from asr.errors import ConfigError
from asr.training import augment, config
from asr.training.augment import Band, Perturbation, Recordings
from asr.training.features import LogMel

RATE = audio.SAMPLE_RATE


def tone(hertz: float, samples: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * RATE / len(waveform)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def applied(
    waveforms: list[np.ndarray],
    perturbations: list[Perturbation],
    noises: np.ndarray | None = None,
    rooms: torch.Tensor | None = None,
) -> list[np.ndarray]:
    """Each waveform of a batch after its perturbation, having checked that there is nothing behind its end."""
    batch = torch.zeros(len(waveforms), max(map(len, waveforms)))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    before = batch.clone()
    lengths = [len(waveform) for waveform in waveforms]
    recordings = Recordings(None if noises is None else torch.from_numpy(noises), rooms)
    got, new_lengths = augment.apply(batch, lengths, perturbations, recordings)
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
    settings = {"gain_db": [-6, 6], "equaliser_db": 6, "noise": "folder", "rooms": "folder", "band_share": 0.5}
    assert drawn(9, 3, **settings) == drawn(9, 3, **settings) != drawn(9, 4, **settings)


def test_rooms_and_bands_come_to_their_shares_and_fill_their_ranges() -> None:
    got = drawn(2000, rooms="folder", rooms_share=0.25, band_share=0.5)
    rooms = [one.room for one in got if one.room is not None]
    assert 430 <= len(rooms) <= 570
    assert 0 <= min(rooms) < 0.02
    assert 0.98 < max(rooms) < 1
    bands = [one.band for one in got if one.band]
    assert 900 <= len(bands) <= 1100
    highs, lows = [band.high_hz for band in bands], [band.low_hz for band in bands if band.low_hz]
    assert 3400 <= min(highs) < 3450
    assert 6950 < max(highs) <= 7000
    assert 100 <= min(lows) < 105
    assert 295 < max(lows) <= 300
    assert 0.4 < len(lows) / len(bands) < 0.6
    assert 0.4 < np.mean([band.mu_law for band in bands]) < 0.6


def test_rooms_and_bands_leave_the_other_draws_as_they_were() -> None:
    """The figures are those of version 0.2.0: a training begun with it goes on with the same draws."""
    settings = config.Augment(noise=Path("folder"), equaliser_db=4, gain_db=(-6, 6))
    more = settings.model_copy(update={"rooms": Path("folder"), "band_share": 0.5})
    for seed in range(20):
        one, other = (augment.draw(chosen, 1.0, generator(seed)) for chosen in (settings, more))
        assert one == replace(other, room=None, band=None)
    got = augment.draw(settings, 1.0, generator(3))
    assert [got.octaves_db[0], *(got.noise or ()), got.gain_db] == pytest.approx(
        [-3.3148066629, 0.7345771514, 7.2734403984, -1.3052617141], abs=1e-9
    )


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
    tones = np.sum([tone(one, level=0.05) for one in hertz], axis=0)
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
@pytest.mark.parametrize("setting", ["noise", "rooms"])
def test_a_folder_without_recordings_is_an_error(tmp_path: Path, name: str, setting: str) -> None:
    (tmp_path / "README.md").write_text("no sound")
    settings = config.Augment.model_validate({setting: tmp_path / name})
    with pytest.raises(ConfigError, match=rf"augment\.{setting}: .*found none in"):
        augment.read(settings)


@pytest.mark.parametrize("setting", ["noise", "rooms"])
def test_a_recording_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, setting: str) -> None:
    (tmp_path / "broken.wav").write_text("no sound")
    with pytest.raises(ConfigError, match=rf"augment\.{setting}: .*broken\.wav.*remove it"):
        augment.read(config.Augment.model_validate({setting: tmp_path}))


# --- rooms ---


def hall(seed: int, samples: int = 4000, delay: int = 50, rt60_s: float = 0.2) -> np.ndarray:
    """(N,): silence, a direct sound that its filter smears to both sides, and noise that decays by 60 dB in rt60_s."""
    response = np.zeros(samples)
    at = np.arange(samples - delay)
    response[delay:] = 0.1 * generator(seed).standard_normal(len(at)) * 10 ** (-3 * at / RATE / rt60_s)
    response[delay - 2 : delay + 3] = [-0.1, 0.3, 1, 0.3, -0.1]
    return response


def written(folder: Path, responses: dict[str, np.ndarray], rate: int = RATE) -> torch.Tensor:
    folder.mkdir(exist_ok=True)
    for name, response in responses.items():
        soundfile.write(folder / name, response, rate, subtype="FLOAT" if name.endswith("wav") else "PCM_24")
    return augment.read_rooms(folder)


def test_a_room_is_the_convolution_with_its_response(tmp_path: Path) -> None:
    responses = [hall(1), hall(2, delay=40), hall(3, 900)]
    rooms = written(tmp_path, {f"{number}.wav": one for number, one in enumerate(responses)})
    waveforms = [generator(seed).standard_normal(n).astype(np.float32) for seed, n in enumerate([9_000, 4_064, 500])]
    got = applied(waveforms, [Perturbation(room=(number + 0.5) / 3) for number in (2, 0, 1)], rooms=rooms)
    for one, waveform, number in zip(got, waveforms, (2, 0, 1), strict=True):
        response = responses[number] / np.sqrt(np.sum(responses[number] ** 2))
        peak = int(np.argmax(response))
        expected = np.convolve(waveform, response)[peak : peak + len(waveform)]
        # The response ends where it is 60 dB down: that is in what is left of its energy.
        assert np.sqrt(np.mean((one - expected) ** 2)) < 2e-3 * np.sqrt(np.mean(expected**2))


def test_a_room_changes_neither_times_nor_the_level_of_noise(tmp_path: Path) -> None:
    rooms = written(tmp_path, {"a.flac": 0.5 * hall(1, delay=700)})
    (click,) = applied([np.eye(1, 8_000, 3_000, dtype=np.float32)[0]], [Perturbation(room=0.0)], rooms=rooms)
    assert np.argmax(np.abs(click)) == 3_000
    assert np.sum(click**2) == pytest.approx(1, abs=1e-3)
    assert not click[:2_960].round(6).any()
    white = generator().standard_normal(RATE).astype(np.float32)
    (got,) = applied([white], [Perturbation(room=0.0)], rooms=rooms)
    assert np.mean(got**2) == pytest.approx(1, abs=0.1)


def test_a_response_that_begins_with_its_peak_keeps_its_time(tmp_path: Path) -> None:
    rooms = written(tmp_path, {"a.wav": np.array([-0.8, 0.0, 0.6])})
    (got,) = applied([np.arange(6, dtype=np.float32)], [Perturbation(room=0.9)], rooms=rooms)
    np.testing.assert_allclose(got, [0, -0.8, -1.6, 0.6 - 2.4, 1.2 - 3.2, 1.8 - 4], atol=1e-5)


def test_responses_of_any_rate_and_level_are_read_from_a_folder_and_those_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    at_16 = audio.resample(audio.resample(hall(5, 8_000, 400).astype(np.float32), RATE, 8_000), 8_000, RATE)
    soundfile.write(tmp_path / "b" / "a.wav", audio.resample(1e-3 * at_16, RATE, 48_000), 48_000, subtype="FLOAT")
    rooms = written(tmp_path, {"c.wav": at_16})
    assert rooms.shape[0] == 2
    np.testing.assert_allclose(rooms[0], rooms[1], atol=0.01 * float(rooms.abs().max()))
    np.testing.assert_allclose(rooms.square().sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("rt60_s", "seconds"), [(0.05, 0.05), (0.2, 0.2), (2.0, 0.5)])
def test_a_response_ends_where_it_has_decayed_and_after_half_a_second_at_most(
    tmp_path: Path, rt60_s: float, seconds: float
) -> None:
    rooms = written(tmp_path, {"a.wav": hall(1, 2 * RATE, rt60_s=rt60_s)})
    assert rooms.shape[1] / RATE == pytest.approx(seconds, rel=0.15)
    assert rooms.shape[1] / RATE <= 0.502


def test_a_silent_response_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.rooms: .*quiet\.wav.*got silence.*remove it"):
        written(tmp_path, {"quiet.wav": np.zeros(100)})


def test_a_response_of_several_channels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.rooms: .*array\.wav.*one channel, got 2.*split"):
        written(tmp_path, {"array.wav": np.stack([hall(1), hall(2)], 1)})


def test_rows_of_a_batch_do_not_influence_each_other(tmp_path: Path) -> None:
    rooms = written(tmp_path, {"a.wav": hall(1), "b.wav": hall(2)})
    noise = generator(9).standard_normal(2_000).astype(np.float32)
    waveforms = [tone(500, 8_000), tone(700, 12_000), tone(900, 10_000), tone(1100, 4_000), tone(300, 20_000)]
    octaves_db = (3.0, -2.0, 1.0, 0.0, 4.0, -4.0, 2.0)
    chosen = [
        Perturbation(0.9, octaves_db, (0.3, 10.0), room=0.1),
        Perturbation(),
        Perturbation(1.1, noise=(0.1, 20.0), band=Band(200, 3400, True)),
        Perturbation(room=0.9, band=Band(0, 5000, False), gain_db=-3.0),
        Perturbation(octaves_db=octaves_db, noise=(0.6, 15.0), room=0.6, band=Band(150, 4000, True)),
    ]
    together = applied(waveforms, chosen, noise, rooms)
    for waveform, perturbation, got in zip(waveforms, chosen, together, strict=True):
        (alone,) = applied([waveform], [perturbation], noise, rooms)
        # Eight bits turn a difference in the last bit of 24 into a step, now and then.
        if perturbation.band and perturbation.band.mu_law:
            assert np.mean(np.abs(got - alone) > 1e-5) < 0.02
            np.testing.assert_allclose(got, alone, atol=0.02)
        else:
            np.testing.assert_allclose(got, alone, atol=1e-5)
    np.testing.assert_array_equal(together[1], waveforms[1])  # untouched in every bit


def test_a_room_and_an_equaliser_are_both_heard_and_noise_only_after_them(tmp_path: Path) -> None:
    rooms = written(tmp_path, {"a.wav": hall(1)})
    waveform, octaves_db = generator().standard_normal(9_000).astype(np.float32), (6.0, 0.0, -6.0, 0.0, 6.0, 0.0, 0.0)
    (both,) = applied([waveform], [Perturbation(octaves_db=octaves_db, room=0.0)], rooms=rooms)
    (room,) = applied([waveform], [Perturbation(room=0.0)], rooms=rooms)
    (after,) = applied([room], [Perturbation(octaves_db=octaves_db)])
    inner = slice(500, -500)  # around, what the room adds after the end is missing for the second filter
    np.testing.assert_allclose(both[inner], after[inner], atol=0.02)
    (noisy,) = applied([waveform], [Perturbation(room=0.0, noise=(0.0, 10.0))], tone(1000, 3_000), rooms)
    ratio_db = 10 * np.log10(np.sum(room.astype(float) ** 2) / np.sum((noisy - room).astype(float) ** 2))
    assert ratio_db == pytest.approx(10, abs=0.05)
    np.testing.assert_allclose(np.corrcoef(noisy - room, np.resize(tone(1000, 3_000), 9_000))[0, 1], 1, atol=1e-4)


# --- bands ---


@pytest.mark.parametrize("band", [Band(0, 3400, False), Band(300, 5000, False), Band(100, 7000, False)])
def test_a_band_keeps_what_is_in_it_and_takes_away_the_rest(band: Band) -> None:
    white = generator().standard_normal(4 * RATE).astype(np.float32)
    (got,) = applied([white], [Perturbation(band=band)])
    hertz = np.fft.rfftfreq(len(white), 1 / RATE)
    change_db = 20 * np.log10(np.abs(np.fft.rfft(got)) / np.abs(np.fft.rfft(white)))

    def mean_db(low: float, high: float) -> float:
        return float(np.mean(change_db[(hertz >= low) & (hertz < high)]))

    assert mean_db(2 * band.low_hz, 0.9 * band.high_hz) == pytest.approx(0, abs=0.1)
    assert mean_db(0.99 * band.high_hz, 1.01 * band.high_hz) == pytest.approx(-3, abs=0.5)
    assert mean_db(1.1 * band.high_hz, 8000) < -20
    if band.low_hz:
        assert mean_db(0.97 * band.low_hz, 1.03 * band.low_hz) == pytest.approx(-3, abs=0.5)
        assert mean_db(0, band.low_hz / 2) < -24
    else:
        assert mean_db(0, 100) == pytest.approx(0, abs=0.1)


def test_a_band_does_not_delay() -> None:
    (got,) = applied([np.eye(1, 8_000, 3_000, dtype=np.float32)[0]], [Perturbation(band=Band(300, 3400, False))])
    assert np.argmax(np.abs(got)) == 3_000
    np.testing.assert_allclose(got[2_000:3_000], got[3_001:4_001][::-1], atol=1e-6)


def test_noise_is_in_the_band_too() -> None:
    hiss = generator().standard_normal(RATE).astype(np.float32)
    (got,) = applied([tone(440)], [Perturbation(noise=(0.0, 5.0), band=Band(0, 3400, False))], hiss)
    power = np.abs(np.fft.rfft(got)) ** 2
    assert power[4500:].mean() < 1e-5 * power[1000:3000].mean()


def test_mu_law_is_that_of_g711() -> None:
    """Against the formula, sample by sample; the band is as wide as it gets."""
    waveform = 0.3 * generator().standard_normal(3_000).astype(np.float32)
    waveform[:100] = 0
    (got,) = applied([waveform], [Perturbation(band=Band(0, 1e6, True))])
    peak = max(abs(float(sample)) for sample in waveform)
    expected = []
    for sample in waveform:
        level = math.log(1 + 255 * abs(float(sample)) / peak) / math.log(256)
        expected.append(math.copysign((256 ** (round(127 * level) / 127) - 1) / 255 * peak, sample))
    assert np.mean(np.abs(got - expected) > 1e-5) < 0.002  # rounded to the other side in float32
    assert 10 * np.log10(np.mean(waveform**2) / np.mean((got - waveform) ** 2)) == pytest.approx(37, abs=2)


def test_mu_law_keeps_silence_and_leaves_no_error_above_the_band() -> None:
    loud, silent, plain = applied(
        [tone(440), np.zeros(RATE, np.float32), tone(440)],
        [Perturbation(band=Band(0, 3400, coded)) for coded in (True, True, False)],
    )
    assert not silent.any()
    error = np.abs(np.fft.rfft(loud - plain)) ** 2
    assert 1e-5 < np.sum((loud - plain) ** 2) / np.sum(plain**2) < 1e-3
    assert error[5000:].sum() < 1e-4 * error[:3400].sum()


def test_paths_and_shares_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{name: a, data: {train: [a], dev: b}, augment: {rooms: here, noise: there}}")
    got = config.read(path).augment
    assert (got.rooms, got.noise) == (tmp_path / "here", tmp_path / "there")
    for override in ("augment.rooms_share=1.5", "augment.band_share=-0.1", "augment.rooms=[1]", "augment.vtlp=1"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            config.read(path, [override])
    with pytest.raises(ConfigError, match=r"log_mel for augment\.vtlp, got mfcc"):
        config.read(path, ["augment.vtlp=0.1", "features.kind=mfcc"])


# --- features ---


def masked(settings: config.SpecAugment, shape: tuple[int, int, int] = (64, 100, 40)) -> np.ndarray:
    """(B, T, F) bool: where the mask is, after checking that nothing else changed."""
    torch.manual_seed(0)
    features = 1 + torch.rand(shape)
    before = features.clone()
    got = augment.spec_augment(features, settings)
    assert torch.equal(features, before)
    mean = before.mean(dim=(1, 2), keepdim=True)
    assert ((got == mean) | (got == before)).all()
    return (got == mean).numpy()


def longest_run(line: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@pytest.mark.parametrize(
    ("options", "axis", "least", "most"),
    [
        ({"freq_masks": 1, "freq_width": 8, "time_masks": 0}, 1, 6, 8),
        ({"freq_masks": 0, "time_masks": 1, "time_width": 12, "time_share": 1.0}, 2, 9, 12),
    ],
    ids=["frequency", "time"],
)
def test_a_mask(options: dict[str, Any], axis: int, least: int, most: int) -> None:
    mask = masked(config.SpecAugment(**options))
    lines: np.ndarray = np.any(mask, axis=axis)  # (B, F) or (B, T)
    assert (mask == np.expand_dims(lines, axis)).all()  # whole rows or frames
    widths = lines.sum(axis=1)
    assert all(longest_run(line) == width for line, width in zip(lines, widths, strict=True))
    assert least <= widths.max() <= most
    assert len(set(widths)) > 3
    assert len({line.tobytes() for line in lines}) > 32  # each utterance its own
    assert lines.any(axis=0).mean() > 0.9  # anywhere


def test_time_masks_cover_at_most_their_share() -> None:
    mask = masked(config.SpecAugment(freq_masks=0, time_masks=1, time_width=90, time_share=0.1))
    assert 7 <= mask.any(axis=2).sum(axis=1).max() <= 10


def test_number_of_masks() -> None:
    settings = config.SpecAugment(freq_masks=3, freq_width=4, time_masks=2, time_width=6)
    mask = masked(settings)
    rows: np.ndarray = np.all(mask, axis=1)
    frames: np.ndarray = np.all(mask, axis=2)
    assert (mask == (rows[:, None, :] | frames[:, :, None])).all()
    assert 8 < rows.sum(axis=1).max() <= 12
    assert 8 < frames.sum(axis=1).max() <= 12


def test_no_masks_and_masks_wider_than_the_features() -> None:
    assert not masked(config.SpecAugment(freq_masks=0, time_masks=0)).any()
    assert masked(config.SpecAugment(freq_width=50, time_width=50), (4, 3, 5)).shape == (4, 3, 5)


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 2000.0, 4000.0])
def test_vtlp_moves_each_utterance_s_frequencies_by_its_own_factor(hertz: float) -> None:
    settings, share = config.Features(), 0.2
    features = LogMel(settings)(torch.from_numpy(tone(hertz)).expand(4, -1))
    torch.manual_seed(1)
    loudest = augment.stretch_frequencies(features, share, settings).mean(1).argmax(1).numpy()
    torch.manual_seed(1)
    factors = 1 + share * (2 * torch.rand(4, 1)[:, 0].numpy() - 1)
    middles = librosa.mel_frequencies(settings.n_mels + 2, fmin=settings.f_min, fmax=settings.f_max)[1:-1]
    assert len(set(loudest)) > 2
    assert np.abs(loudest - np.interp(hertz / factors, middles, np.arange(settings.n_mels))).max() <= 1


def test_vtlp_keeps_the_order_of_frequencies_and_by_nothing_changes_nothing() -> None:
    features = torch.arange(80.0).expand(50, 2, 80)
    assert torch.equal(augment.stretch_frequencies(features, 0.0, config.Features()), features)
    got = augment.stretch_frequencies(features, 0.5, config.Features())
    assert (got.diff(dim=2) >= 0).all()
    assert got.min() >= 0
    assert got.max() <= 79
