"""The web view: with a plain client, and in a real browser where there is one."""

import asyncio
import http.client
import json
import shutil
import socket
import struct
import time

import cv2
import numpy as np
import pytest

from vision.errors import UserError
from vision.live.settings import Settings, Values
from vision.live.sources import Grab, Source

aiohttp = pytest.importorskip("aiohttp", reason="the web view needs aiohttp")

from vision.live import web as module  # noqa: E402
from vision.live.web import WebView, is_loopback, jpeg_of, obey  # noqa: E402


class Moving(Source):
    """Coloured squares that move, for ever."""

    name = "folder/moving.mp4"

    def __init__(self, live, size=(96, 128)):
        self.pictures = [live.picture(number, size) for number in range(35)]
        self.given = 0

    def read(self):
        time.sleep(0.01)
        self.given += 1
        return Grab(self.pictures[self.given % 35], self.given / 25)


@pytest.fixture
def watched(live):
    """A running pipeline with a web view: `watched(host)` -> view."""
    ended = []

    def start(host="127.0.0.1", sources=1, size=(96, 128)):
        pipeline = live.make_pipeline([Moving(live, size) for _ in range(sources)])
        view = WebView(host, 0, pipeline)
        view.open()
        pipeline.add_outputs([view])
        running = live.Running(pipeline)
        running.__enter__()
        ended.append(running)
        live.wait_until(lambda: len(view._newest) == sources)
        return view

    yield start
    for running in ended:
        running.__exit__()


def ask(view, path="/", headers=None, method="GET"):
    """(status, headers, body) from loopback, whatever the view listens at."""
    connection = http.client.HTTPConnection("127.0.0.1", view.port, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


# --- answers ---


@pytest.mark.parametrize(
    "path, kind", [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_page_comes_from_here_alone(watched, path, kind):
    status, headers, body = ask(watched(), path)
    assert status == 200 and headers["Content-Type"].startswith(kind)
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
    )
    assert headers["Server"] == "vision", "versions are nobody's business"
    text = body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text and "https://" not in text


def test_a_snapshot_is_the_annotated_picture_in_full_size(watched):
    status, headers, body = ask(watched(size=(1200, 1600)), "/snapshot/0.jpg")
    assert status == 200 and "attachment" in headers["Content-Disposition"]
    assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).shape == (1200, 1600, 3)


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/snapshot/7.jpg", "/snapshot/x.jpg", "/stream/7.mjpg", "/page/page.js", "/../web.py", "/page.js/..",
     "/%2e%2e/web.py", "/snapshot/../../etc/passwd", "//etc/passwd", "/%00", "/live"],
)  # fmt: skip
def test_what_is_not_there_says_nothing(watched, path):
    status, _, body = ask(watched(), path)
    assert status in (400, 404) and body in (b"", b"404: Not Found"), body
    assert b"Traceback" not in body and b"/" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_get_nothing(watched, method):
    status, _, body = ask(watched(), "/", method=method)
    assert status in (400, 405) and b"Traceback" not in body and len(body) < 100


def test_an_error_of_ours_leaks_nothing(watched, monkeypatch, caplog):
    view = watched()
    monkeypatch.setattr(module, "as_jpeg", lambda *a: 1 / 0)
    status, _, body = ask(view, "/snapshot/0.jpg")
    assert status == 500 and body == b""
    assert "division by zero" in caplog.text


def test_mjpeg_can_be_read_by_opencv(watched):
    capture = cv2.VideoCapture(f"http://127.0.0.1:{watched().port}/stream/0.mjpg")
    ok, frame = capture.read()
    capture.release()
    assert ok and frame.shape == (96, 128, 3)


# --- what is no request, or none that ends ---


def raw(view, data=b"", seconds=20.0):
    """All that comes back before the connection is closed."""
    with socket.create_connection(("127.0.0.1", view.port), timeout=seconds) as line:
        line.sendall(data)
        answer = b""
        while True:
            more = line.recv(65536)
            if not more:
                return answer
            answer += more


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n bad\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(100),
    ],
)
def test_what_is_no_request_gets_nothing_and_is_not_worth_a_stack(watched, caplog, data):
    head, _, body = raw(watched(), data).partition(b"\r\n\r\n")
    assert body == b"" and b"aiohttp" not in head and b"Python" not in head
    assert "Traceback" not in caplog.text and "Error handling" not in caplog.text


