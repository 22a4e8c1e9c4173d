import io
import time
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from asr.training.profile import Profile


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def rendered(one: Profile) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100)
    one.render(console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_parts_add_up_and_the_rest_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    one = Profile(torch.device("cpu"), active=True)
    for _ in range(2):
        with one.part("network"):
            clock.now += 3
        with one.part("CTC"):
            clock.now += 1
    clock.now += 2
    assert rendered(one) == [["network", "6.00", "60.0%"], ["CTC", "2.00", "20.0%"], ["all else", "2.00", "20.0%"]]


def test_waiting_is_the_time_until_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def slow() -> Iterator[int]:
        for number in range(3):
            clock.now += 2
            yield number
        clock.now += 2

    one = Profile(torch.device("cpu"), active=True)
    got = []
    for number in one.waits("waiting", slow()):
        got.append(number)
        clock.now += 1
    assert got == [0, 1, 2]
    assert rendered(one)[0] == ["waiting", "8.00", "72.7%"]


def test_a_part_that_fails_is_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    one = Profile(torch.device("cpu"), active=True)

    def fail() -> None:
        with one.part("network"):
            clock.now += 4
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert rendered(one)[0] == ["network", "4.00", "100.0%"]


def test_inactive_it_asks_for_no_time_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Profile(torch.device("cpu"), active=False)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("asked for the time"))
    with one.part("network"):
        pass
    assert list(one.waits("waiting", [1, 2])) == [1, 2]
    assert rendered(one) == []
