"""Speech recognition with recurrent CTC networks: train with PyTorch, run without it.

>>> from asr import Recognizer
>>> recognizer = Recognizer()
>>> print(recognizer.transcribe("recording.wav").text)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.recognizer import Recognizer as Recognizer
    from asr.transcript import Transcript as Transcript

__version__ = "0.2.0"
__all__ = ["Recognizer", "Transcript", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import asr` costs nothing.
    if name == "Recognizer":
        from asr.recognizer import Recognizer

        return Recognizer
    if name == "Transcript":
        from asr.transcript import Transcript

        return Transcript
    raise AttributeError(f"module 'asr' has no attribute '{name}'")
