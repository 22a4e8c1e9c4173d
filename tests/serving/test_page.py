"""The page in a browser: a microphone, a file, what is saved, and what is said where something is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import browser
import listening
import pysrt
import pytest
import soundfile
import webvtt
from listening import DIGITS, TEXT, Server

from asr import audio
from asr.audio import resample

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="needs Chromium; tools/check installs it as root on Debian"
)
DIGIT_NAMES = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that may be lost."""
    with listening.running(allow_hosts=("asr.test",)) as one:
        yield one


def test_a_browser_without_a_microphone(server: Server, tmp_path: Path) -> None:
    async def walk() -> None:
        async with browser.running(tmp_path / "profile", None) as tab:
            await tab.open(f"http://127.0.0.1:{server.port}/")
            await refused(tab, "There is no microphone")

    asyncio.run(walk())


def test_the_page(server: Server, tmp_path: Path) -> None:
    # The fake microphone begins to play before the page hears it.
    sound = resample(audio.read(DIGITS), 16000, 48000)
    soundfile.write(tmp_path / "said.wav", [*([0.0] * 48000), *sound, *([0.0] * 480_000)], 48000, subtype="PCM_16")

    async def walk() -> None:
        async with browser.running(tmp_path / "profile", tmp_path / "said.wav") as tab:
            await speak(tab, server)
            await states(tab, server)
            await send_a_file(tab, server)
            await lose_the_server(tab, server)
            assert "Page.javascriptDialogOpening" not in tab.events
            urls = [one["request"]["url"] for one in tab.events["Network.requestWillBeSent"]]
            assert len(urls) > 8
            ours = tuple(f"http://{host}:{server.port}/" for host in ("127.0.0.1", "asr.test"))
            assert all(url.startswith((*ours, "data:", "blob:")) for url in urls)
            assert [one["entry"]["text"] for one in tab.events.get("Log.entryAdded", []) if "policy" in str(one)] == []
            assert tab.events.get("Runtime.exceptionThrown", []) == []

    asyncio.run(walk())


async def speak(tab: browser.Tab, server: Server) -> None:
    """Words come while they are spoken, though the connection is lost between; then they are saved.

    Which words: on a computer that is busy, Chromium's microphone leaves some of the sound out.
    """
    url = f"http://127.0.0.1:{server.port}/"
    await tab.open(url)
    await tab.permit(url, "denied")
    await refused(tab, "The microphone is not allowed")
    await tab.permit(url, "granted")
    await tab.evaluate(
        """globalThis.contexts = [];
        const Context = AudioContext;
        globalThis.AudioContext = class extends Context { constructor() { super(); contexts.push(this); } };
        document.getElementById('keep').click();
        document.getElementById('speak').click()"""
    )
    await tab.until("document.getElementById('finals').textContent")
    assert await tab.evaluate("document.getElementById('speak').getAttribute('aria-pressed')") == "true"
    # What browsers do when a telephone rings.
    await tab.evaluate("globalThis.contexts.at(-1).suspend()")
    await tab.until("!document.getElementById('resume').hidden")
    assert "suspended" in await tab.evaluate("document.getElementById('notice').textContent")
    await tab.evaluate("document.getElementById('resume').click()")
    await tab.until("document.getElementById('resume').hidden && document.getElementById('notice').hidden")
    before = server.metric("asr_streams_total", protocol="native", end="gone")
    for socket in list(server.service.sockets):
        assert socket._req is not None
        assert socket._req.transport is not None
        server.do(socket._req.transport.abort)
    listening.until(lambda: server.metric("asr_streams_total", protocol="native", end="gone") > before)
    listening.until(lambda: server.metric("asr_streams", protocol="native") == 1)  # it has come back by itself
    await tab.evaluate("document.getElementById('speak').click()")
    await tab.until("document.getElementById('speak').textContent === 'Speak'")
    said = await tab.evaluate("document.getElementById('finals').innerText.split(/\\s+/).join(' ')")
    assert set(said.replace(" …", "").split()) <= DIGIT_NAMES
    assert await tab.evaluate("document.querySelector('[data-kind=wav]').disabled") is False
    # The files are made in the page: take them from the links that it makes.
    await tab.evaluate(
        """globalThis.saved = {};
        HTMLAnchorElement.prototype.click = function () { saved[this.download] = fetchBlob(this.href); };
        const made = new Map(), create = URL.createObjectURL;
        URL.createObjectURL = (blob) => { const url = create(blob); made.set(url, blob); return url; };
        globalThis.fetchBlob = (url) => made.get(url);
        document.querySelectorAll('.save').forEach((button) => button.click())"""
    )
    saved = await tab.evaluate(
        """(async () => Object.fromEntries(await Promise.all(Object.entries(saved).map(
        async ([name, blob]) => [name, name.endsWith('wav') ? blob.size : await blob.text()]))))()"""
    )
    assert saved["speech.txt"].split() == said.split()
    words = json.loads(saved["speech.json"])["words"]
    timed = " ".join(word["text"] for word in words)
    assert " ".join(cue.text for cue in pysrt.from_string(saved["speech.srt"])).split() == timed.split()
    assert (
        " ".join(caption.text for caption in webvtt.from_string(saved["speech.vtt"]).captions).split() == timed.split()
    )
    assert words[0]["start_s"] < words[-1]["end_s"]
    assert saved["speech.wav"] > 44 + 2 * 44_100