def gone(line):
    """Whether the other side has closed the connection."""
    line.settimeout(0.01)
    try:
        return line.recv(65536) == b""
    except socket.timeout:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "begin", [b"", b"GET / HTTP/1.1\r\nHost: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"]
)
def test_a_request_that_does_not_end_is_let_go(live, watched, monkeypatch, begin):
    monkeypatch.setattr(module, "SILENCE", 0.5)
    view = watched("0.0.0.0")
    with socket.create_connection(("127.0.0.1", view.port)) as line:
        line.sendall(begin)
        live.wait_until(lambda: gone(line))
    live.wait_until(lambda: not view._guests)


def test_a_request_without_end_is_cut_off(watched):
    view = watched("0.0.0.0")
    with socket.create_connection(("127.0.0.1", view.port), timeout=20) as line, pytest.raises(OSError):
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        while True:
            line.sendall(b"a" * 4000 + b"\r\nX: ")
            time.sleep(0.001)


def test_who_says_nothing_keeps_nobody_out(live, watched, monkeypatch):
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 6)
    view = watched()
    lines = [socket.create_connection(("127.0.0.1", view.port)) for _ in range(12)]
    try:
        viewer = asyncio.run(Viewer(view).watch(enough=lambda viewer: len(viewer.pictures) > 3))
        assert len(viewer.pictures) > 3 and ask(view)[0] == 200
        assert len(view._guests) <= 6
        live.wait_until(lambda: sum(gone(line) for line in lines) >= 6)
    finally:
        for line in lines:
            line.close()


def test_a_stream_that_is_left_during_a_pause_is_noticed(live, watched):
    view = watched()
    with socket.create_connection(("127.0.0.1", view.port), timeout=20) as line:
        line.sendall(f"GET /stream/0.mjpg HTTP/1.1\r\nHost: 127.0.0.1:{view.port}\r\n\r\n".encode())
        line.recv(1000)
        view.pipeline.settings.change(paused=True)
        time.sleep(0.3)
    live.wait_until(lambda: view.viewers == 0)


def test_a_server_that_does_not_start_is_told(live, monkeypatch):
    async def broken(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(WebView, "_live", broken)
    with pytest.raises(UserError, match="did not start .*no"):
        WebView("127.0.0.1", 0, live.make_pipeline([])).open()


# --- who may come in ---


@pytest.mark.parametrize(
    "host, inside",
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("box.local", False), ("", False)],
)  # fmt: skip
def test_is_loopback(host, inside):
    assert is_loopback(host) is inside


def test_loopback_needs_no_token(watched):
    view = watched()
    assert view.token == "" and view.address == f"http://127.0.0.1:{view.port}/"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was pointed at 127.0.0.1
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "["},
    ],
)
def test_other_pages_in_the_same_browser_get_nothing(watched, headers):
    status, _, body = ask(watched(), "/live", headers)
    assert status in (400, 403) and b"vision" not in body


@pytest.mark.parametrize(
    "path, kind, status",
    [("/", "document", 200), ("/stream/0.mjpg", "image", 403), ("/snapshot/0.jpg", "image", 403),
     ("/snapshot/0.jpg", "document", 403), ("/page.js", "script", 403)],
)  # fmt: skip
def test_a_page_from_elsewhere_may_link_here_but_show_nothing(watched, path, kind, status):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": kind}
    assert ask(watched(), path, headers)[0] == status


def test_the_token_opens_by_link_and_cookie(watched):
    view = watched("0.0.0.0")
    assert len(view.token) >= 32 and view.address.endswith(f":{view.port}/?token={view.token}")
    assert "0.0.0.0" not in view.address
    status, headers, body = ask(view, f"/?token={view.token}")
    assert status == 303 and headers["Location"] == "/" and body == b""
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    status, _, body = ask(view, "/", {"Cookie": cookie.split(";")[0]})
    assert status == 200 and b"<!doctype html>" in body


