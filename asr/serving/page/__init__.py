"""The page at /: its files, and what browsers are told to let it do."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from asr.serving import vosk

FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/formats.js": ("formats.js", "text/javascript"),
    "/worklet.js": ("worklet.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_HOST = re.compile(r"[\w.:\[\]-]+")


def routes() -> list[web.RouteDef]:
    return [web.get(path, show) for path in FILES]


async def show(request: web.Request) -> web.StreamResponse:
    if request.path == "/" and "Upgrade" in request.headers:  # as clients of Vosk do, who know no path
        return await vosk.talk(request)
    name, kind = FILES[request.path]
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    # Older Safaris do not count sockets among what is 'self'.
    host = request.headers.get("Host", "")
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    rules = [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", f"connect-src 'self'{sockets}"),
        *("img-src data:", "worker-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
    headers = {
        "Content-Security-Policy": "; ".join(rules),
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "microphone=(self)",
        "Cache-Control": "no-cache",
    }
    return web.Response(text=text, content_type=kind, charset="utf-8", headers=headers)
