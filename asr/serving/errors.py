"""What is wrong with a request, as clients of OpenAI's interface expect to be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

# Of JSON. While it is parsed, nobody else is served, not even in other threads: twenty megabytes can take seconds.
MAX_JSON = 64 << 10


class ApiError(Exception):
    """An answer that is an error: its status, a code for programs, a message for people, and the field it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})
        if status in (408, 413):  # the rest of the body is not wanted
            self.headers["Connection"] = "close"
        if status in (400, 408, 413, 504):  # the same again would fail again
            self.headers["x-should-retry"] = "false"

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        response = web.json_response(self.body, status=self.status, headers=self.headers, dumps=dumps)
        if "Connection" in self.headers:
            response.force_close()
        return response


def dumps(value: object) -> str:
    """JSON as it goes out: letters as they are, without what UTF-8 cannot write."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def json_object(text: str | bytes, expected: str, param: str | None = None, most: int = MAX_JSON) -> dict[str, Any]:
    """An object as it comes in.

    most:   characters or bytes that may be parsed; see MAX_JSON.
    raises: ApiError, which says what was expected.
    """
    if len(text) > most:
        raise ApiError(400, "invalid_value", f"expected at most {most >> 10} KiB of JSON, got {len(text) >> 10}", param)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_value", expected, param)
    return value


def invalid(message: str, param: str, code: str = "invalid_value") -> ApiError:
    """A field that is not as it should be."""
    return ApiError(400, code, message, param)


def overloaded(seconds: float) -> ApiError:
    """Come back later. seconds: when."""
    wait = str(max(1, min(120, round(seconds))))
    return ApiError(503, "overloaded", "the server is busy; try again later", headers={"Retry-After": wait})


def shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "the server is ending; try again later", headers={"Retry-After": "5"})