async def states(tab: browser.Tab, server: Server) -> None:
    """What is said where a microphone that is there cannot be used, and while the server is busy."""
    await tab.open(f"http://127.0.0.1:{server.port}/")
    await tab.evaluate(
        """document.getElementById('device').append(new Option('gone', 'gone'));
        document.getElementById('device').value = 'gone'"""
    )
    await refused(tab, "choose another one")
    await tab.evaluate("document.getElementById('device').value = ''")
    settings = server.service.settings
    server.service.settings = replace(settings, max_streams=0)
    await refused(tab, "The server is busy; try again in 10 s.")
    server.service.settings = settings
    # By another program, which this test does not have.
    await tab.evaluate(
        "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotReadableError'); }"
    )
    await refused(tab, "in use by another program")
    await tab.open(f"http://asr.test:{server.port}/")
    await refused(tab, "secure pages only")
    # With that, and all settings shown, it fits the narrowest telephone.
    await tab.call("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=1, mobile=True)
    await tab.evaluate("document.querySelector('details').open = true")
    assert await tab.evaluate("document.documentElement.scrollWidth") == 320
    await tab.call("Emulation.clearDeviceMetricsOverride")


async def refused(tab: browser.Tab, text: str) -> None:
    """The button is as it was, and why is told."""
    await tab.evaluate("document.getElementById('speak').click()")
    await tab.until("document.getElementById('speak').textContent === 'Speak'")
    await tab.until(f"document.getElementById('notice').textContent.includes('{text}')")
    await tab.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")  # nothing else is told then
    assert text in await tab.evaluate("document.getElementById('notice').textContent")


async def lose_the_server(tab: browser.Tab, server: Server) -> None:
    await tab.open(f"http://127.0.0.1:{server.port}/")
    await tab.evaluate("document.getElementById('speak').click()")
    listening.until(lambda: server.metric("asr_streams", protocol="native") == 1)
    await asyncio.to_thread(server.stop)
    await tab.until("document.getElementById('notice').textContent.includes('The connection is lost; trying again')")
    await give_a_file(tab, DIGITS)
    await tab.until("document.getElementById('notice').textContent.includes('The server does not answer')")


async def send_a_file(tab: browser.Tab, server: Server) -> None:
    await tab.open(f"http://127.0.0.1:{server.port}/")
    for file, said in ((DIGITS, TEXT), (Path(__file__), "expected audio")):
        await give_a_file(tab, file)
        await tab.until(f"document.querySelector('main').textContent.includes('{said}')")
    assert await tab.evaluate("document.querySelector('[data-kind=srt]').disabled") is False


async def give_a_file(tab: browser.Tab, file: Path) -> None:
    document = await tab.call("DOM.getDocument")
    found = await tab.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector="#file")
    await tab.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(file)])