def test_a_hundred_bad_tokens_get_nothing(watched):
    view = watched("0.0.0.0")
    token = view.token
    wrong = ["", "x", token[:-1], token + "x", token.swapcase(), token[::-1], "é" * 20, "%00", "a" * 3000]
    wrong += [token[:n] + ("A" if token[n] != "A" else "B") + token[n + 1 :] for n in range(len(token))]
    paths = ["/", "/page.js", "/live", "/snapshot/0.jpg", "/stream/0.mjpg", "/nothing"]
    seen = set()
    for number in range(100):
        word = wrong[number % len(wrong)]
        path = paths[number % len(paths)]
        if number % 2:
            headers, query = {"Cookie": f"vision_{view.port}={word}".encode()}, ""
        else:
            headers, query = {}, "?token=" + word.replace("é", "%C3%A9")
        status, answer, body = ask(view, path + query, headers)
        seen.add((status, body, answer.get("Set-Cookie"), answer["Content-Type"]))
    assert {(status, body, cookie) for status, body, cookie, _ in seen} == {(403, b"", None)}
    assert view.viewers == 0


def test_tokens_differ_and_may_be_given(monkeypatch):
    monkeypatch.delenv(module.TOKEN_VARIABLE, raising=False)
    assert module._make_token() != module._make_token()
    monkeypatch.setenv(module.TOKEN_VARIABLE, "long-enough-for-it")
    assert module._make_token() == "long-enough-for-it"
    for bad in ("short", "with a blank in between"):
        monkeypatch.setenv(module.TOKEN_VARIABLE, bad)
        with pytest.raises(UserError, match=module.TOKEN_VARIABLE) as error:
            module._make_token()
        assert bad not in str(error.value)


def test_a_port_in_use_is_told(watched):
    view = watched()
    with pytest.raises(UserError, match=f"port {view.port}.*--port 0"):
        WebView("127.0.0.1", view.port, view.pipeline).open()


def test_without_aiohttp(monkeypatch):
    monkeypatch.setattr(module, "web", None)
    with pytest.raises(UserError, match="pip install aiohttp"):
        WebView("127.0.0.1", 0, None).open()


# --- wishes ---


@pytest.mark.parametrize(
    "text, change",
    [
        ('{"threshold": 0.7}', {"threshold": 0.7}),
        ('{"iou_threshold": 1, "paused": true}', {"iou_threshold": 1.0, "paused": True}),
        ('{"shown": [2, 1]}', {"shown": frozenset({1, 2})}),
        ('{"shown": []}', {"shown": frozenset()}),
        ('{"shown": null}', {"shown": None}),
        ('{"shown": [0]}', {}),
        ('{"shown": [true]}', {}),
        ('{"shown": [9]}', {}),
        ('{"shown": "all"}', {}),
        ('{"threshold": 7}', {}),
        ('{"threshold": "high"}', {}),
        ('{"threshold": NaN}', {}),
        ('{"threshold": 1e999}', {}),
        ('{"threshold": true}', {}),
        ('{"paused": 1}', {}),
        ("[]", {}),
        ("", {}),
        ("[" * 4000, {}),
    ],
)
def test_obey(text, change):
    settings = Settings(Values(shown=frozenset({3})))
    before = settings.now
    obey(text, settings, ("BACKGROUND", "a", "b", "c"))
    assert settings.now == before._replace(**change)


# --- viewers ---


class Viewer:
    """A browser's part, without a browser."""

    def __init__(self, view):
        self.view, self.texts, self.pictures = view, [], []

    async def watch(self, seconds=30.0, answer=True, wishes=(), enough=None):
        """Until it has seen enough, at most so many seconds."""
        async with aiohttp.ClientSession() as session, session.ws_connect(
            f"http://127.0.0.1:{self.view.port}/live"
        ) as line:
            for wish in wishes:
                await line.send_json(wish)
            end = time.monotonic() + seconds
            while time.monotonic() < end and not (enough and enough(self)):
                try:
                    message = await line.receive(timeout=max(0.01, end - time.monotonic()))
                except asyncio.TimeoutError:
                    break
                if message.type == aiohttp.WSMsgType.BINARY:
                    self.pictures.append(message.data)
                    if answer:
                        await line.send_str("taken")
                elif message.type == aiohttp.WSMsgType.TEXT:
                    self.texts.append(json.loads(message.data))
                else:
                    break
        return self

    async def watch_again(self, enough, seconds=60.0):
        """As a page does: who was let go on a busy machine comes back."""
        end = time.monotonic() + seconds
        while not enough(self) and time.monotonic() < end:
            await self.watch(end - time.monotonic(), enough=enough)
        return self

    def heads(self):
        return [json.loads(data[2 : 2 + struct.unpack(">H", data[:2])[0]]) for data in self.pictures]


