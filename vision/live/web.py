"""The web view: a page with the live picture and its controls, for any number of viewers.

A viewer is sent a picture only after it has said that the one before has come, and then the newest there is. So
nothing piles up anywhere, a slow viewer sees fewer pictures, and neither the pipeline nor other viewers notice.

Whoever is not on this machine needs the token, which is part of the printed link. Without it every answer is empty.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import math
import os
import secrets
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Set, Tuple
from urllib.parse import urlsplit

import cv2
import numpy as np

from vision.drawing import colour_of
from vision.errors import UserError
from vision.live.outputs import Output
from vision.live.pipeline import Result
from vision.live.settings import Settings

if TYPE_CHECKING:
    from vision.live.pipeline import Pipeline

try:
    from aiohttp import WSMsgType, web
except ImportError:  # told by WebView.open
    web = None  # type: ignore[assignment]

# aiohttp's side of a connection.
_Connection: Any = object if web is None else web.RequestHandler

log = logging.getLogger(__name__)

WITHOUT_AIOHTTP = "the web view needs aiohttp: pip install aiohttp"

PAGE = Path(__file__).parent / "page"
PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""All the files that are ever served: an address is looked up here and never becomes a path."""

TOKEN_VARIABLE = "VISION_TOKEN"
SHORTEST_TOKEN = 16

MOST_VIEWERS = 32
PATIENCE = 20.0
"""Seconds in which a viewer must have taken a picture; then it is let go."""

MOST_CONNECTIONS = 128
SILENCE = 60.0
"""Seconds for which a connection may be open without a request that is served; then it is closed."""

LONGEST_REQUEST = 1 << 16
"""Bytes of a connection before a request of it is served."""

FIGURES_EVERY = 0.5
LONGEST_MESSAGE = 4096
"""Bytes that a viewer may say at once."""

SMALLEST_PAUSE = 0.01
"""Seconds between two wishes of a viewer; the page has 50 ms between them."""

QUALITY, SNAPSHOT_QUALITY = 80, 93
"""Of JPEG."""

