"""Real servers on loopback: moto's S3 server for the images, and in front of it one that can misbehave.

The front server also serves the CSV files, as Google's storage does (Range, ETag, x-goog-hash). It knows nothing
of the downloader; a test tells it which answers to spoil.
"""

import base64
import hashlib
import http.client
import http.server
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import cv2
import numpy as np
import pytest

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLICKS = ",XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
CLASSES = {
    "/m/0gxl3": "Handgun",
    "/m/06nrc": "Shotgun",
    "/m/0k4j": "Car",
    "/m/01g317": "Person",
    "/m/04yx4": "Man",
}
HIERARCHY = (
    '{"LabelName": "/m/0bl9f", "Subcategory": [{"LabelName": "/m/01g317", "Subcategory": '
    '[{"LabelName": "/m/04yx4"}], "Part": [{"LabelName": "/m/0dzct"}]}, {"LabelName": "/m/0gxl3"}]}'
)
BUCKET = "open-images-dataset"


# --- the front server ---------------------------------------------------------------------------------------


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: "Front"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        with self.front.lock:
            faults = self.front.faults.get(path) or self.front.faults.get("*", [])
            fault = faults.pop(0) if faults else ""
            self.front.requests.append((path, self.headers.get("Range", "")))
        time.sleep(self.front.pause_before(path))
        if fault == "refuse":
            self.close_connection = True
            return
        if fault == "hang":
            time.sleep(self.front.hang)
            self.close_connection = True
            return
        if fault.isdigit():
            code = {"404": "NoSuchKey", "403": "AccessDenied", "503": "SlowDown"}.get(fault, "InternalError")
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            return self._send(int(fault), {"Content-Type": "application/xml"}, body, "")
        if fault == "html":
            return self._send(200, {"Content-Type": "text/html"}, b"<html>please log in</html>", "")
        status, headers, body = self._stored(path)
        return self._send(status, headers, body, fault)

    def _stored(self, path: str) -> Tuple[int, Dict[str, str], bytes]:
        if path in self.front.files:
            return self._file(self.front.files[path])
        upstream = http.client.HTTPConnection("127.0.0.1", self.front.s3_port, timeout=60)
        upstream.request("GET", self.path, headers={"Host": f"127.0.0.1:{self.front.s3_port}"})
        answer = upstream.getresponse()
        kept = ("etag", "content-type", "last-modified")
        body = answer.read()
        upstream.close()
        return answer.status, {k: v for k, v in answer.getheaders() if k.lower() in kept}, body

    def _file(self, whole: bytes) -> Tuple[int, Dict[str, str], bytes]:
        digest = hashlib.md5(whole).digest()
        etag = f'"{digest.hex()}"'
        headers = {"ETag": etag, "Content-Type": "text/csv"}
        if self.front.states_hash:
            headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}"
        wanted = self.headers.get("Range", "")
        if not wanted or self.headers.get("If-Range", etag) != etag:
            return 200, headers, whole
        start = int(wanted.split("=")[1].rstrip("-"))
        if start >= len(whole):
            return 416, {"Content-Range": f"bytes */{len(whole)}"}, b""
        headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        return 206, headers, whole[start:]

    def _send(self, status: int, headers: Dict[str, str], body: bytes, fault: str) -> None:
        length = len(body)
        if fault == "garble":
            body = body[: length // 2] + bytes(255 - b for b in body[length // 2 :])
        if fault == "short":
            body = body[: length // 2]
            length = len(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault in ("cut", "reset"):
            self.wfile.write(body[: length // 2])
            self.close_connection = True
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            return
        self.wfile.write(body)


@dataclass
class Front:
    """The front server: what it serves, and what it spoils.

    Attributes:
        files: path -> CSV file; every other path is asked of the S3 server.
        faults: path ("*": any without faults of its own) -> faults of the next answers, one each: refuse, hang,
            a status, html, cut and reset (half the body), short (half the body, announced so), garble.
        requests: (path, Range header) of every request.
        latency: seconds before every answer.
        quick: so many images are answered at once all the same, and every file.
    """

    s3_port: int
    files: Dict[str, bytes] = field(default_factory=dict)
    faults: Dict[str, List[str]] = field(default_factory=dict)
    requests: List[Tuple[str, str]] = field(default_factory=list)
    states_hash: bool = True
    latency: float = 0.0
    quick: int = 0
    hang: float = 1.3
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"front": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def pause_before(self, path: str) -> float:
        if not self.quick:
            return self.latency
        return self.latency if self.asked_for(BUCKET) > self.quick and BUCKET in path else 0.0

    def asked_for(self, part: str) -> int:
        """How many requests had `part` in their path."""
        return sum(part in path for path, _ in self.requests)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


# --- a small Open Images ------------------------------------------------------------------------------------


def image_id(split: str, number: int) -> str:
    return hashlib.sha256(f"{split}{number}".encode()).hexdigest()[:16]


def jpeg(seed: int, height: int = 60, width: int = 80) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def row(
    image: str, mid: str, box: str = "0.1,0.5,0.2,0.6", group: int = 0, depiction: int = 0, occluded: int = 0
) -> str:
    """A line of a box file; `box` is XMin,XMax,YMin,YMax."""
    return f"{image},xclick,{mid},1,{box},{occluded},0,{group},{depiction},0"


@dataclass
class World:
    """What the servers hold: {path: CSV} and {key: image}."""

    csv: Dict[str, str]
    images: Dict[str, bytes]

    def ids(self, split: str, mid: str) -> List[str]:
        """ImageIDs of a split with a box of a class, in file order."""
        name = next(p for p in self.csv if p.endswith(f"{split}-annotations-bbox.csv") and "v4" not in p)
        found = [line.split(",")[0] for line in self.csv[name].splitlines() if f",{mid}," in line]
        return list(dict.fromkeys(found))


def make_world() -> World:
    images: Dict[str, bytes] = {}
    csv: Dict[str, str] = {
        "/v5/class-descriptions-boxable.csv": "".join(f"{mid},{name}\n" for mid, name in CLASSES.items()),
        "/2018_04/bbox_labels_600_hierarchy.json": HIERARCHY,
    }
    paths = {
        "train": "/2018_04/train/train-annotations-bbox.csv",
        "validation": "/v5/validation-annotations-bbox.csv",
        "test": "/v5/test-annotations-bbox.csv",
    }
    for seed, (split, count) in enumerate({"train": 24, "validation": 6, "test": 9}.items()):
        rows, labels, info = [], [], []
        for number in range(count):
            image = image_id(split, number)
            images[f"{split}/{image}.jpg"] = jpeg(1000 * seed + number)
            mid = list(CLASSES)[number % 3]
            rows.append(row(image, mid, f"0.1,{0.5 + number / 100:.2f},0.2,0.6", occluded=-1))
            if number % 6 == 3:
                rows.append(row(image, mid, "0.0,1.0,0.0,1.0", group=1))
            if number % 4 == 0:
                rows.append(row(image, "/m/04yx4", "0.3,0.9,0.25,0.75"))
            if number % 8 == 5:
                rows.append(row(image, mid, "0.6,0.9,0.6,0.9", depiction=1))
            for other in list(CLASSES)[:3]:
                labels.append(f"{image},verification,{other},{int(other == mid)}")
            info.append(f'{image},{split},u,p,https://licence/{number},,"Doe, J.",t,1,m,,')
        wide = split != "train"
        lines = [HEADER + CLICKS * wide] + [each + ",-1" * 8 * wide for each in rows]
        csv[paths[split]] = "\n".join(lines) + "\n"
        csv[f"/v5/{split}-annotations-human-imagelabels-boxable.csv"] = "\n".join(
            ["ImageID,Source,LabelName,Confidence", *labels, ""]
        )
        whole = "-boxable" if split == "train" else ""
        csv[f"/2018_04/{split}/{split}-images{whole}-with-rotation.csv"] = "\n".join(
            [
                "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
                "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation",
                *info,
                "",
            ]
        )
    return World(csv, images)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def s3_port(world: World) -> Iterator[int]:
    """moto's S3 server with the images of the world."""
    pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path, data in {"": b"", **{f"/{key}": data for key, data in world.images.items()}}.items():
        connection.request("PUT", f"/{BUCKET}{path}", body=data, headers={"x-amz-acl": "public-read"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    connection.close()
    yield port
    server.stop()


@pytest.fixture
def front(s3_port: int, world: World) -> Iterator[Front]:
    server = Front(s3_port, {path: text.encode() for path, text in world.csv.items()})
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these tests are on this machine, wherever a proxy of the environment may be."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait milliseconds, not seconds, between tries."""
    monkeypatch.setattr("vision.open_images.backoff.Backoff.pause", lambda self, number: 0.01)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "guns"
