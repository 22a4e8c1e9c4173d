"""Who may ask: Host, Origin, token, rate. One check for requests and sockets alike, before anything of a body is read.

A page of any other site can send requests, and open sockets, to a server on the same machine. Such a page is told by its
Origin; one that reaches us by a name of its own that leads here (DNS rebinding), by its Host. What brings the token is no
such page.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import deque
from urllib.parse import urlsplit

from aiohttp import web

from asr.serving.errors import ApiError
from asr.serving.settings import Settings, is_loopback

# What tells nothing, and what a page needs before it can ask for a token.
OPEN = frozenset(
    ["/", "/page.js", "/formats.js", "/page.css", "/worklet.js", "/healthz", "/readyz", "/health"],
)
TOKEN_PROTOCOLS = ("asr.token.", "openai-insecure-api-key.")  # a browser's socket can send no header but its protocols
_MAX_CLIENTS = 10_000  # whose requests are counted


class Guard:
    """Refuses what is not for this server. raises: ApiError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = is_loopback(settings.host)
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allow_hosts)}
        self._recent: dict[str, deque[float]] = {}  # when each client asked, within a minute

    def check(self, request: web.BaseRequest, *, count: bool = True) -> None:
        """count: whether this is one of the requests that a client may make in a minute."""
        known = self._knows_token(request)
        if not known and not self._is_ours(request.headers.get("Host", "")):
            raise ApiError(
                403,
                "forbidden_host",
                "this server is not called by that name: send the token, or start it with --allow-host NAME",
            )
        if not self._may(request):
            raise ApiError(
                403, "forbidden_origin", "pages of another origin may not use this server; see --allow-origin"
            )
        if request.method == "OPTIONS":  # a browser asks first, without the token
            return
        is_open = request.path in OPEN and "Upgrade" not in request.headers
        if self._settings.token is not None and not known and not is_open:
            raise ApiError(
                401,
                "invalid_api_key",
                "expected the server's token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ApiError(415, "unsupported_format", "expected a body without Content-Encoding")
        if count and self._settings.rate_limit and request.path not in OPEN:
            self._count(request.remote or "")

    def allowed_origin(self, request: web.BaseRequest) -> str | None:
        """The Origin of a request, if it is another one's that is allowed; for the headers that browsers ask for."""
        origin = request.headers.get("Origin")
        return origin if origin in self._settings.allow_origins else None

    def _knows_token(self, request: web.BaseRequest) -> bool:
        if self._settings.token is None:
            return False
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        brought = [request.headers.get("X-API-Key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        for protocol in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
            brought += [protocol.strip().removeprefix(prefix) for prefix in TOKEN_PROTOCOLS if prefix in protocol]
        token = self._settings.token.encode()
        return any([hmac.compare_digest(one.encode("utf-8", "replace"), token) for one in brought])  # noqa: C419

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names or is_loopback(name):
            return True
        try:  # an address is no name that could lead elsewhere tomorrow
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not self._local

    def _may(self, request: web.BaseRequest) -> bool:
        origin = request.headers.get("Origin")
        if origin is None:
            # A link to the page is none of another page's business.
            return request.headers.get("Sec-Fetch-Site") != "cross-site" or request.path in OPEN
        if origin in self._settings.allow_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == request.headers.get("Host", "").lower()

    def _count(self, client: str) -> None:
        now = time.monotonic()
        if len(self._recent) >= _MAX_CLIENTS:
            self._recent = {one: times for one, times in self._recent.items() if now - times[-1] < 60}
        times = self._recent.setdefault(client, deque(maxlen=self._settings.rate_limit))
        if len(times) == self._settings.rate_limit and now - times[0] < 60:
            wait = str(int(60 - (now - times[0])) + 1)
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"expected at most {self._settings.rate_limit} requests a minute",
                headers={"Retry-After": wait},
            )
        times.append(now)
