"""The images, from the public S3 bucket of Open Images: unsigned, many at a time, each checked before it counts."""

import logging
import queue
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from vision.data.images import Broken, check_image, read_image
from vision.errors import UserError
from vision.open_images.backoff import Backoff
from vision.open_images.fetch import DISK_FULL, md5
from vision.open_images.progress import Progress

log = logging.getLogger(__name__)

BUCKET = "open-images-dataset"
REGION = "us-east-1"
INSTALL = 'boto3 is not installed; pip install ".[openimages]"'
BLOCK = 1 << 16
# The bucket's images have at most 1024 pixels a side; anything near this is something else.
LARGEST = 1 << 28
MISSING_CODES = {"404", "NoSuchKey", "NotFound", "403", "AccessDenied"}
REFUSED_FOR_GOOD = {"NoSuchBucket", "PermanentRedirect", "AllAccessDisabled"}
# After so many failed connections in a row, and none that worked, there is no network.
HOPELESS = 20
# How long Ctrl-C waits for the images that are under way.
LAST_WAIT = 5.0


class _Passing(Exception):
    """A fault that may be gone at the next try; `offline` when not even a connection came about."""

    def __init__(self, reason: str, offline: bool = False):
        super().__init__(reason)
        self.offline = offline


class _Stopped(Exception):
    """The crew has been told to stop."""


class _Missing(Exception):
    """The bucket does not have it, or what it has is no image."""


class _Result(NamedTuple):
    """What became of one image.

    Attributes:
        key: "train/0a1b.jpg".
        size: bytes received; None for an image that was there already.
        failure: why it is not there; empty when it is.
        offline: nothing answered.
        fatal: a fault that ends the whole download; empty otherwise.
    """

    key: str
    size: Optional[int] = None
    failure: str = ""
    offline: bool = False
    fatal: str = ""


@dataclass
class Outcome:
    """What came of downloading many images.

    Attributes:
        downloaded, already_there, received: two numbers of images, and bytes.
        failures: key -> why it is not there.
        interrupted: by Ctrl-C; images without a result are then not in `failures`.
        fault: what ended the download before its end (a full disk, no network), or "".
        seconds: how long it took.
    """

    downloaded: int = 0
    already_there: int = 0
    received: int = 0
    failures: Dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    fault: str = ""
    seconds: float = 0.0

    def add(self, result: _Result) -> None:
        if result.failure:
            self.failures[result.key] = result.failure
        elif result.size is None:
            self.already_there += 1
        else:
            self.downloaded += 1
            self.received += result.size

    @property
    def done(self) -> int:
        """Images with a result."""
        return self.downloaded + self.already_there + len(self.failures)