def test_a_viewer_gets_pictures_and_figures(watched):
    view = watched(sources=2)

    def enough(viewer):
        return len(viewer.pictures) > 12 and any("figures" in text for text in viewer.texts[-3:])

    viewer = asyncio.run(Viewer(view).watch(enough=enough))
    assert viewer.texts[0]["sources"] == ["moving.mp4"] * 2, "no folders"
    assert [one["name"] for one in viewer.texts[0]["classes"]] == ["red", "green", "blue"]
    assert any(text.get("settings", {}).get("threshold") == 0.2 for text in viewer.texts)
    figures = [text["figures"] for text in viewer.texts if "figures" in text]
    assert figures[-1]["frames"] > 0 and figures[-1]["viewers"] == 1 and "network" in figures[-1]["stages"]
    heads = viewer.heads()
    assert {head["source"] for head in heads} == {0, 1}
    frames = [head["frame"] for head in heads if head["source"] == 0]
    assert len(frames) > 2 and frames == sorted(set(frames))
    assert heads[-1]["found"] == {"1": 2, "2": 1, "3": 1}
    assert cv2.imdecode(np.frombuffer(jpeg_of(viewer.pictures[-1]), np.uint8), 1).shape == (96, 128, 3)


def test_a_wish_changes_what_all_see(watched):
    view = watched()

    async def both():
        other = Viewer(view)
        seen = other.watch(enough=lambda viewer: viewer.pictures and len(viewer.heads()[-1]["found"]) == 1)
        await asyncio.gather(seen, Viewer(view).watch(0.5, wishes=[{"threshold": 0.8}]))
        return other

    other = asyncio.run(both())
    assert other.heads()[-1]["found"] == {"1": 1}
    assert any(text.get("settings", {}).get("threshold") == 0.8 for text in other.texts)


def test_a_viewer_that_does_not_answer_gets_one_picture_and_slows_nobody(live, watched, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1.5)
    view = watched()

    async def both():
        good = Viewer(view).watch_again(lambda viewer: len(viewer.pictures) > 10)
        return await asyncio.gather(Viewer(view).watch(60.0, answer=False), good)

    silent, good = asyncio.run(both())
    assert len(silent.pictures) == 1 and len(good.pictures) > 10
    live.wait_until(lambda: view.viewers == 0)


def test_viewers_that_never_read_slow_nobody(live, watched, monkeypatch):
    """Open connections that ask and then leave the answer lying, of both kinds."""
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    view = watched(size=(600, 800))
    lines, admitted = [], []
    admit = view._admitted
    monkeypatch.setattr(view, "_admitted", lambda: admitted.append(1) or admit())
    for path in ("/stream/0.mjpg", "/live") * 3:
        line = socket.create_connection(("127.0.0.1", view.port))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        more = ""
        if path == "/live":
            more = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            more += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{view.port}\r\n{more}\r\n".encode())
        lines.append(line)
    live.wait_until(lambda: len(admitted) == 6)
    before = view.pipeline.figures.frames
    good = asyncio.run(Viewer(view).watch_again(lambda viewer: len(viewer.pictures) > 5))
    assert len(good.pictures) > 5
    live.wait_until(lambda: view.pipeline.figures.frames > before + 10)
    live.wait_until(lambda: view.viewers == 0, 30)
    for line in lines:
        line.close()


def test_too_many_viewers(watched, monkeypatch):
    monkeypatch.setattr(module, "MOST_VIEWERS", 0)
    status, _, body = ask(watched(), "/stream/0.mjpg")
    assert status == 503 and body == b""


def test_a_viewer_that_says_too_much_is_let_go(watched):
    view = watched()

    async def shout():
        async with aiohttp.ClientSession() as session, session.ws_connect(
            f"http://127.0.0.1:{view.port}/live"
        ) as line:
            await line.send_str("x" * (module.LONGEST_MESSAGE + 1))
            async for message in line:
                if message.type == aiohttp.WSMsgType.BINARY:
                    await line.send_str("taken")
            return line.close_code

    assert asyncio.run(asyncio.wait_for(shout(), 20)) in (1006, 1009)


def test_viewers_are_told_of_the_end(watched):
    view = watched()

    def stop_once_seen(viewer):
        if viewer.pictures:
            view.pipeline.stop()

    viewer = asyncio.run(Viewer(view).watch(enough=stop_once_seen))
    assert viewer.texts[-1] == {"ended": True}


