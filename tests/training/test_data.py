import itertools
import json
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr import audio
from asr.errors import ConfigError
from asr.tokens import Tokens, min_frames
from asr.training import config, data
from asr.training.data import Batch, Corpus, Item

RATE = audio.SAMPLE_RATE
GEOMETRY = audio.Geometry(receptive_field=1360, frame_shift=640)
ALPHABET = " abc"
CPU = torch.device("cpu")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """(N,) float32, with values that 16 bits hold exactly."""
    return np.random.default_rng(seed).integers(-9_000, 9_000, samples).astype(np.float32) / 32_768


def corpus(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    training: bool = True,
    decoded: bool = True,
    seed: int = 0,
    audio_of: dict[str, np.ndarray] | None = None,
    **sections: Any,
) -> Corpus:
    """A corpus of rows {name, duration, text}; each file holds noise of the row's duration unless audio_of says else."""
    lines = []
    for number, row in enumerate(rows):
        path = folder / f"{row['name']}.wav"
        samples = (audio_of or {}).get(row["name"], noise(round(row["duration"] * RATE), number))
        if not path.exists() and row.get("written", True):
            soundfile.write(path, samples, RATE)
        lines.append(
            json.dumps({"audio_filepath": path.name, "duration": row["duration"], "text": row.get("text", "a")})
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    sets = {"train": [manifest], "dev": manifest, "alphabet": ALPHABET} | sections.pop("data", {})
    settings = config.parse({"name": "test", "seed": seed, "data": sets, **sections}, "test")
    got = Corpus(
        [manifest],
        Tokens.of(ALPHABET),
        settings,
        geometry=GEOMETRY,
        training=training,
    )
    if decoded:
        got.decode()
    return got


def rows_of(durations: list[float], text: str = "a") -> list[dict[str, Any]]:
    return [{"name": f"u{i:03}", "duration": duration, "text": text} for i, duration in enumerate(durations)]


def many(count: int = 60) -> list[dict[str, Any]]:
    return rows_of([round(float(s), 3) for s in np.random.default_rng(5).uniform(0.1, 1.0, count)])


def indices(plan: list[list[Item]]) -> list[int]:
    return [item.index for batch in plan for item in batch]


SPEEDS: dict[str, Any] = {
    "augment": {"speed": [0.8, 0.9, 1.0, 1.1, 1.25]},
    "batch": {"seconds": 4.0, "max_utterances": 9},
}

# --- plans ---


@pytest.mark.parametrize("by_length", [False, True])
def test_every_utterance_is_there_once_an_epoch(tmp_path: Path, by_length: bool) -> None:
    got = corpus(tmp_path, many(), **SPEEDS)
    for epoch in range(3):
        assert sorted(indices(got.plan(epoch, by_length=by_length))) == list(range(60))
    assert sorted(indices(got.in_order())) == list(range(60))


def test_a_plan_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    got, again = (corpus(tmp_path, many(), **SPEEDS) for _ in range(2))
    other = corpus(tmp_path, many(), seed=1, **SPEEDS)
    plan = got.plan(3, by_length=False)
    got.plan(4, by_length=False)
    assert got.plan(3, by_length=False) == plan == again.plan(3, by_length=False)
    assert got.plan(4, by_length=False) != plan
    assert other.plan(3, by_length=False) != plan


def test_company_changes_between_epochs(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), batch=SPEEDS["batch"])
    plans = [got.plan(epoch, by_length=False) for epoch in range(5)]
    assert len({frozenset(frozenset(item.index for item in batch) for batch in plan) for plan in plans}) == 5


def test_speeds_are_drawn_for_each_utterance_and_epoch(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), **SPEEDS)
    plans = [got.plan(epoch, by_length=False) for epoch in range(5)]
    assert len({item.speed for plan in plans for batch in plan for item in batch if item.index == 0}) > 1
    assert len({item.speed for batch in plans[0] for item in batch}) == 5
    counts = Counter(item.speed for plan in plans for batch in plan for item in batch)
    assert counts.keys() == {0.8, 0.9, 1.0, 1.1, 1.25}
    assert all(count > 30 for count in counts.values())


