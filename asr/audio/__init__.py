"""Recordings as waveforms: mono float32 at 16 kHz, from files, containers, pipes and arrays; and microphones."""

from asr.audio.files import (
    SUFFIXES,
    AudioInfo,
    Source,
    blocks,
    info,
    is_recording,
    pipe_blocks,
    read,
    read_utterance,
)
from asr.audio.sndfile import FULL_SCALE, as_int16
from asr.audio.waveform import SAMPLE_RATE, Converter, Geometry, Mixer, as_samples, as_waveform, resample
from asr.errors import AudioError

__all__ = [
    "FULL_SCALE",
    "SAMPLE_RATE",
    "SUFFIXES",
    "AudioError",
    "AudioInfo",
    "Converter",
    "Geometry",
    "Mixer",
    "Source",
    "as_int16",
    "as_samples",
    "as_waveform",
    "blocks",
    "info",
    "is_recording",
    "pipe_blocks",
    "read",
    "read_utterance",
    "resample",
]
