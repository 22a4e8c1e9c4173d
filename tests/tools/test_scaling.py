"""tools/scaling, against hand arithmetic and against itself: formula and simulation are two ways to one figure."""

import math
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "scaling"
scaling = SimpleNamespace(**run_path(str(TOOL)))
# 100 h are 4000 batches of 90 s, of which 4 processes average 8 at a time: 500 updates of 2 batches each.
JOB = scaling.Job(
    hours=100,
    utterance_s=10,
    gpus=4,
    nodes=2,
    speed=0.1,
    batch_s=100,
    fill=0.9,
    accumulate=8,
    parameters=25e6,
    cores=4,
    memory_gb=1000,
    disk_mb_s=4,
    network_mb_s=1000,
    checkpoint_minutes=3,
    decode_x=900,
    start_us=200,
    plan_us=10,
    object_bytes=4000,
    load_us=1000,
    save_mb_s=400,
)


def test_the_formula_is_the_hand_arithmetic() -> None:
    cost = scaling.cost(JOB)
    assert (cost.updates, cost.each) == (500, 2)
    assert cost.shards_gb == pytest.approx(11.52)
    assert cost.objects_gb == pytest.approx(36_000 * 4000 * 2 / 1e9)  # of two processes
    assert cost.decode_s == pytest.approx(100)
    assert cost.start_s == pytest.approx(7.2)
    assert cost.step_s == pytest.approx(0.25)  # 90 s of audio at 360 times real time
    assert cost.missed == 0
    assert cost.load_s == pytest.approx(0.009)
    assert cost.reduce_s == pytest.approx(0.15)  # 2 x 3/4 of 100 MB
    assert cost.save_s == pytest.approx(1)
    assert cost.epoch_s == pytest.approx(0.36 + 500 * (2 * 0.25 + 0.15) * (1 + 1 / 180) + 1)
    assert cost.bottleneck == "GPU"


def test_a_slow_disk_sets_the_pace_where_the_page_cache_is_too_small() -> None:
    job = scaling.replace(JOB, memory_gb=0.3)  # the objects take nearly all
    cost = scaling.cost(job)
    assert cost.missed == pytest.approx(1)
    assert cost.load_s == pytest.approx(0.009 + 2.88 / 2)  # 2.88 MB at half of 4 MB/s
    assert cost.bottleneck == "audio"
    assert cost.epoch_s == pytest.approx(0.36 + 500 * 2 * 1.449 * (1 + 1 / 180) + 1)


@pytest.mark.parametrize(
    "changes", [{}, {"memory_gb": 0.3}, {"network_mb_s": 50}, {"gpus": 1, "nodes": 1}, {"gpus": 64}]
)
def test_the_simulation_agrees_with_the_formula(changes: dict[str, float]) -> None:
    job = scaling.replace(JOB, **changes)
    # The slowest of 64 batches takes 5 per cent more than the mean, at each update.
    assert scaling.cost(job).epoch_s * 0.99 < scaling.simulate(job) < scaling.cost(job).epoch_s * 1.06


@pytest.mark.parametrize("cached", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_misses_are_those_of_a_cache_of_least_recent_use(cached: float) -> None:
    assert scaling.misses(cached) == pytest.approx(scaling.cached_reads(cached, 4000), abs=0.02)


def test_objects_that_do_not_fit_are_told() -> None:
    assert scaling.cost(scaling.replace(JOB, memory_gb=0.2)).bottleneck == "no memory"


def test_half_of_the_data_cached_spares_15_per_cent_of_the_reads() -> None:
    assert 1 - scaling.misses(0.5) == pytest.approx(0.5 - 0.5 * math.log(2))


def test_the_command_prints_a_row_for_each_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", "simulate", "--hours", "5", "1000", "--gpus", "8"])
    scaling.main()
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows == ["hours", "---", "5", "1,000"]


@pytest.mark.parametrize("faulty", [["--gpus", "3", "--nodes", "2"], ["--speed", "0"], ["--hours", "-1"]])
def test_values_that_make_no_training_are_refused(
    faulty: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", "simulate", *faulty])
    with pytest.raises(SystemExit) as ended:
        scaling.main()
    assert ended.value.code == 2
    assert "expected values > 0" in capsys.readouterr().err
