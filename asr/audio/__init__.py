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
from asr.audio.waveform import SAMPLE_RATE, Converter, Mixer, as_samples, as_waveform, pad, padding, resample
from asr.errors import AudioError

__all__ = [
    "SAMPLE_RATE",
    "SUFFIXES",
    "AudioError",
    "AudioInfo",
    "Converter",
    "Mixer",
    "Source",
    "as_samples",
    "as_waveform",
    "blocks",
    "info",
    "is_recording",
    "pad",
    "padding",
    "pipe_blocks",
    "read",
    "read_utterance",
    "resample",
]
