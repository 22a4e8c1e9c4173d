"""What a server is told, and its limits; see docs/serve.md."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.errors import AsrError
from asr.files import cores
from asr.models import DEFAULT_MODEL

MAX_MODELS = 4


class ServeError(AsrError):
    """Settings that contradict each other, or a server that cannot start."""


@dataclass(frozen=True)
class Settings:
    """Everything that a server heeds.

    models:        names or files, the first is the default; each is known to clients by its name.
    steering:      further arguments of each model's Recognizer.
    host, port:    to listen at; port 0 is any free one.
    token:         that requests must bring; required beyond loopback, unless no_token.
    allow_hosts:   names that requests may call this server by, besides its own address.
    allow_origins: other origins whose pages may use it, such as https://notes.example.
    tls_cert, tls_key: files in PEM, for https.
    workers:       processes that recognise files, one at a time each; of several, one takes no long files.
    max_streams:   live streams at a time.
    max_queue:     files that may wait for a worker.
    max_upload:    bytes of a request.
    max_audio_s:   seconds of sound in a file, as decoded; max_stream_s: in a stream.
    job_timeout_s: seconds that a worker may take for a file.
    worker_memory: bytes of address space of a worker.
    rate_limit:    requests a minute from one address; 0: any number.
    aliases:       further names of the default model.
    language:      ISO 639-1, of what is spoken; "any": whatever a client says it is.
    temp:          a folder for uploads while they are heard.
    vosk:          another port, for clients of Vosk who know no path; vosk_rate: Hz, where they do not say.
    wyoming:       address and port for clients of Wyoming, which has no tokens.
    page, metrics: whether there is a page at /, and /metrics.

    The rest are deadlines in seconds: header_s for a request's headers, and for a connection that asks nothing; body_s
    without a byte of its body; after slow_s, least_rate bytes a second on average; first_s for a socket's first message;
    idle_s between two; send_s for a client to take what it is sent; grace_s for what runs when the server ends.
    least_free: bytes that must stay free where uploads go.
    """

    models: tuple[str, ...] = (DEFAULT_MODEL,)
    steering: Mapping[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    no_token: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    workers: int = field(default_factory=lambda: min(cores(), 4) + 1)
    max_streams: int = field(default_factory=lambda: 4 * cores())
    max_queue: int = 32
    max_upload: int = 512 << 20
    max_audio_s: float = 4 * 3600.0
    max_stream_s: float = 4 * 3600.0
    job_timeout_s: float = 3600.0
    worker_memory: int = 2 << 30
    rate_limit: int = 0
    aliases: tuple[str, ...] = ()
    language: str = "en"
    temp: Path | None = None
    vosk: int | None = None
    vosk_rate: int = 8000
    wyoming: tuple[str, int] | None = None
    page: bool = True
    metrics: bool = True
    header_s: float = 15.0
    body_s: float = 30.0
    slow_s: float = 10.0
    least_rate: float = 1024.0
    first_s: float = 10.0
    idle_s: float = 60.0
    ping_s: float = 20.0
    send_s: float = 30.0
    grace_s: float = 10.0
    least_free: int = 1 << 30

    def __post_init__(self) -> None:
        if not 1 <= len(self.models) <= MAX_MODELS:
            raise ServeError(f"expected 1 to {MAX_MODELS} models, got {len(self.models)}")
        if self.token is not None and (not self.token.isascii() or not self.token.isprintable() or " " in self.token):
            raise ServeError("expected a token of printable ASCII without spaces; make one: openssl rand -hex 16")
        if self.token is None and not self.no_token and not is_loopback(self.host):
            raise ServeError(f"{self.host} can be reached from other machines: a token is needed, or no_token")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ServeError("expected a certificate and its key, got one of them")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