def test_wishes_of_a_flood_are_read_one_by_one(live, watched, monkeypatch):
    obeyed = []
    monkeypatch.setattr(module, "obey", lambda *arguments: obeyed.append(time.monotonic()))
    view = watched()

    async def flood(viewer):
        async with aiohttp.ClientSession() as session, session.ws_connect(
            f"http://127.0.0.1:{view.port}/live"
        ) as line:
            for _ in range(300):
                await line.send_str('{"threshold": 0.3}')
            return await viewer.watch_again(lambda viewer: len(viewer.pictures) > 5)

    assert len(asyncio.run(flood(Viewer(view))).pictures) > 5
    assert len(obeyed) <= 2 + (obeyed[-1] - obeyed[0]) / module.SMALLEST_PAUSE


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_page(browser, view, **context):
    """A page that shows a picture; complaints of the browser fail the test."""
    page = browser.new_context(**context).new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "console", lambda message: page.complaints.append(message.text) if message.type == "error" else None
    )
    page.goto(view.address.replace(view.address.split("//")[1].split(":")[0], "127.0.0.1"))
    page.wait_for_selector("figure[data-frame]", timeout=30_000)
    return page


def until(page, condition, seconds=30):
    """Wait for a JavaScript expression. (Playwright's own wait needs eval, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(40)


PIXELS = """() => { const c = document.querySelector("canvas");
  return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data); }"""


def test_the_picture_moves_and_the_figures_are_there(browser, watched):
    page = open_page(browser, watched())
    before, frame = page.evaluate(PIXELS), page.get_attribute("figure", "data-frame")
    until(page, f'document.querySelector("figure").dataset.frame > {frame} + 3')
    assert page.evaluate(PIXELS) != before
    until(page, 'Number(document.getElementById("rate").textContent) > 0')
    assert page.inner_text("#objects") == "4" and page.inner_text("#model") == "colours"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_a_slider_changes_what_is_drawn_and_what_others_see(browser, watched):
    view = watched()
    page, other = open_page(browser, view), open_page(browser, view)
    assert view.viewers == 2
    page.fill("#threshold", "0.8")
    for one in (page, other):
        until(one, 'document.getElementById("objects").textContent === "1"')
        until(one, 'document.getElementById("threshold").value === "0.8"')
    assert view.pipeline.settings.now.threshold == 0.8
    assert page.complaints == other.complaints == []


def test_pause_classes_and_snapshot(browser, watched):
    view = watched()
    page = open_page(browser, view)
    page.click("#classes button:has-text('green')")
    until(page, 'document.getElementById("objects").textContent === "1"')
    assert page.get_attribute("#classes button:has-text('red')", "aria-pressed") == "false"
    page.click("#all")
    until(page, 'document.getElementById("objects").textContent === "4"')
    page.click("#pause")
    until(page, 'document.getElementById("status").textContent === "paused"')
    page.wait_for_timeout(500)
    frame = page.get_attribute("figure", "data-frame")
    # Still, a slider changes what is drawn.
    page.fill("#threshold", "0.6")
    until(page, 'document.getElementById("objects").textContent === "2"')
    assert page.get_attribute("figure", "data-frame") == frame
    with page.expect_download() as download:
        page.click("#snapshot")
    assert download.value.suggested_filename.startswith("snapshot-0-")
    page.click("#pause")
    until(page, f'document.querySelector("figure").dataset.frame > {frame}')
    assert page.complaints == []


def test_on_a_phone_nothing_is_cut_off(browser, watched):
    page = open_page(
        browser, watched(), viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    low = "b => b.getBoundingClientRect().height < 32 && b.id !== 'all'"
    assert page.evaluate(f"[...document.querySelectorAll('button, input')].filter({low}).length") == 0
    page.tap("#pause")
    until(page, 'document.getElementById("status").textContent === "paused"')
    assert page.complaints == []


def test_the_link_with_a_token_opens_the_page_and_leaves_the_address_bar(browser, watched):
    view = watched("0.0.0.0")
    page = open_page(browser, view)
    assert view.token not in page.url
    page.reload()
    page.wait_for_selector("figure[data-frame]", timeout=30_000)


def test_the_page_finds_back_after_the_program_was_started_again(browser, watched, live):
    view = watched()
    page = open_page(browser, view)
    view.close()
    until(page, 'document.getElementById("status").className.includes("live") === false')
    second = WebView("127.0.0.1", view.port, view.pipeline)
    second._newest = view._newest
    second.open()
    until(page, 'document.getElementById("status").textContent === "live"')
    second.close()
