"""`python -m asr`, for torchrun."""

from asr.cli import main

if __name__ == "__main__":
    main()
