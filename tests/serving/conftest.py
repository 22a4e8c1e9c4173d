"""One server for all tests that can share one."""

from __future__ import annotations

from collections.abc import Iterator

import listening
import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[listening.Server]:
    with listening.running(workers=2, vosk=0, wyoming=("127.0.0.1", 0)) as one:
        yield one
