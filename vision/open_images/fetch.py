"""One large file over HTTP: resumed, checked, and under its name only when it is whole."""

import base64
import contextlib
import errno
import hashlib
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from vision.errors import UserError
from vision.open_images.backoff import Backoff

log = logging.getLogger(__name__)

BLOCK = 1 << 20
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# These may be different in a minute; other HTTP errors will not.
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
LONGEST_RETRY_AFTER = 60.0

Progress = Callable[[int, Optional[int]], None]


class _Passing(Exception):
    """A fault that may be gone at the next try.

    Attributes:
        wait: seconds that the server asks for.
    """

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def part_file(target: Path) -> Path:
    """Where the bytes stay until all of them are there."""
    return target.with_name(target.name + ".part")


def _validator_file(target: Path) -> Path:
    # What the .part is a part of: without it, bytes of an older file could be continued with those of a newer.
    return target.with_name(target.name + ".part.etag")


def fetch(
    url: str,
    target: Path,
    backoff: Backoff = Backoff(),
    timeout: float = 60.0,
    progress: Optional[Progress] = None,
) -> None:
    """Download `url` to `target`.

    A try that was cut, now or in an earlier run, is continued where it ended if the server still has the same
    file (ETag). Length and MD5 (`x-goog-hash`) are checked where the server states them.

    Args:
        timeout: seconds without a byte after which a try is given up.
        progress: called with (bytes there, bytes in all or None).

    Raises UserError: the server does not have it, sends a web page, cannot be reached after all retries (tries
        that brought bytes do not count), or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    failures, furthest = 0, 0
    while True:
        try:
            _try_once(url, target, timeout, progress)
            return
        except _Passing as fault:
            arrived = _size(part_file(target))
            failures = 1 if arrived > furthest else failures + 1
            furthest = max(furthest, arrived)
            if failures > backoff.retries:
                raise UserError(
                    f"{url}: {fault} ({failures} tries). What has arrived is kept; "
                    "run the same command again to continue"
                ) from fault
            wait = max(backoff.pause(failures - 1), min(fault.wait, LONGEST_RETRY_AFTER))
            log.warning("%s: %s; trying again in %.1f s", url, fault, wait)
            time.sleep(wait)


def _try_once(url: str, target: Path, timeout: float, progress: Optional[Progress]) -> None:
    part, validator_file = part_file(target), _validator_file(target)
    have = _resumable(url, part, validator_file)
    wanted = {"Accept-Encoding": "identity"}
    if have:
        wanted.update({"Range": f"bytes={have}-", "If-Range": _read_validator(validator_file)[1]})
    with _opened(url, wanted, timeout, part) as response:
        headers = response.headers
        if headers.get("Content-Type", "").startswith("text/html"):
            raise UserError(
                f"{url}: the server sent a web page, not the file; is there a proxy or login page?"
            )
        if response.status != 206 or not _continues(headers, have):
            have = 0
        with _disk(part):
            if not have:  # first, or a crash here would leave the old bytes under the new validator
                part.unlink(missing_ok=True)
            validator = headers.get("ETag") or headers.get("Last-Modified") or ""
            validator_file.write_text(f"{url}\n{validator}\n", encoding="utf-8")
        length = headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        received_md5 = _receive(response, part, have, total, progress)
    _check(headers, part, total, received_md5)
    with _disk(part):
        part.replace(target)
        validator_file.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _resumable(url: str, part: Path, validator_file: Path) -> int:
    """How many bytes can be continued: all but the last, because a server refuses to continue a whole file."""
    saved_url, etag = _read_validator(validator_file)
    return max(_size(part) - 1, 0) if saved_url == url and etag else 0


def _read_validator(path: Path) -> Tuple[str, str]:
    try:
        with path.open(encoding="utf-8") as file:
            url, etag = file.read(4096).splitlines()[:2]
    except (OSError, ValueError):
        return "", ""
    return url, etag


def _continues(headers: Any, have: int) -> bool:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return match is not None and int(match.group(1)) == have


@contextlib.contextmanager
def _opened(url: str, headers: Dict[str, str], timeout: float, part: Path) -> Iterator[Any]:
    """The response, with everything that can go wrong before the first byte said in our words."""
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # more bytes here than there: what we have is of no use
            part.unlink(missing_ok=True)
            raise _Passing("the server has a shorter file; starting anew") from error
        if error.code in PASSING_STATUS:
            raise _Passing(f"HTTP status {error.code}", _retry_after(error.headers)) from error
        raise UserError(
            f"{url}: HTTP status {error.code}; name a mirror with --base_url, or put the file into the folder by hand"
        ) from error
    except (ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: {reason}; is there a proxy that replaces certificates?") from error
        if isinstance(error, ValueError) or "unknown url type" in str(reason):
            raise UserError(f"{url}: is no address") from error
        raise _Passing(f"no connection ({reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"no answer ({error!r})") from error
    with contextlib.closing(response):
        yield response


def _retry_after(headers: Any) -> float:
    value = (headers.get("Retry-After") or "") if headers else ""
    return float(value) if value.isdigit() else 0.0


def _receive(response: Any, part: Path, have: int, total: Optional[int], progress: Optional[Progress]) -> str:
    """Append the body to the `.part` and return the MD5 of the whole."""
    digest = md5()
    with _disk(part), part.open("r+b" if have else "wb") as file:
        while file.tell() < have:
            digest.update(file.read(min(BLOCK, have - file.tell())))
        file.truncate(have)
        while True:
            try:
                block = response.read1(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Passing(f"the connection broke after {have} bytes ({error!r})") from error
            if not block:
                break
            file.write(block)
            digest.update(block)
            have += len(block)
            if progress:
                progress(have, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Passing(f"the connection broke after {have} of {total} bytes")
    return base64.b64encode(digest.digest()).decode()


def md5(data: bytes = b"") -> Any:
    """A running MD5, also where the system forbids it for security."""
    try:
        return hashlib.new("md5", data, usedforsecurity=False)
    except TypeError:  # Python 3.8
        return hashlib.md5(data)


def _check(headers: Any, part: Path, total: Optional[int], received_md5: str) -> None:
    size = part.stat().st_size
    if total is not None and size != total:
        part.unlink()
        raise _Passing(f"{size} bytes where {total} were announced; starting anew")
    expected = _stated_md5(headers)
    if expected and received_md5 != expected:
        part.unlink()
        raise _Passing("the checksum does not agree; starting anew")


def _stated_md5(headers: Any) -> str:
    """The MD5 (base64) that Google's storage states, if it is that of the bytes as sent."""
    if headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return ""
    stated: Dict[str, str] = {}
    for value in headers.get_all("x-goog-hash") or []:
        for each in value.split(","):
            name, _, digest = each.strip().partition("=")
            stated[name] = digest
    return stated.get("md5", "")


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Say a full disk in words, and leave other errors of the disk to say theirs."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"{path}: the disk is full; make room and run the same command again to continue"
            ) from error
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