@pytest.mark.parametrize("by_length", [False, True])
def test_batches_keep_their_limits(tmp_path: Path, by_length: bool) -> None:
    got = corpus(tmp_path, many(), **SPEEDS)
    for plan in (got.plan(0, by_length=by_length), got.plan(1, by_length=by_length), got.in_order()):
        for batch in plan:
            longest = max(got.examples[item.index].duration_s / item.speed for item in batch)
            assert longest * len(batch) <= 4.0
            assert 1 <= len(batch) <= 9
        assert len(plan) < 20  # and use them


def test_an_utterance_above_the_limit_goes_alone(tmp_path: Path) -> None:
    got = corpus(tmp_path, rows_of([0.3, 2.0, 0.3, 0.3]), batch={"seconds": 1.0})
    sizes = {tuple(sorted(item.index for item in batch)) for batch in got.plan(0, by_length=False)}
    assert sizes == {(1,), (0, 2, 3)}


def test_batches_hold_similar_lengths_in_random_order(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), **SPEEDS)
    plan = got.plan(0, by_length=False)
    lengths = [[got.examples[item.index].duration_s / item.speed for item in batch] for batch in plan]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in lengths)
    assert padding < 0.2 * sum(map(sum, lengths))
    assert all(min(batch) > 0.55 * max(batch) for batch in lengths if len(batch) < 9)
    means = [np.mean(batch) for batch in lengths]
    assert means != sorted(means)


def test_by_length_starts_with_the_shortest(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), **SPEEDS)
    for plan in (got.plan(2, by_length=True), got.in_order()):
        lengths = [got.examples[item.index].duration_s / item.speed for batch in plan for item in batch]
        assert lengths == sorted(lengths)


def test_evaluation_plays_at_the_recorded_speed(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(5), training=False, **SPEEDS)
    assert {item.speed for batch in got.in_order() for item in batch} == {1.0}


def test_speeds_that_ctc_could_not_align_are_not_drawn(tmp_path: Path) -> None:
    text = "abababab"  # 8 frames, 0.32 s
    got = corpus(tmp_path, rows_of([0.32, 0.36, 1.0], text), augment={"speed": [1.1, 1.25]})
    drawn: dict[int, set[float]] = {0: set(), 1: set(), 2: set()}
    for epoch in range(30):
        for item in itertools.chain(*got.plan(epoch, by_length=False)):
            drawn[item.index].add(item.speed)
    assert drawn == {0: {1.0}, 1: {1.0, 1.1}, 2: {1.1, 1.25}}


# --- what is left out ---