HEADERS = {
    "Server": "vision",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class WebView(Output):
    """Serves the page.

    Args:
        host, port: to listen at; port 0 is any that is free.
        pipeline: what is watched and controlled.
        width: pictures are shrunk to so many pixels.

    Attributes:
        token: "" where none is needed.
        address: the link for people, token included; known once it is open.
    """

    kind = "web"
    skips = True

    def __init__(self, host: str, port: int, pipeline: "Pipeline", width: int = 1280) -> None:
        self.host = host.strip("[]")
        self.port = port
        self.pipeline = pipeline
        self.width = width
        self.token = "" if is_loopback(host) else _make_token()
        self.address = ""
        self.viewers = 0
        self._newest: Dict[int, Result] = {}
        self._coded: Dict[int, Tuple[Result, bytes]] = {}
        self._ended = False
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._bell: Optional[asyncio.Event] = None
        self._guests: Set[_Guest] = set()
        self._thread: Optional[threading.Thread] = None
        self._stop: Optional[asyncio.Event] = None
        self._fault: Optional[Exception] = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"web view at {self.address.split('?')[0]}"

    # --- for the pipeline -----------------------------------------------------------------------------------

    def open(self) -> None:
        if web is None:
            raise UserError(f"--output web: {WITHOUT_AIOHTTP}")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listener = socket.create_server((self.host, self.port), family=family, backlog=64)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--output web: cannot listen at {self.host}, port {self.port} ({reason}); try --port 0 for any "
                "that is free"
            ) from error
        self.port = listener.getsockname()[1]
        self.address = self._link()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(listener, ready), name="web server", daemon=True
        )
        self._thread.start()
        ready.wait(30)
        if self._stop is None:
            raise UserError(
                f"--output web: the server at {self.host}, port {self.port} did not start ({self._fault!r})"
            ) from self._fault
        log.info("Watch at %s", self.address)

    def write(self, result: Result) -> None:
        number = result.frame.source
        self._newest[number] = result
        if self.viewers:
            self._code(number)
        self._ring()

    def close(self) -> None:
        """Tell the viewers, and end."""
        self._ended = True
        loop, stop, thread = self._loop, self._stop, self._thread
        if loop is not None and stop is not None and thread is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(stop.set)
            thread.join(5)

    def _code(self, number: int) -> Tuple[Result, bytes]:
        """The newest picture of a source as a message; coded once for all viewers."""
        result = self._newest[number]
        coded = self._coded.get(number)
        if coded is None or coded[0] is not result:
            coded = result, as_message(result, self.width)
            self._coded[number] = coded
        return coded

    def _ring(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(self._wake)

    def _link(self) -> str:
        host = self.host
        if host in ("0.0.0.0", "::"):
            host = _own_address(host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    # --- the server's thread --------------------------------------------------------------------------------

    def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._live(loop, listener, ready))
        except Exception as error:
            self._fault = error
            log.error("error: web view: its server has ended: %r", error)
        finally:
            self._loop = None
            ready.set()
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if rest:
                loop.run_until_complete(asyncio.wait(rest, timeout=1.0))
            loop.close()
            listener.close()

    async def _live(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, ready: threading.Event
    ) -> None:
        @web.middleware
        async def guard(request: Any, handler: Any) -> Any:
            return await self._guarded(request, handler)

        application = web.Application(middlewares=[guard], client_max_size=LONGEST_MESSAGE)
        application.on_response_prepare.append(_set_headers)
        for path in PAGES:
            application.router.add_get(path, self._page)
        application.router.add_get("/live", self._viewer)
        application.router.add_get(r"/snapshot/{source:\d{1,3}}.jpg", self._snapshot)
        application.router.add_get(r"/stream/{source:\d{1,3}}.mjpg", self._mjpeg)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        server = runner.server
        assert server is not None
        listening = await loop.create_server(lambda: _Guest(self, server, loop), sock=listener)
        self._bell, self._stop, self._loop = asyncio.Event(), asyncio.Event(), loop
        ready.set()
        while not self._stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 1.0)
            self._send_the_silent_away()
        self._wake()
        await asyncio.sleep(0.2)  # the farewell goes out
        listening.close()
        await server.shutdown(1.0)
        await runner.cleanup()

    def _wake(self) -> None:
        """Ring, and hang up a new bell. In the server's thread."""
        assert self._bell is not None
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    # --- who may come in ------------------------------------------------------------------------------------

    def _admit(self, guest: "_Guest") -> bool:
        """Whether one more connection may be open. Where there are too many, the one that is silent longest goes."""
        if len(self._guests) >= MOST_CONNECTIONS:
            silent = [other for other in self._guests if not other.served]
            if not silent:
                return False
            self._send_away(min(silent, key=lambda other: other.since))
        self._guests.add(guest)
        return True

    def _send_the_silent_away(self) -> None:
        now = time.monotonic()
        for guest in list(self._guests):
            if not guest.served and now - guest.since > SILENCE:
                self._send_away(guest)

    def _send_away(self, guest: "_Guest") -> None:
        self._guests.discard(guest)
        if guest.transport is not None:
            guest.transport.abort()

    @property
    def _cookie(self) -> str:
        return f"vision_{self.port}"

    def _may(self, request: Any) -> bool:
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return False  # a page from elsewhere, open in a browser that may
        if not self.token:
            if request.headers.get("Sec-Fetch-Site") == "cross-site" and not _is_visit(request):
                return False  # such a page shows our pictures in its own, and takes the viewers' places
            # A name that somebody has pointed at this machine would pass as the page's own origin.
            return is_loopback(urlsplit(f"//{host}").hostname or "")
        given = [request.cookies.get(self._cookie, ""), request.query.get("token", "")]
        # Both are compared always, and byte by byte in constant time.
        return any([hmac.compare_digest(word.encode(), self.token.encode()) for word in given])

    async def _guarded(self, request: Any, handler: Any) -> Any:
        """The door: every request comes through here, and every answer that is not a success is empty."""
        try:
            allowed = self._may(request)
        except ValueError:
            allowed = False
        if not allowed:
            refusal = web.Response(status=403)
            refusal.force_close()
            return refusal
        with request.protocol.serving():
            return await self._answered(request, handler)

    async def _answered(self, request: Any, handler: Any) -> Any:
        if self.token and "token" in request.query and request.path == "/":
            # Out of the address bar, where others read it and histories keep it.
            response = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(self._cookie, self.token, httponly=True, samesite="Lax", max_age=7 * 86400)
            return response
        try:
            return await handler(request)
        except web.HTTPException as error:
            return web.Response(status=error.status)
        except (ConnectionError, asyncio.CancelledError):
            raise  # the viewer has left
        except Exception as error:
            log.warning("web view: %s: %s", request.path, error)
            return web.Response(status=500)

    # --- what they get --------------------------------------------------------------------------------------

    async def _page(self, request: Any) -> Any:
        name, kind = PAGES[request.path]
        return web.Response(body=(PAGE / name).read_bytes(), content_type=kind, charset="utf-8")

    def _source(self, request: Any) -> int:
        number = int(request.match_info["source"])
        if number not in self._newest:
            raise web.HTTPNotFound
        return number

    async def _snapshot(self, request: Any) -> Any:
        """The newest picture in full size."""
        number = self._source(request)
        loop = asyncio.get_event_loop()
        result = self._newest[number]
        data = await loop.run_in_executor(None, as_jpeg, result.picture, 0, SNAPSHOT_QUALITY)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(result.frame.clock))
        headers = {"Content-Disposition": f'attachment; filename="snapshot-{number}-{stamp}.jpg"'}
        return web.Response(body=data, content_type="image/jpeg", headers=headers)

    async def _mjpeg(self, request: Any) -> Any:
        """For viewers that are no browsers: a picture after the other."""
        number = self._source(request)
        response = web.StreamResponse()
        response.headers["Content-Type"] = "multipart/x-mixed-replace; boundary=frame"
        with self._admitted():
            await response.prepare(request)
            seen: Optional[Result] = None
            while not self._ended:
                if request.transport is None or request.transport.is_closing():
                    break  # the viewer has left while nothing came
                if self._newest[number] is seen:
                    await self._news(1.0)
                    continue
                seen, message = await asyncio.get_event_loop().run_in_executor(None, self._code, number)
                data = jpeg_of(message)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                try:
                    await asyncio.wait_for(response.write(head.encode() + data + b"\r\n"), PATIENCE)
                except asyncio.TimeoutError:
                    if request.transport is not None:
                        request.transport.abort()
                    break
                except ConnectionError:  # the viewer has left
                    break
        return response

    def _admitted(self) -> "_Place":
        if self.viewers >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable
        return _Place(self)

    async def _news(self, timeout: float) -> None:
        """Return when something has come, or after a while."""
        assert self._bell is not None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._bell.wait(), timeout)

    async def _viewer(self, request: Any) -> Any:
        """A browser: pictures and figures go out, acknowledgements and wishes come in."""
        with self._admitted():
            socket = web.WebSocketResponse(max_msg_size=LONGEST_MESSAGE, heartbeat=PATIENCE, compress=False)
            await socket.prepare(request)
            taken = asyncio.Event()
            sender = asyncio.ensure_future(self._send(socket, request.transport, taken))
            try:
                async for message in socket:
                    if message.type != WSMsgType.TEXT:
                        break
                    if message.data == "taken":
                        taken.set()
                    else:
                        obey(message.data, self.pipeline.settings, self.pipeline.detector.classes)
                        self._wake()
                        # Who wishes faster than anybody can see is read no faster than this.
                        await asyncio.sleep(SMALLEST_PAUSE)
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            return socket

    async def _send(self, socket: Any, transport: Any, taken: asyncio.Event) -> None:
        seen: Dict[int, Result] = {}
        state: Dict[str, Any] = {}
        figures_at = 0.0

        async def say(words: Dict[str, Any]) -> None:
            await asyncio.wait_for(socket.send_json(words), PATIENCE)

        try:
            await say(self._introduction())
            while not self._ended:
                now = self.pipeline.settings.as_json()
                if now != state:
                    state = now
                    await say({"settings": state})
                if time.monotonic() - figures_at > FIGURES_EVERY:
                    figures_at = time.monotonic()
                    await say({"figures": self._figures()})
                # A list at once: another source may show its first picture meanwhile.
                fresh = [
                    number for number in list(self._newest) if self._newest[number] is not seen.get(number)
                ]
                for number in fresh:
                    seen[number], message = await asyncio.get_event_loop().run_in_executor(
                        None, self._code, number
                    )
                    taken.clear()
                    await asyncio.wait_for(socket.send_bytes(message), PATIENCE)
                    await asyncio.wait_for(taken.wait(), PATIENCE)
                if not fresh:
                    await self._news(FIGURES_EVERY)
            await say({"ended": True})
            await socket.close()
        except (ConnectionError, RuntimeError, asyncio.TimeoutError):
            transport.abort()  # it has left, or does not read

    def _introduction(self) -> Dict[str, Any]:
        detector = self.pipeline.detector
        classes = [
            {"label": label, "name": name, "colour": "#" + bytes(colour_of(label)).hex()}
            for label, name in enumerate(detector.classes)
            if label
        ]
        sources = [Path(source.name).name or source.name for source in self.pipeline.sources]
        return {"model": detector.name, "sources": sources, "classes": classes}

    def _figures(self) -> Dict[str, Any]:
        figures = self.pipeline.figures.as_json()
        return {**figures, "dropped": self.pipeline.dropped, "viewers": self.viewers}


