"""Recordings as waveforms: mono float32 at 16 kHz, from files, containers, pipes and arrays; and microphones."""

from asr.audio.files import (
    SAMPLE_RATE,
    SUFFIXES,
    AudioError,
    AudioInfo,
    as_waveform,
    blocks,
    info,
    pad,
    padding,
    pipe_blocks,
    read,
    resample,
)

__all__ = [
    "SAMPLE_RATE",
    "SUFFIXES",
    "AudioError",
    "AudioInfo",
    "as_waveform",
    "blocks",
    "info",
    "pad",
    "padding",
    "pipe_blocks",
    "read",
    "resample",
]