def test_unusable_utterances_are_listed_with_reasons(tmp_path: Path) -> None:
    rows = [
        {"name": "missing", "duration": 0.5, "text": "a", "written": False},
        {"name": "good", "duration": 0.5, "text": "A b."},
        {"name": "short", "duration": 0.31, "text": "abababab"},  # 8 frames are 0.32 s
        {"name": "repeats", "duration": 0.32, "text": "aaaaa"},  # needs 9: blanks between
        {"name": "fits", "duration": 0.36, "text": "aaaaa"},
        {"name": "empty", "duration": 0.5, "text": " ?! "},
        {"name": "foreign", "duration": 0.5, "text": "abz"},
        {"name": "long", "duration": 1.2, "text": "a"},
        {"name": "liar", "duration": 0.9, "text": "abababab"},
        {"name": "last", "duration": 0.25, "text": "cab"},
    ]
    got = corpus(tmp_path, rows, data={"max_s": 1.0}, audio_of={"liar": noise(3_000)})
    reasons = {skipped.id: skipped.reason for skipped in got.skipped}
    assert len(got.skipped) == 7
    assert reasons.keys() == {"short", "repeats", "empty", "foreign", "long", "missing", "liar"}
    assert reasons["short"] == "too short for its text: CTC needs 8 frames for 'abababab', the audio gives 7"
    assert "needs 9 frames for 'aaaaa', the audio gives 8" in reasons["repeats"]
    assert reasons["empty"] == "expected text, got none after normalisation"
    assert "'z'" in reasons["foreign"]
    assert reasons["long"] == "expected at most data.max_s = 1.0 s, got 1.2 s"
    assert "no such file" in reasons["missing"]
    assert "needs 8 frames for 'abababab', the audio gives 4" in reasons["liar"]
    assert [example.utterance.id for example in got.examples] == ["good", "fits", "last"]
    assert [example.text for example in got.examples] == ["a b", "aaaaa", "cab"]
    # The audio in memory still belongs to its own utterance, though those between are gone.
    for index, (number, samples) in enumerate([(1, 8_000), (4, 5_760), (9, 4_000)]):
        np.testing.assert_array_equal(got.waveform(index), noise(samples, number))


def test_evaluation_leaves_out_only_what_it_cannot_score(tmp_path: Path) -> None:
    rows = [
        {"name": "short", "duration": 0.1, "text": "abababab"},
        {"name": "empty", "duration": 0.5, "text": ""},
        {"name": "long", "duration": 1.2, "text": "a"},
        {"name": "foreign", "duration": 0.5, "text": "abz"},
        {"name": "missing", "duration": 0.5, "text": "a", "written": False},
    ]
    got = corpus(tmp_path, rows, training=False, data={"max_s": 1.0})
    assert [example.utterance.id for example in got.examples] == ["short", "empty", "long"]
    assert [skipped.id for skipped in got.skipped] == ["foreign", "missing"]


def test_a_duration_that_lies_is_put_right(tmp_path: Path) -> None:
    """Else a speed is drawn that CTC cannot align, or a batch is planned for audio that is not there."""
    rows = [{"name": "liar", "duration": 5.0, "text": "abababab"}]
    got = corpus(tmp_path, rows, audio_of={"liar": noise(round(0.33 * RATE))}, augment={"speed": [1.25]})
    assert got.examples[0].duration_s == 0.33
    assert got.plan(0, by_length=False) == [[Item(0, 1.0)]]


def test_no_length_that_is_kept_gives_ctc_too_few_frames(tmp_path: Path) -> None:
    durations = [round(0.28 + 0.0025 * i, 4) for i in range(40)]
    got = corpus(tmp_path, rows_of(durations, "abababab"), augment={"speed": [0.9, 1.0, 1.1]})
    assert 0 < len(got.skipped) < 40
    for epoch in range(3):
        for item in itertools.chain(*got.plan(epoch, by_length=True)):
            batch = got.load([item], epoch)
            frames = GEOMETRY.frames(got.heard(batch, CPU)[1][0])
            assert frames >= min_frames(got.examples[item.index].token_ids)


def test_durations_of_whole_frames_count_in_full(tmp_path: Path) -> None:
    """1.16 * 16000 and its like must not fall a sample short of a frame by rounding."""
    got = corpus(tmp_path, rows_of([0.04]), decoded=False)
    assert [got._frames(n * 0.04) for n in range(1, 1000)] == list(range(1, 1000))


