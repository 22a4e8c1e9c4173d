"""The page in a browser: a microphone, a file, what is saved, and what is said where something is wrong."""

from __future__ import annotations

import asyncio
import json
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
STATES = {
    "NotAllowedError": "not allowed",
    "NotFoundError": "no microphone",
    "NotReadableError": "in use by another program",
    "OverconstrainedError": "choose another one",
}


def test_the_page(server: Server, tmp_path: Path) -> None:
    # The fake microphone begins to play before the page hears it.
    sound = resample(audio.read(DIGITS), 16000, 48000)
    soundfile.write(tmp_path / "said.wav", [*([0.0] * 48000), *sound, *([0.0] * 480_000)], 48000, subtype="PCM_16")

    async def walk() -> None:
        async with browser.running(tmp_path / "profile", tmp_path / "said.wav") as tab:
            await speak(tab, server)
            await states(tab, server)
            await send_a_file(tab, server)
            assert "Page.javascriptDialogOpening" not in tab.events
            urls = [one["request"]["url"] for one in tab.events["Network.requestWillBeSent"]]
            assert len(urls) > 8
            assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "blob:")) for url in urls)
            assert [one["entry"]["text"] for one in tab.events.get("Log.entryAdded", []) if "policy" in str(one)] == []
            assert tab.events.get("Runtime.exceptionThrown", []) == []

    asyncio.run(walk())


async def speak(tab: browser.Tab, server: Server) -> None:
    """Words come while they are spoken, though the connection is lost between; then they are saved.

    Which words: on a computer that is busy, Chromium's microphone leaves some of the sound out.
    """
    await tab.open(f"http://127.0.0.1:{server.port}/")
    await tab.evaluate("document.getElementById('keep').click(); document.getElementById('speak').click()")
    await tab.until("document.getElementById('finals').textContent")
    assert await tab.evaluate("document.getElementById('speak').getAttribute('aria-pressed')") == "true"
    before = server.metric("asr_streams_total", protocol="native", end="gone")
    for socket in list(server.service.sockets):
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
    assert " ".join(caption.text for caption in webvtt.from_string(saved["speech.vtt"])).split() == timed.split()
    assert words[0]["start_s"] < words[-1]["end_s"]
    assert saved["speech.wav"] > 44 + 2 * 44_100


async def states(tab: browser.Tab, server: Server) -> None:
    """What is said where there is no microphone to be had."""
    await tab.open(f"http://127.0.0.1:{server.port}/")
    for name, text in STATES.items():
        await tab.evaluate(
            f"""navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', '{name}'); }};
            document.getElementById('speak').click()"""
        )
        await tab.until(f"document.getElementById('notice').textContent.includes('{text}')")
        assert await tab.evaluate("document.getElementById('speak').textContent") == "Speak"
    await tab.evaluate(
        "Object.defineProperty(navigator, 'mediaDevices', {value: undefined}); document.getElementById('speak').click()"
    )
    await tab.until("document.getElementById('notice').textContent.includes('secure pages only')")
    # With that, and all settings shown, it fits the narrowest telephone.
    await tab.call("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=1, mobile=True)
    await tab.evaluate("document.querySelector('details').open = true")
    assert await tab.evaluate("document.documentElement.scrollWidth") == 320
    await tab.call("Emulation.clearDeviceMetricsOverride")


async def send_a_file(tab: browser.Tab, server: Server) -> None:
    await tab.open(f"http://127.0.0.1:{server.port}/")
    document = await tab.call("DOM.getDocument")
    for file, said in ((DIGITS, TEXT), (Path(__file__), "expected audio")):
        found = await tab.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector="#file")
        await tab.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(file)])
        await tab.until(f"document.querySelector('main').textContent.includes('{said}')")
    assert await tab.evaluate("document.querySelector('[data-kind=srt]').disabled") is False
