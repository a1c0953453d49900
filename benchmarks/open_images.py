"""Open Images: the byte filter against pandas.read_csv, and many downloads at a time against one by one.

    python benchmarks/open_images.py [--rows 1000000] [--images 200] [--workers 32] [--latency 0.05]

The box file is generated: random ids and boxes, 600 classes, three of them wanted. Each way runs in a process of
its own, in turn, three times; the best time and the highest peak of resident memory count (imports included; "before"
is the memory before the work). pandas reads the file, then selects the rows; reading alone is shown too.

The images (1024 x 768) come from a server of the S3 protocol on loopback, in a process of its own, that waits
`--latency` seconds before every answer: a loopback answers at once, a bucket across a continent does not. Every image
is checked and decoded as in the downloader. "As fast as the machine allows" is the same without latency.
"""

import argparse
import hashlib
import http.server
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np

from vision.open_images.bucket import download_images, open_bucket

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
WANTED = 3
ROUNDS = 3

START = """
import json, sys, time
from pathlib import Path
def memory():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
path, wanted = Path(sys.argv[1]), sys.argv[2].split()
"""
END = 'print(json.dumps({"seconds": seconds, "peak": memory(), "before": before, "rows": rows}))\n'
WAYS = {
    "byte filter": START
    + """
from vision.open_images.boxes_csv import RowRules, filter_boxes
before, start = memory(), time.process_time()
with path.with_name("sub.csv").open("wb") as out:
    rows = filter_boxes(path, out, {mid: "name" for mid in wanted}, RowRules(())).kept
seconds = time.process_time() - start
"""
    + END,
    "pandas.read_csv": START
    + """
import pandas
before, start = memory(), time.process_time()
table = pandas.read_csv(path)
seconds = time.process_time() - start
rows = int(table["LabelName"].isin(wanted).sum())
"""
    + END,
    "pandas, select, write": START
    + """
import pandas
before, start = memory(), time.process_time()
table = pandas.read_csv(path)
table = table[table["LabelName"].isin(wanted)]
table.to_csv(path.with_name("sub.csv"), index=False)
seconds, rows = time.process_time() - start, len(table)
"""
    + END,
}


def write_boxes(path: Path, rows: int) -> List[str]:
    """Generate a box file; gives the wanted class ids."""
    rng = random.Random(0)
    mids = [f"/m/{rng.getrandbits(22):06x}" for _ in range(600)]
    with path.open("w") as file:
        file.write(HEADER)
        for number in range(rows):
            if number % 8 == 0:
                image = f"{rng.getrandbits(64):016x}"
            box = ",".join(f"{rng.random():.6f}" for _ in range(4))
            file.write(f"{image},xclick,{rng.choice(mids)},1,{box},0,{number % 2},0,-1,0\n")
    return mids[:WANTED]


def compare_filters(folder: Path, rows: int) -> None:
    """Time and memory of every way, as ratios to pandas.read_csv."""
    path = folder / "boxes.csv"
    wanted = write_boxes(path, rows)
    print(f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB, {WANTED} of 600 classes")
    results: Dict[str, List[Dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, script in WAYS.items():
            command = [sys.executable, "-c", script, str(path), " ".join(wanted)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[way].append(json.loads(done.stdout))
    reference = min(each["seconds"] for each in results["pandas.read_csv"])
    print(f"{'':24}{'seconds':>9}{'peak MB':>9}{'before':>8}{'rows':>8}   times as fast as pandas.read_csv")
    for way, rounds in results.items():
        seconds = min(each["seconds"] for each in rounds)
        peak, before = (max(each[name] for each in rounds) for name in ("peak", "before"))
        print(
            f"{way:24}{seconds:9.2f}{peak:9.0f}{before:8.0f}{rounds[0]['rows']:8}{reference / seconds:9.1f}"
        )


# --- images -------------------------------------------------------------------------------------------------


class Bucket(http.server.BaseHTTPRequestHandler):
    """Every key is the same image."""

    protocol_version = "HTTP/1.1"
    image = b""
    latency = 0.0

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(self.latency)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.image)))
        self.send_header("ETag", f'"{hashlib.md5(self.image).hexdigest()}"')
        self.end_headers()
        self.wfile.write(self.image)


def serve(image: bytes, latency: float, port: Any) -> None:
    """The bucket, until the process is ended."""
    Bucket.image, Bucket.latency = image, latency
    http.server.ThreadingHTTPServer.request_queue_size = 256
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    port.put(server.server_port)
    server.serve_forever()


def make_image() -> bytes:
    """1024 x 768, about as many bytes as an image of Open Images has (300 to 350 KB)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (96, 128, 3), np.uint8)
    pixels = cv2.resize(coarse, (1024, 768), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    pixels += rng.integers(-12, 13, pixels.shape, np.int16)
    return cv2.imencode(".jpg", pixels.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[
        1
    ].tobytes()


def images_per_second(folder: Path, image: bytes, images: int, workers: int, latency: float) -> float:
    """Throughput of one fresh download."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=serve, args=(image, latency, port), daemon=True)
    server.start()
    try:
        client = open_bucket(f"http://127.0.0.1:{port.get(timeout=60)}", workers)
        keys = [f"train/{workers}-{latency}-{number}.jpg" for number in range(images)]
        outcome = download_images(client, keys, folder, workers)
    finally:
        server.terminate()
        server.join()
    assert outcome.downloaded == images, outcome
    return images / outcome.seconds


def compare_downloads(folder: Path, images: int, workers: int, latency: float) -> None:
    """Many at a time against one by one."""
    image = make_image()
    print(f"\n{images} images of {len(image) / 1000:.0f} KB")
    for pause in (latency, 0.0):
        alone = images_per_second(folder, image, images, 1, pause)
        together = images_per_second(folder, image, images, workers, pause)
        print(
            f"latency {1000 * pause:3.0f} ms: one by one {alone:6.1f} images/s, {workers} workers {together:6.1f} "
            f"images/s ({together * len(image) / 1e6:.0f} MB/s): {together / alone:.1f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before every answer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_filters(Path(folder), arguments.rows)
        compare_downloads(Path(folder), arguments.images, arguments.workers, arguments.latency)


if __name__ == "__main__":
    main()