def test_joined_utterances(tmp_path: Path) -> None:
    durations = [round(0.33 + 0.0025 * i, 4) for i in range(40)]
    options = {"join_share": 0.7, "speed": [0.9, 1.0, 1.1]}
    got = corpus(tmp_path, rows_of(durations, "abababab"), augment=options, data={"max_s": 1.5})
    assert not got.skipped
    groups = []
    for epoch in range(3):
        items = list(itertools.chain(*got.plan(epoch, by_length=False)))
        assert sorted(index for item in items for index in item.indices) == list(range(40))  # each once
        assert items != list(itertools.chain(*got.plan(epoch + 1, by_length=False)))
        groups += [item.indices for item in items]
        for item in items:
            batch = got.load([item], epoch)
            frames = GEOMETRY.frames(got.heard(batch, CPU)[1][0])
            assert frames >= min_frames(batch.token_ids.tolist())
            assert batch.seconds * item.speed <= 1.5 + 3 * GEOMETRY.frame_shift / RATE
    assert {len(group) for group in groups} == {1, 2, 3, 4}
    assert all(len(item.indices) == 1 for item in itertools.chain(*got.plan(0, by_length=True)))


def test_joined_audio_and_text(tmp_path: Path) -> None:
    rows = rows_of([0.3, 0.4])
    rows[0]["text"], rows[1]["text"] = "ab c", "b"
    got = corpus(tmp_path, rows)
    batch = got.load([Item(1, 1.0, (0,))], 0)
    assert batch.ids == ("u001 + u000",)
    expected = np.concatenate([got.waveform(1), np.zeros(GEOMETRY.frame_shift, np.float32), got.waveform(0)])
    np.testing.assert_array_equal(unpadded(got, batch, 0, len(expected)), expected)
    tokens = Tokens.of(ALPHABET)
    assert batch.token_ids.tolist() == tokens.encode("b ab c")
    assert batch.token_lengths.tolist() == [6]


# --- audio ---


def test_load_pads_each_waveform_as_it_would_be_alone(tmp_path: Path) -> None:
    rows = rows_of([0.5, 0.31, 0.4])
    for row, text in zip(rows, ["ab c", "b", "cab"], strict=True):
        row["text"] = text
    got = corpus(tmp_path, rows)
    batch = got.load([Item(2), Item(0), Item(1)], 0)
    assert batch.ids == ("u002", "u000", "u001")
    waveforms, lengths = got.heard(batch, CPU)
    assert waveforms.dtype == torch.float32
    for row, length, (number, samples) in zip(waveforms, lengths, [(2, 6_400), (0, 8_000), (1, 4_960)], strict=True):
        alone = GEOMETRY.pad(noise(samples, number))
        assert length == len(alone)
        np.testing.assert_array_equal(row[:length].numpy(), alone)
        assert not row[length:].any()
    assert waveforms.shape == (3, max(lengths))
    assert batch.token_lengths.tolist() == [3, 4, 1]
    tokens = Tokens.of(ALPHABET)
    assert batch.token_ids.tolist() == [*tokens.encode("cab"), *tokens.encode("ab c"), *tokens.encode("b")]
    assert batch.seconds == pytest.approx(1.21)


def test_the_largest_batch(tmp_path: Path) -> None:
    """Nothing that a plan makes of the corpus takes more memory."""
    for joined in ({"join_share": 0.5}, {}):
        augment = {"speed": [0.8, 1.0], **joined}
        got = corpus(tmp_path, many(), augment=augment, data={"max_s": 2.0}, batch={"seconds": 8.0})
        longest, area = 0, 0
        for epoch in range(4):
            for items in got.plan(epoch, by_length=False):
                waveforms = got.heard(got.load(items, epoch), CPU)[0]
                longest, area = max(longest, waveforms.shape[1]), max(area, waveforms.numel())
        rehearsed = got.heard(got.largest(), CPU)[0]
        assert rehearsed.shape[1] >= longest * 0.95
        assert rehearsed.numel() >= area * 0.8
        assert len(rehearsed) * rehearsed.shape[1] <= 8.4 * RATE


def test_tokens_of_a_batch_are_counted_without_loading_it(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), augment={"join_share": 0.5})
    for items in got.plan(0, by_length=False):
        assert got.tokens(items) == len(got.load(items, 0).token_ids)