def open_bucket(endpoint_url: str = "", connections: int = 20, timeout: float = 30.0) -> Any:
    """A boto3 S3 client that signs nothing. It may be used from many threads.

    Args:
        endpoint_url: of a mirror with the S3 protocol; empty for Amazon.
        connections: kept open at the same time.
        timeout: seconds to connect, and to wait for a byte.

    Raises UserError when boto3 is missing or the address is none.
    """
    try:
        import boto3
        import botocore
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError as error:
        raise UserError(INSTALL) from error
    config = Config(
        signature_version=botocore.UNSIGNED,
        retries={"mode": "adaptive", "total_max_attempts": 3},
        connect_timeout=timeout,
        read_timeout=timeout,
        max_pool_connections=connections,
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    # A profile named in the environment plays no role for unsigned requests, but a wrong one would be an error.
    session = boto3.session.Session(
        botocore_session=Session(session_vars={"profile": (None, [], None, None)}), region_name=REGION
    )
    try:
        return session.client("s3", endpoint_url=endpoint_url or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"--endpoint_url {endpoint_url!r}: {error}") from error


def download_images(
    client: Any,
    keys: Sequence[str],
    root: Path,
    workers: int = 20,
    backoff: Backoff = Backoff(),
    progress: Optional[Progress] = None,
) -> Outcome:
    """Download images to `root / key`.

    A file gets its name when it is complete (length, MD5) and decodes. What is there and whole is not fetched
    again. Ctrl-C, a full disk and a dead network end the whole; everything that has a name is whole then too.

    Args:
        client: from `open_bucket`.
        keys: "train/0a1b.jpg" and the like.
        workers: threads.
        backoff: for every single image. An image that the bucket does not have is not tried again.
    """
    outcome = Outcome()
    started = time.monotonic()
    progress = progress or Progress()
    for folder in {(root / key).parent for key in keys}:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*.part"):
            left_over.unlink()
    crew = _Crew(client, keys, root, backoff)
    offline = 0
    try:
        for result in crew.results(max(min(workers, len(keys)), 1)):
            outcome.add(result)
            progress.images(
                outcome.done, len(keys), outcome.downloaded, outcome.received, len(outcome.failures)
            )
            offline = offline + 1 if result.offline else 0
            if result.fatal:
                outcome.fault = result.fatal
            elif offline >= max(HOPELESS, 2 * workers):
                outcome.fault = f"no connection to the image server ({result.failure})"
            if outcome.fault:
                break
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        crew.stop()
        outcome.seconds = time.monotonic() - started
        progress.close()
    for result in crew.left():
        outcome.add(result)
    return outcome


class _Crew:
    """Threads that fetch images until all are done or they are told to stop."""

    def __init__(self, client: Any, keys: Sequence[str], root: Path, backoff: Backoff):
        self.client = client
        self.root = root
        self.backoff = backoff
        self.count = len(keys)
        self._keys: Iterator[str] = iter(keys)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # Simple: an interrupt in the middle of a Queue's get may leave its lock taken, and all would wait for ever.
        self._done: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._threads: List[threading.Thread] = []

    def results(self, workers: int) -> Iterator[_Result]:
        """Start; yield one result per image, as they come."""
        # Daemons: a thread that hangs in a system call must not keep a stopped process alive.
        for _ in range(workers):
            thread = threading.Thread(target=self._work, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise UserError(f"the system gives no thread ({error})") from error
                log.warning("the system gives no more than %d threads", len(self._threads))
                break
            self._threads.append(thread)
        for _ in range(self.count):
            yield self._next()

    def _next(self) -> _Result:
        while True:
            try:
                # Without a timeout Ctrl-C would not get through on Windows.
                return self._done.get(timeout=0.5)
            except queue.Empty:
                # Those who have ended have left their results before.
                if not any(thread.is_alive() for thread in self._threads) and self._done.empty():
                    raise RuntimeError("all threads have ended, and images have no result") from None

    def stop(self) -> None:
        """Start no further image, and wait a little for those under way."""
        self._stopped.set()
        deadline = time.monotonic() + LAST_WAIT
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def left(self) -> Iterator[_Result]:
        """Results that nobody has taken (of images that were under way when the crew was stopped)."""
        while True:
            try:
                yield self._done.get_nowait()
            except queue.Empty:
                return

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                key = next(self._keys, None)
            if key is None:
                return
            try:
                self._done.put(self._image(key))
            except _Stopped:
                return
            except Exception as error:  # whatever it is, the download must learn of it and not wait for ever
                log.debug("%s", key, exc_info=True)
                self._done.put(_Result(key, failure=f"unexpected {error!r}"))

    def _image(self, key: str) -> _Result:
        target = self.root / key
        try:
            check_image(target)
            return _Result(key)
        except Broken:
            pass
        offline = False
        for number in range(self.backoff.retries + 1):
            try:
                return self._try_once(key, target)
            except _Passing as fault:
                reason, offline = str(fault), fault.offline
            except OSError as error:
                text = f"{target}: {error.strerror or error}"
                full = error.errno in DISK_FULL
                return _Result(key, failure=text, fatal=f"{text}; make room" if full else text)
            if number < self.backoff.retries and self._stopped.wait(self.backoff.pause(number)):
                raise _Stopped
        return _Result(key, failure=f"{reason} ({self.backoff.retries + 1} tries)", offline=offline)

    def _try_once(self, key: str, target: Path) -> _Result:
        try:
            data = self._receive(key)
        except _Missing as missing:
            return _Result(key, failure=str(missing))
        part = target.with_name(target.name + ".part")
        try:
            part.write_bytes(data)
            reason = _flaw(part)
            if not reason:
                part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if reason:
            # Length and checksum were right: the bucket's own copy is no better.
            part.unlink()
            return _Result(key, failure=f"broken in the bucket: {reason}")
        return _Result(key, size=len(data))

    def _receive(self, key: str) -> bytes:
        """The bytes of an object, complete. Raises _Passing, _Missing or _Stopped."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        try:
            answer = self.client.get_object(Bucket=BUCKET, Key=key)
            blocks, size = [], 0
            for block in answer["Body"].iter_chunks(BLOCK):
                if self._stopped.is_set():
                    answer["Body"].close()
                    raise _Stopped
                blocks.append(block)
                size += len(block)
                if size > LARGEST:
                    raise _Missing(f"more than {LARGEST >> 20} MB; this is no image of Open Images")
        except ClientError as error:
            raise _judge(error) from error
        except (HTTPClientError, NoConnection) as error:
            raise _Passing(f"no connection: {error}", offline=True) from error
        except (BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
            raise _Passing(f"the connection broke: {error}") from error
        data = b"".join(blocks)
        expected = answer.get("ContentLength")
        if expected is not None and len(data) != expected:
            raise _Passing(f"{len(data)} bytes where {expected} were announced")
        etag = answer.get("ETag", "").strip('"')
        # A plain object's ETag is its MD5; one uploaded in parts has a dash in it.
        if re.fullmatch(r"[0-9a-f]{32}", etag) and md5(data).hexdigest() != etag:
            raise _Passing("the checksum does not agree")
        return data


def _judge(error: Any) -> Exception:
    """Whether an error that the server states may pass."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in MISSING_CODES or code in REFUSED_FOR_GOOD or 300 <= status < 400:
        return _Missing(f"not in the bucket ({code})")
    return _Passing(f"server error {status} {code}")


def _flaw(path: Path) -> str:
    """Why a file is no whole image, or ""."""
    try:
        check_image(path)
        read_image(path, reduce=8)
    except (Broken, UserError) as error:
        return str(error)
    return ""
