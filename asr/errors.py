"""The one exception tree.

Each message says what was expected, what was got, and what to do. The command line prints it as one line; a program
that embeds the package catches `AsrError`, or the narrower error of the module it calls.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AsrError(Exception):
    """Anything this package reports about its input; a bug is any other exception."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to a mistyped one.

    >>> nearest("hiden", ["hidden", "layers"])
    "did you mean 'hidden'?"
    >>> nearest("zebra", ["hidden", "layers"])
    'known: hidden, layers'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
