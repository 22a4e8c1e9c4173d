"""Impulse responses of simulated rooms for `augment.rooms`: what a microphone some way from the speaker hears.

    pip install pyroomacoustics
    python tools/rooms.py OUT

Shoeboxes from a closet to a hall by the image method (Allen & Berkley 1979), the images displaced a little, since those
of a perfect shoebox arrive in patterns that no room has (De Sena et al. 2015). Reverberation times (RT60) are 0.15 to
1 s, distances 0.3 to 4 m. OUT gets room-0001.flac ...; the same seed gives the same rooms.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from asr.audio import SAMPLE_RATE

try:
    import pyroomacoustics
except ImportError:
    sys.exit("rooms.py: expected pyroomacoustics to be installed; pip install pyroomacoustics")
LOWEST_S, HIGHEST_S, WALL_M = 0.15, 1.0, 0.3  # RT60; the least distance to a wall


def response(rng: np.random.Generator) -> np.ndarray:
    """(N,), its peak at 0.9, of the next room drawn that is possible and has such a reverberation time."""
    while True:
        size = np.exp(rng.uniform(np.log([2, 2, 2.3]), np.log([20, 15, 6])))  # m
        rt60, distance = np.exp(rng.uniform(np.log([LOWEST_S, 0.3]), np.log([HIGHEST_S, 4])))
        direction = rng.normal(size=3) * [1, 1, 0.3]  # both at much the same height
        microphone = rng.uniform(WALL_M, size - WALL_M)
        speaker = microphone + distance * direction / np.linalg.norm(direction)
        least = 0.163 / (2 * (1 / size).sum())  # s (Sabine), were there nothing but open windows
        if rt60 < least or (np.minimum(speaker, size - speaker) <= WALL_M).any():
            continue
        absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
        walls = pyroomacoustics.Material(absorption)
        room = pyroomacoustics.ShoeBox(size, SAMPLE_RATE, materials=walls, max_order=order, use_rand_ism=True)
        room.add_source(speaker).add_microphone(microphone).compute_rir()
        # Sabine's formula holds for sound that comes from everywhere; low and wide rooms take longer.
        if LOWEST_S <= room.measure_rt60(decay_db=20).item() <= HIGHEST_S:
            samples: np.ndarray = np.asarray(room.rir[0][0], np.float64)[: round(HIGHEST_S * SAMPLE_RATE)]
            return np.asarray(samples * 0.9 / np.abs(samples).max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--rooms", metavar="N", type=int, default=200, help="default: 200")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    pyroomacoustics.random.seed(arguments.seed)
    pyroomacoustics.constants.set("num_threads", 1)  # several would add up in any order
    part = arguments.out / "room.part"
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for number in track(range(1, arguments.rooms + 1), "Simulating rooms", console=Console(stderr=True)):
            with part.open("wb") as file:
                soundfile.write(file, response(rng), SAMPLE_RATE, format="FLAC")
            part.replace(arguments.out / f"room-{number:04}.flac")
    except OSError as error:
        sys.exit(f"rooms.py: {error.filename}: cannot be written: {error.strerror}")