class _Guest(_Connection):
    """One connection, known or not: what it may cost before a request of it is served is bounded.

    Attributes:
        served: a request of it is being answered.
        since: time.monotonic() from which on it was not.
        heard: bytes it has sent since then.
    """

    __slots__ = ("view", "served", "since", "heard")

    def __init__(self, view: WebView, server: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, access_log=None)
        self.view = view
        self._silent()
        self.served = False

    def _silent(self) -> None:
        self.since, self.heard = time.monotonic(), 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        self.served = True
        try:
            yield
        finally:
            self.served = False
            self._silent()

    def connection_made(self, transport: Any) -> None:
        if self.view._admit(self):
            super().connection_made(transport)
        else:
            transport.abort()

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        self.view._guests.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.served:
            self.heard += len(data)
            if self.heard > LONGEST_REQUEST:
                self.view._send_away(self)
                return
        super().data_received(data)

    def handle_error(
        self,
        request: Any,
        status: int = 500,
        exc: Optional[BaseException] = None,
        message: Optional[str] = None,
    ) -> Any:
        """The answer to what is no request. aiohttp's own names versions, and logs a stack for each."""
        log.debug("web view: no request: %s", message or exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way already")
        answer = web.Response(status=status, headers=HEADERS)
        answer.force_close()
        return answer


class _Place:
    """A viewer is counted as long as it watches."""

    def __init__(self, view: WebView) -> None:
        self.view = view

    def __enter__(self) -> None:
        self.view.viewers += 1

    def __exit__(self, *error: Any) -> None:
        self.view.viewers -= 1


def _is_visit(request: Any) -> bool:
    """Whether somebody follows a link or types an address, as browsers say."""
    return request.headers.get("Sec-Fetch-Dest") == "document" and request.path == "/"


async def _set_headers(request: Any, response: Any) -> None:
    response.headers.update(HEADERS)


def _make_token() -> str:
    """A new one, or the one that the environment gives so that links stay good. Raises UserError."""
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and (len(given) < SHORTEST_TOKEN or not all(c.isalnum() or c in "-_" for c in given)):
        raise UserError(
            f"{TOKEN_VARIABLE}: a token has at least {SHORTEST_TOKEN} characters, of letters, digits, - and _"
        )
    return given or secrets.token_urlsafe(24)


def _own_address(host: str) -> str:
    """The address under which others see this machine, as far as it knows."""
    version6 = ":" in host
    with socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it only asks which way it would go. The addresses are those kept for documentation.
            probe.connect(("2001:db8::1" if version6 else "192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


# --- messages -----------------------------------------------------------------------------------------------


def as_jpeg(picture: Optional[np.ndarray], width: int, quality: int) -> bytes:
    """RGB uint8 (H, W, 3), shrunk to `width` pixels (0: as it is), as JPEG."""
    assert picture is not None
    if 0 < width < picture.shape[1]:
        height = max(1, round(picture.shape[0] * width / picture.shape[1]))
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not ok:
        raise ValueError("OpenCV cannot write JPEG here")
    return data.tobytes()


def as_message(result: Result, width: int) -> bytes:
    """Length of the head (2 bytes, big-endian), head (JSON), JPEG."""
    found: Dict[int, int] = {}
    for label in result.detections.labels.tolist():
        found[label] = found.get(label, 0) + 1
    head = {
        "source": result.frame.source,
        "frame": result.frame.number,
        "time": round(result.frame.time, 2),
        "size": [result.frame.image.shape[1], result.frame.image.shape[0]],
        "found": found,
        "counts": result.counts,
    }
    text = json.dumps(head, ensure_ascii=False).encode("utf-8")
    return struct.pack(">H", len(text)) + text + as_jpeg(result.picture, width, QUALITY)


def jpeg_of(message: bytes) -> bytes:
    """The picture in a message."""
    return message[2 + struct.unpack(">H", message[:2])[0] :]


def obey(text: str, settings: Settings, classes: Any) -> None:
    """Do what a viewer asks, as far as it makes sense; the rest is passed over."""
    try:
        wish = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(wish, dict):
        return
    values: Dict[str, Any] = {}
    for key in ("threshold", "iou_threshold"):
        value = wish.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            values[key] = float(value)
    if isinstance(wish.get("paused"), bool):
        values["paused"] = wish["paused"]
    if "shown" in wish:
        shown: Optional[List[Any]] = wish["shown"]
        if shown is None:
            values["shown"] = None
        elif isinstance(shown, list) and all(
            type(label) is int and 0 < label < len(classes) for label in shown
        ):
            values["shown"] = frozenset(shown)
    try:
        settings.change(**values)
    except UserError as error:
        log.debug("web view: %s", error)
