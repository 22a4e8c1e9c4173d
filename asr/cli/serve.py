"""The command `asr serve`: files, live streams and a page, over the network."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Option
from asr.errors import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asr.serving.settings import Settings


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of the command; unless it says otherwise, what each is stands in asr.serving.settings."""

    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "-m",
            help="A model file, or a name; several for up to four, the first is the default.",
            show_default="english",
        ),
    ] = None
    steering: options.Steering
    host: Annotated[str, Option(help="The address to listen at; 0.0.0.0 for other machines too.")] = "127.0.0.1"
    port: Annotated[int, Option(help="0: any that is free, as printed.", min=0, max=65535)] = 8000
    vosk: Annotated[int | None, Option(help="Another port, for clients of Vosk.", min=0, max=65535)] = None
    vosk_rate: Annotated[
        int, Option(help="Hz of what clients of Vosk send, unless they say.", min=4000, max=192000)
    ] = 8000
    wyoming: Annotated[
        str | None,
        Option(help="A port for Home Assistant (Wyoming), for this machine; HOST:PORT for others, without a token."),
    ] = None
    token_file: Annotated[
        Path | None, Option(help="What clients must bring as their API key.", show_default="$ASR_TOKEN, or made")
    ] = None
    no_token: Annotated[bool, Option("--no-token", help="Whoever reaches the server may use it.")] = False
    allow_host: Annotated[list[str] | None, Option(help="Another name that this server is called by.")] = None
    allow_origin: Annotated[list[str] | None, Option(help="Another site whose pages may use it.")] = None
    tls_cert: Annotated[Path | None, Option(help="A certificate (PEM), for https.")] = None
    tls_key: Annotated[Path | None, Option(help="Its key.")] = None
    workers: Annotated[
        int | None,
        Option(
            help="Files recognised at a time; one of several takes no long ones.",
            min=1,
            show_default="a core each, at most 4, and one",
        ),
    ] = None
    max_streams: Annotated[int | None, Option(help="Live streams at a time.", min=0, show_default="4 a core")] = None
    max_queue: Annotated[int, Option(help="Files that may wait.", min=1)] = 32
    max_upload: Annotated[float, Option(help="MiB of a file.", min=0.001)] = 512
    max_audio: Annotated[float, Option(help="Hours of a file.", min=0.0001)] = 4
    max_stream: Annotated[float, Option(help="Hours of a live stream.", min=0.0001)] = 4
    job_timeout: Annotated[float, Option(help="Seconds that a file may take.", min=0.1)] = 3600
    worker_memory: Annotated[float, Option(help="GiB of a worker.", min=0.25)] = 2
    rate_limit: Annotated[int, Option(help="Requests a minute from one address; 0: any number.", min=0)] = 0
    alias: Annotated[list[str] | None, Option(help="Another name of the default model.")] = None
    language: Annotated[str, Option(help="What is spoken, as en; any: whatever a client says.")] = "en"
    temp: Annotated[
        Path | None, Option(help="A folder for uploads while they are heard.", show_default="the system's")
    ] = None
    no_page: Annotated[bool, Option("--no-page", help="No page at /.")] = False
    no_metrics: Annotated[bool, Option("--no-metrics", help="No /metrics.")] = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="No line a request.")] = False
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Also why requests are refused, and what streams and workers do.")
    ] = False
    log_json: Annotated[bool, Option("--log-json", help="The log as JSON lines.")] = False

    def settings(self) -> Settings:
        """raises: BadParameter where options contradict each other; ServeError."""
        options.refuse(
            (len(self.model or []) > 4, "--model", f"expected at most 4, got {len(self.model or [])}"),
            (self.quiet and self.verbose, "--quiet", "--verbose asks for the opposite"),
            (self.token_file is not None and self.no_token, "--no-token", "contradicts --token-file"),
            (self.tls_cert is not None and self.tls_key is None, "--tls-key", "is needed with --tls-cert"),
            (self.tls_cert is None and self.tls_key is not None, "--tls-cert", "is needed with --tls-key"),
        )
        models = [options.as_onnx(name) for name in self.model or ["english"]]
        steering = self.steering.arguments(models[0])
        from asr.serving.settings import Settings, is_loopback

        token = None if self.no_token else _token(self.token_file)
        if token is None and not self.no_token and not is_loopback(self.host):
            token = secrets.token_hex(16)
        counts: dict[str, Any] = {"workers": self.workers, "max_streams": self.max_streams}
        return Settings(
            models=tuple(models),
            steering=steering,
            host=self.host,
            port=self.port,
            vosk=self.vosk,
            vosk_rate=self.vosk_rate,
            wyoming=None if self.wyoming is None else _address(self.wyoming),
            token=token,
            no_token=self.no_token,
            allow_hosts=tuple(self.allow_host or ()),
            allow_origins=tuple(origin.rstrip("/") for origin in self.allow_origin or ()),
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            max_queue=self.max_queue,
            max_upload=round(self.max_upload * (1 << 20)),
            max_audio_s=self.max_audio * 3600,
            max_stream_s=self.max_stream * 3600,
            job_timeout_s=self.job_timeout,
            worker_memory=round(self.worker_memory * (1 << 30)),
            rate_limit=self.rate_limit,
            aliases=tuple(self.alias or ()),
            language=self.language,
            temp=self.temp,
            page=not self.no_page,
            metrics=not self.no_metrics,
            **{name: count for name, count in counts.items() if count is not None},
        )


def serve(asked: _Asked) -> None:
    """Recognise files and live streams for other programs, and in a page with a microphone; offline, Ctrl-C ends."""
    settings = asked.settings()
    _log(asked.quiet, asked.verbose, asked.log_json)
    # A token that nobody chose is shown, after a mark that keeps it out of logs.
    made = settings.token is not None and asked.token_file is None and settings.token != os.environ.get("ASR_TOKEN")
    with terminal.interruptible():
        _run(settings, shown=f"#token={settings.token}" * made)


def _address(text: str) -> tuple[str, int]:
    """Host and port of PORT or HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"expected PORT or HOST:PORT, got {text!r}", param_hint="--wyoming")
    return host.strip("[]") or "127.0.0.1", int(port)


def _token(file: Path | None) -> str | None:
    """What clients must bring, from a file or the environment: what is an argument, all users of a machine can read."""
    if file is None:
        return os.environ.get("ASR_TOKEN") or None
    from asr.serving.settings import ServeError

    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(
            f"{file}: cannot be read as a token: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None
    if not token:
        raise ServeError(f"{file}: expected a token, got an empty file; make one: openssl rand -hex 16")
    return token


def _log(quiet: bool, verbose: bool, as_json: bool) -> None:
    """A line a request on stderr."""
    import logging

    from asr.serving.app import Lines

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            terminal.note(self.format(record))

    log = logging.getLogger("asr.serving")
    log.handlers = [Notes()]
    log.handlers[0].setFormatter(Lines(as_json))
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def _run(settings: Settings, shown: str) -> None:
    import asyncio

    from asr.serving.app import run

    async def served() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        count = number_of(settings.workers, "worker")

        def ready(address: str, ports: Mapping[str, int]) -> None:
            names = ", ".join(Path(model).stem for model in settings.models)
            others = "".join(f", {name} at port {port}" for name, port in ports.items() if name != "http")
            terminal.show(f"{address}{shown}  {names}, {count}{others}\n")

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        with terminal.ending(end):
            await run(settings, stop, ready)

    asyncio.run(served())
