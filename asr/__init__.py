"""Speech recognition with recurrent CTC networks: train with PyTorch, run without it.

>>> from asr import Recognizer
>>> recognizer = Recognizer("digits")
>>> recognizer.transcribe("tests/data/connected_digits.flac").text
'five seven nine zero'

A stream gives texts while audio is still coming (`asr.stream`):

>>> from asr import Final
>>> from asr.audio import blocks
>>> stream = recognizer.stream()
>>> heard = [stream.feed(block) for block in blocks("tests/data/connected_digits.flac", block_s=0.5)] + [stream.flush()]
>>> [event.text for events in heard for event in events if isinstance(event, Final)]
['five seven nine zero']
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# From 1.32 on, onnxruntime keeps a number of this machine and reports on each model to its maker, unless it finds this when
# it is imported; nothing that it can be told later stops it from that. What is heard here is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from asr.errors import AsrError as AsrError
    from asr.recognizer import Recognizer as Recognizer
    from asr.stream import Final as Final
    from asr.stream import Partial as Partial
    from asr.transcript import Transcript as Transcript

__version__ = "0.2.0"
__all__ = ["AsrError", "Final", "Partial", "Recognizer", "Transcript", "__version__"]

# Loaded on first use, so that `import asr` costs nothing.
_HOMES = {
    "AsrError": "asr.errors",
    "Final": "asr.stream",
    "Partial": "asr.stream",
    "Recognizer": "asr.recognizer",
    "Transcript": "asr.transcript",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'asr' has no attribute '{name}'")