def test_samples_are_kept_as_16_bits(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.4, 4_800).astype(np.float32)
    soundfile.write(tmp_path / "u000.wav", samples, RATE, subtype="FLOAT")
    got = corpus(tmp_path, rows_of([0.3])).waveform(0)
    np.testing.assert_allclose(got, samples.clip(-1, 1), atol=2**-15)
    assert np.array_equal(got * 2**15, np.rint(got * 2**15))


def test_corpora_of_one_name_do_not_share_a_folder_of_decoded_audio(tmp_path: Path) -> None:
    for name, samples in (("a", 3_000), ("b", 4_000)):
        (tmp_path / name).mkdir()
        rows = [{"name": "u", "duration": 0.3, "text": "a"}]
        got = corpus(tmp_path / name, rows, audio_of={"u": noise(samples)}, data={"cache": tmp_path / "cache"})
        assert len(got.waveform(0)) == samples
        assert not (tmp_path / name / "manifest.audio").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_offsets_cut_a_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", noise(RATE), RATE)
    manifest = tmp_path / "parts.jsonl"
    row = {"audio_filepath": "long.wav", "duration": 0.25, "text": "a", "offset": 0.5}
    manifest.write_text(json.dumps(row) + "\n")
    settings = config.parse({"name": "t", "data": {"train": [manifest], "dev": manifest, "alphabet": ALPHABET}}, "t")
    got = Corpus([manifest, manifest], Tokens.of(ALPHABET), settings, training=True, geometry=GEOMETRY)
    got.decode()
    assert len(got.examples) == 2
    np.testing.assert_array_equal(got.waveform(1), noise(RATE)[8_000:12_000])


def test_decoding_reports_its_progress(tmp_path: Path) -> None:
    got = corpus(tmp_path, rows_of([0.2, 0.2, 0.2]), decoded=False)
    seen = []
    got.decode(lambda: seen.append(len(seen)))
    assert seen == [0, 1, 2]


# --- perturbation ---


def perturbed(folder: Path, seed: int = 0, **options: Any) -> Corpus:
    noises = folder / "noises"
    noises.mkdir(exist_ok=True)
    soundfile.write(noises / "n.wav", noise(3_000, 99), RATE)
    settings = {"noise": noises, "noise_share": 0.5, "gain_db": [-6, 6], **options}
    return corpus(folder, rows_of([0.3, 0.3, 0.4]), seed=seed, augment=settings)


def unpadded(got: Corpus, batch: Batch, row: int, samples: int) -> np.ndarray:
    left = GEOMETRY.left
    return got.heard(batch, CPU, got.recordings)[0][row, left : left + samples].numpy()


def test_perturbation_is_a_function_of_seed_epoch_and_utterance(tmp_path: Path) -> None:
    got, again = perturbed(tmp_path), perturbed(tmp_path)
    first = got.load([Item(0), Item(1)], 2)
    got.load([Item(2, 1.1)], 2)  # what was loaded before makes no difference, nor the company
    alone = got.load([Item(1)], 2)
    assert first.perturbations[1:] == alone.perturbations == again.load([Item(1)], 2).perturbations
    np.testing.assert_allclose(unpadded(got, first, 1, 4_800), unpadded(got, alone, 0, 4_800), atol=1e-6)
    assert torch.equal(got.heard(first, CPU, got.recordings)[0], again.heard(first, CPU, again.recordings)[0])
    for other in (got.load([Item(1)], 3), perturbed(tmp_path, seed=1).load([Item(1)], 2)):
        assert other.perturbations != alone.perturbations


def test_gain_stays_in_its_range_and_differs_between_utterances(tmp_path: Path) -> None:
    got = perturbed(tmp_path, noise=None)
    gains = []
    for epoch in range(20):
        batch = got.load([Item(0), Item(1)], epoch)
        gains += [unpadded(got, batch, row, 4_800)[9] / got.waveform(row)[9] for row in (0, 1)]
    assert 10 ** (-6 / 20) <= min(gains) < 0.8
    assert 1.25 < max(gains) <= 10 ** (6 / 20)
    assert len({round(float(gain), 4) for gain in gains}) == 40


