"""Headless Chromium with a microphone that plays a file, by its DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"),
    "--host-resolver-rules=MAP asr.test 127.0.0.1",  # a name that is not this machine's to a browser
)


class Tab:
    """events: what the browser has told, by method."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.events: dict[str, list[dict[str, Any]]] = {}

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self.events.setdefault(told["method"], []).append(told["params"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters} | session))
        told = await answer
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str) -> None:
        if self._session is None:
            target = await self.call("Target.createTarget", url="about:blank")
            attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime", "DOM"):
                await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && document.querySelector('#model option')")

    async def permit(self, url: str, setting: str) -> None:
        """What the user says when the page asks for the microphone: granted or denied."""
        await self.call("Browser.setPermission", permission={"name": "microphone"}, setting=setting, origin=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, which may do what only a user may, such as to start sound."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        told = await self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait for what is bound to come."""
        for _ in range(600):
            if await self.evaluate(f"Boolean({condition})"):
                return
            await asyncio.sleep(0.1)
        shown = await self.evaluate("document.body.innerText")
        raise AssertionError(f"a minute is over without {condition}; the page shows: {shown}")


@asynccontextmanager
async def running(folder: Path, microphone: Path | None) -> AsyncIterator[Tab]:
    """A tab of a browser whose microphone plays a wav file once, or which has none."""
    assert CHROMIUM is not None
    options = [*_OPTIONS, f"--user-data-dir={folder}"]
    if microphone is not None:
        options.append("--use-fake-device-for-media-stream")
        options.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    with subprocess.Popen(
        [CHROMIUM, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            (address,) = itertools.islice((found[1] for line in lines if (found := re.search(r"(ws://\S+)", line))), 1)
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                try:
                    yield tab
                finally:
                    listening.cancel()
        finally:
            process.kill()
