"""Who may ask, and what happens to those who may not, or who do not speak HTTP as they should."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import listening
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from listening import DIGITS, TEXT, Server

from asr.errors import AsrError
from asr.serving import page
from asr.serving.errors import ApiError
from asr.serving.guard import Guard
from asr.serving.settings import Settings

# Of forms that are broken aiohttp warns; the server it serves ignores that.
pytestmark = [
    pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader"),
    pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionParam"),
]
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """With a token, and limits that are soon reached."""
    limits = {"header_s": 2.0, "body_s": 1.0, "slow_s": 2.0, "max_upload": 1 << 20}
    with listening.running(token=TOKEN, allow_origins=("https://notes.example",), **limits) as one:
        yield one


def check(headers: dict[str, str], path: str = "/v1/models", method: str = "GET", **options: Any) -> str:
    """The code that a request is refused with, or "ok"."""
    try:
        Guard(Settings(**options)).check(
            make_mocked_request(method, path, headers={"Host": "localhost:8000"} | headers)
        )
    except ApiError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000"])
def test_hosts_that_are_this_machine(host: str) -> None:
    assert check({"Host": host}) == "ok"


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "192.168.1.5:8000", "[::1", "a:b:c"])
def test_hosts_that_are_not(host: str) -> None:
    assert check({"Host": host}) == "forbidden_host"


def test_hosts_of_a_server_for_others() -> None:
    open_to_all: dict[str, Any] = {"host": "0.0.0.0", "no_token": True, "allow_hosts": ("Asr",)}
    assert check({"Host": "192.168.1.5:8000"}, **open_to_all) == "ok"
    assert check({"Host": "asr:8000"}, **open_to_all) == "ok"
    assert check({"Host": "evil.example"}, **open_to_all) == "forbidden_host"
    # A page that rebinds a name has no token; a container's neighbour, which calls it by any name, has.
    with_token = {"host": "0.0.0.0", "token": TOKEN}
    assert check({"Host": "any:8000", "Authorization": f"Bearer {TOKEN}"}, **with_token) == "ok"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:8001", "http://localhost", "file://", "http://[::1"]
)
def test_pages_of_other_origins(origin: str) -> None:
    assert check({"Origin": origin}) == "forbidden_origin"
    assert check({"Origin": origin, "Upgrade": "websocket"}, path="/v1/stream") == "forbidden_origin"
    assert check({"Origin": origin, "Authorization": f"Bearer {TOKEN}"}, token=TOKEN) == "forbidden_origin"


def test_pages_that_may() -> None:
    assert check({"Origin": "http://localhost:8000"}) == "ok"
    assert check({"Origin": "https://localhost:8000"}) == "ok"  # behind a proxy
    assert check({"Origin": "https://notes.example"}, allow_origins=("https://notes.example",)) == "ok"
    assert check({"Sec-Fetch-Site": "cross-site"}) == "forbidden_origin"
    assert check({"Sec-Fetch-Site": "cross-site"}, path="/") == "ok"  # a link to the page
    assert check({"Sec-Fetch-Site": "same-origin"}) == "ok"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer  {TOKEN}"},
        {"X-API-Key": TOKEN},
        {"Sec-WebSocket-Protocol": f"asr.v1, asr.token.{TOKEN}"},
        {"Sec-WebSocket-Protocol": f"realtime, openai-insecure-api-key.{TOKEN}"},
    ],
    ids=str,
)
def test_the_token(headers: dict[str, str]) -> None:
    assert check(headers, token=TOKEN) == "ok"
    assert check(headers, token=TOKEN + "0") == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer "}, {"Sec-WebSocket-Protocol": TOKEN}],
    ids=str,
)
def test_no_token(headers: dict[str, str]) -> None:
    assert check(headers, token=TOKEN) == "invalid_api_key"
    assert check(headers, path=f"/v1/models?token={TOKEN}&api_key={TOKEN}", token=TOKEN) == "invalid_api_key"
    for path in (*page.FILES, "/healthz", "/readyz"):
        assert check(headers, path=path, token=TOKEN) == "ok"
    # But of its sockets, the page's path asks for one as well.
    assert check(headers | {"Upgrade": "websocket"}, path="/", token=TOKEN) == "invalid_api_key"


def test_a_path_in_the_log_is_one_line(strict: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asr.serving")
    assert strict.ask("/a%0A127.0.0.1%20b")[0] == 401
    assert [record.request["path"] for record in caplog.records if hasattr(record, "request")] == ["/a%0A127.0.0.1%20b"]


def test_packed_bodies() -> None:
    assert check({"Content-Encoding": "gzip"}, method="POST") == "unsupported_format"


def test_rate() -> None:
    guard = Guard(Settings(rate_limit=2))
    asked = make_mocked_request("GET", "/v1/models", headers={"Host": "localhost"})
    guard.check(asked)
    guard.check(asked)
    with pytest.raises(ApiError) as told:
        guard.check(asked)
    assert (told.value.status, told.value.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(told.value.headers["Retry-After"]) <= 61
    guard.check(make_mocked_request("GET", "/healthz", headers={"Host": "localhost"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "a token is needed"),
        ({"host": "asr.example"}, "a token is needed"),
        ({"token": "ä b"}, "printable ASCII"),
        ({"tls_cert": "cert.pem"}, "got one of them"),
        ({"models": ("a",) * 5}, "expected 1 to 4 models, got 5"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AsrError, match=message):
        Settings(**options)


def test_https(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-out"]
    subprocess.run([*made, cert, "-keyout", key], check=True, capture_output=True)
    with listening.running(tls_cert=cert, tls_key=key) as server:
        context = ssl.create_default_context(cafile=cert)
        connection = HTTPSConnection("localhost", server.port, context=context)
        connection.request("GET", "/healthz")
        with connection.getresponse() as answer:
            assert answer.status == 200
        connection.close()
    key.write_text("no key")
    with pytest.raises(AsrError, match="cannot be used with its key"):
        Server(tls_cert=cert, tls_key=key)


def test_a_server_with_a_token(strict: Server) -> None:
    status, headers, body = strict.ask("/v1/models")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert (
        strict.send([("file", DIGITS)], {"Authorization": f"Bearer {TOKEN}", "x-request-id": "a-1"})[1]["x-request-id"]
        == "a-1"
    )
    assert strict.ask("/v1/models", headers={"x-request-id": "a b"})[1]["x-request-id"] != "a b"
    assert strict.ask("/metrics")[0] == 401
    assert strict.metric("asr_rejected_total", reason="invalid_api_key") > 0
    assert strict.is_well()


def test_pages_that_may_ask_browsers_first(strict: Server) -> None:
    origin = {"Origin": "https://notes.example"}
    status, headers, _ = strict.ask("/v1/models", "OPTIONS", headers=origin | {"Access-Control-Request-Method": "GET"})
    assert (status, headers["access-control-allow-origin"]) == (204, "https://notes.example")
    assert "Authorization" in headers["access-control-allow-headers"]
    status, headers, _ = strict.ask("/v1/models", headers=origin | {"X-API-Key": TOKEN})
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, "https://notes.example", "Origin")
    status, headers, _ = strict.ask("/v1/models", "OPTIONS", headers={"Origin": "https://evil.example"})
    assert (status, headers.get("access-control-allow-origin")) == (403, None)


def test_what_is_too_large(strict: Server) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    status, headers, body = strict.send([("file", ("a.wav", b"0" * (1 << 20)))], bearer)
    assert (status, body["error"]["code"], headers["connection"]) == (413, "request_too_large", "close")
    # Without its length: as many bytes as are allowed are read, and no more.
    content, kind = listening.form([("file", ("a.wav", b"0" * (1 << 21)))])
    pieces = (content[at : at + 65536] for at in range(0, len(content), 65536))
    status, _, told = strict.ask("/v1/audio/transcriptions", "POST", pieces, {"Content-Type": kind} | bearer)
    assert (status, json.loads(told)["error"]["code"]) == (413, "request_too_large")
    assert strict.send([("prompt", "x" * 65537), ("file", DIGITS)], bearer)[2]["error"]["param"] == "prompt"
    assert "64 parts" in strict.send([("a", "b")] * 65, bearer)[2]["error"]["message"]
    assert strict.is_well()


HEAD = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
FORM = HEAD + b"Content-Type: multipart/form-data; boundary=xx\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10000 + b"\r\n\r\n",
        b"GET /" + b"x" * 10000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100)) + b"\r\n",
        HEAD + b"Content-Length: -5\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: many\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n",
    ],
    ids=lambda sent: str(sent[-40:]),
)
def test_broken_http(strict: Server, sent: bytes) -> None:
    answer = strict.raw(sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 415"))
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert strict.is_well()


PART = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"--xx\r\n",
        PART + b"RIFF",
        PART + b"RIFF\r\n--xx",
        b'--xx\r\nContent-Disposition: form-data; name="file"\r\nX: ' + b"x" * 1_000_000 + b"\r\n\r\n\r\n--xx--\r\n",
        b"--xx\r\n" + b"X: 1\r\n" * 1000 + b"\r\n\r\n--xx--\r\n",
        b"--xx\r\n\r\n\r\n" * 10_000,
        b'--xx\r\nContent-Disposition: form-data; name="a\0b"\r\n\r\n1\r\n--xx--\r\n',
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="\0../../etc/passwd"\r\n\r\n1\r\n--xx--\r\n',
        b"--xx\r\nContent-Type: multipart/mixed; boundary=yy\r\n\r\n--yy\r\n\r\n1\r\n--yy--\r\n--xx--\r\n",
        b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\xfe\r\n--xx--\r\n',
        PART + b"1\r\n" + PART + b"2\r\n--xx--\r\n",
        b"\n" * 20_000 + PART + b"1\r\n--xx--\r\n",
        PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"UklGRg==\r\n--xx--\r\n",
    ],
    ids=lambda body: str(body[:50]),
)
def test_broken_forms(strict: Server, body: bytes) -> None:
    answer = strict.raw(FORM + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert strict.is_well()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), cut=st.integers(0, 40), new=st.binary(max_size=40))
def test_forms_with_a_hole(strict: Server, at: int, cut: int, new: bytes) -> None:
    body, _ = listening.form([("model", "digits"), ("language", "en"), ("file", ("a.wav", b"RIFF" * 40))])
    at = min(at, len(body))
    body = body[:at] + new + body[at + cut :]
    answer = strict.raw(FORM + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    status = int(answer.split()[1])
    assert 400 <= status < 500
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_those_who_dawdle(strict: Server) -> None:
    """Nothing, half a header, a header and a body that trickle, a body that stops: all at once."""
    starts = {
        "idle": b"",
        "half": b"GET / HT",
        "header": b"GET / HTTP/1.1\r\nX: ",
        "body": FORM + b"Content-Length: 100000\r\n\r\n" + PART,
        "stopped": FORM + b"Content-Length: 100000\r\n\r\n" + PART,
    }
    answers: dict[str, bytes] = {}

    def dawdle(name: str) -> None:
        with socket.create_connection(("127.0.0.1", strict.port)) as connection:
            connection.sendall(starts[name])
            if name in ("header", "body"):
                connection.settimeout(0.2)
            got = b""
            while True:
                try:
                    piece = connection.recv(1 << 16)
                    got += piece
                    if not piece:
                        break
                except TimeoutError:
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        break
                except OSError:
                    break
            answers[name] = got

    threads = [threading.Thread(target=dawdle, args=(name,)) for name in starts]
    for one in threads:
        one.start()
    assert strict.send([("file", DIGITS)], {"X-API-Key": TOKEN})[2]["text"] == TEXT  # nobody else waits for them
    for one in threads:
        one.join()
    assert answers["idle"] == answers["half"] == answers["header"] == b""
    for name in ("body", "stopped"):
        assert answers[name].startswith(b"HTTP/1.1 408")
        assert b"upload_too_slow" in answers[name]
    assert strict.is_well()


def test_a_client_that_goes_away_in_its_upload_leaves_nothing(strict: Server) -> None:
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.sendall(FORM + b"Content-Length: 100000\r\n\r\n" + PART + b"x" * 1000)
        listening.until(lambda: os.listdir(strict.service.folder))  # noqa: PTH208
    listening.until(lambda: not os.listdir(strict.service.folder))  # noqa: PTH208
    assert strict.is_well()