def test_noise_comes_to_its_share(tmp_path: Path) -> None:
    got = perturbed(tmp_path, gain_db=[0, 0], noise_share=0.25)
    loaded = [unpadded(got, got.load([Item(0)], epoch), 0, 4_800) for epoch in range(80)]
    clean = sum(np.array_equal(one, got.waveform(0)) for one in loaded)
    assert 48 <= clean <= 72


def test_speed_is_the_plans(tmp_path: Path) -> None:
    got = perturbed(tmp_path, gain_db=[0, 0], noise=None)
    batch = got.load([Item(0, 1.25)], 0)
    assert batch.seconds == pytest.approx(0.24)
    assert batch.perturbations[0].speed == 1.25
    assert got.heard(batch, CPU)[1] == [len(GEOMETRY.pad(np.zeros(3_840)))]


def test_nothing_is_perturbed_outside_training(tmp_path: Path) -> None:
    options = {"gain_db": [6, 6], "speed": [1.1], "noise": tmp_path / "absent"}
    got = corpus(tmp_path, rows_of([0.3]), training=False, augment=options)
    np.testing.assert_array_equal(unpadded(got, got.load(got.in_order()[0], 0), 0, 4_800), got.waveform(0))


def test_training_without_the_noise_it_asks_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.noise"):
        corpus(tmp_path, rows_of([0.3]), augment={"noise": tmp_path / "absent"})


# --- loading ahead ---


def test_batches_are_the_plans_in_order(tmp_path: Path) -> None:
    got = corpus(tmp_path, many(), augment={"speed": [0.9, 1.1], "gain_db": [-6, 6]}, batch={"seconds": 2.0})
    plan = got.plan(1, by_length=False)
    assert len(plan) > 2 * data._AHEAD
    loaded = list(got.batches(plan, 1))
    assert len(loaded) == len(plan)
    for items, batch in zip(plan, loaded, strict=True):
        expected = got.load(items, 1)
        assert batch.ids == expected.ids
        assert torch.equal(batch.samples, expected.samples)
        assert batch.perturbations == expected.perturbations
        assert torch.equal(batch.token_ids, expected.token_ids)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_batches_than_are_loaded_ahead(tmp_path: Path, count: int) -> None:
    got = corpus(tmp_path, rows_of([0.2, 0.2, 0.2]))
    assert [batch.ids for batch in got.batches([[Item(i)] for i in range(count)], 0)] == [
        (f"u{i:03}",) for i in range(count)
    ]


def test_an_error_of_the_loader_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = corpus(tmp_path, rows_of([0.2] * 10), training=False)
    load = got.load

    def failing(items: list[Item], epoch: int) -> Batch:
        if items[0].index == 6:
            raise OSError("the disk is gone")
        return load(items, epoch)

    monkeypatch.setattr(got, "load", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012
        for batch in got.batches([[Item(i)] for i in range(10)], 0):
            seen.append(batch.ids[0])
    assert seen == [f"u{i:03}" for i in range(6)]


def test_leaving_early_stops_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = corpus(tmp_path, rows_of([0.2] * 40))
    loaded = []

    def load(items: list[Item], epoch: int) -> Batch:
        loaded.append(items)
        if len(loaded) > 1:
            time.sleep(0.2)
        return Corpus.load(got, items, epoch)

    monkeypatch.setattr(got, "load", load)
    monkeypatch.setattr(data, "_LOADERS", 4)  # so few that some wait
    batches = got.batches([[Item(i)] for i in range(40)], 0)
    next(batches)
    assert isinstance(batches, Generator)
    batches.close()
    assert len(loaded) < data._AHEAD  # those that waited are not loaded in vain
