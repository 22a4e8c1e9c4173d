"""A web server on loopback with the faults that real ones have."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ETAG = '"1"'


class Mirror(ThreadingHTTPServer):
    """Serves `files` by path. What may go wrong, each once for each entry: `cuts`, `statuses`.

    cuts:       the connection ends after so many bytes of the body.
    replacement: what the file is after a cut, as another version.
    statuses:   answered instead of the file; 302 leads to `location`.
    ranges:     whether parts of a file can be asked for; lengths: whether the length is told.
    requests:   (path, Range header or "") as they came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = self.lengths = True
        self.etag: str | None = ETAG
        self.location = ""
        self.replacement: bytes | None = None
        self.requests: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        mirror, asked = self.server, self.headers.get("Range", "")
        mirror.requests.append((self.path, asked))
        status = mirror.statuses.pop(0) if mirror.statuses else 200 if self.path in mirror.files else 404
        if status != 200:
            self.send_response(status)
            self.send_header("Location", mirror.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, start = mirror.files[self.path], 0
        if mirror.ranges and asked and self.headers.get("If-Range", mirror.etag) == mirror.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if mirror.etag:
            self.send_header("ETag", mirror.etag)
        if mirror.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if mirror.cuts:
            body = body[: start + mirror.cuts.pop(0)]
            if mirror.replacement is not None:
                mirror.files[self.path], mirror.etag = mirror.replacement, '"2"'
        self.wfile.write(body[start:])
        # HTTP/1.0: the connection ends here.

    def log_message(self, *_: object) -> None:
        pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def running() -> Iterator[Mirror]:
    with Mirror() as mirror:
        thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield mirror
        finally:
            mirror.shutdown()
            thread.join()
