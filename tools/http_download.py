"""One file over HTTP, continued where the last attempt broke off.

With urllib of the standard library: the engine declares no HTTP client, and what is needed is a
range request. Proxies come from the environment (https_proxy, no_proxy), as urllib reads them.
"""

import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json

_CHUNK_BYTES = 1 << 18
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MAX_PAUSE_S = 60.0

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes there are and, where it is known, the bytes there will be."""


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    timeout_s: float = 60.0
    """For the connection, and for every piece that is read."""
    attempts: int = 5
    """In a row that bring nothing new."""
    pause_s: float = 1.0
    """After the first of those; doubled after each."""


DEFAULT_PATIENCE = Patience()


class _Transient(Exception):
    """What may go away by itself."""

    def __init__(self, reason: object, retry_after_s: float = 0.0) -> None:
        super().__init__(str(reason))
        self.retry_after_s = retry_after_s


def download(
    url: str,
    part: Path,
    *,
    num_bytes: int | None = None,
    patience: Patience = DEFAULT_PATIENCE,
    on_progress: OnProgress = lambda done, total: None,
) -> bool:
    """Fetches `url` into `part`; returns whether it was continued from an earlier call.

    A `part` that is there is continued where the server confirms, by the ETag or the date the
    part began with, that it still has the same file; else it begins again. What was fetched stays
    in `part` when DsmError is raised, for the next call, unless it cannot be of the right file.
    """
    continued = _num_held(part) > 0
    furthest = failures = 0
    while True:
        try:
            _attempt(url, part, num_bytes, patience.timeout_s, on_progress)
        except _Transient as error:
            held = _num_held(part)
            failures = 0 if held > furthest else failures + 1
            furthest = max(furthest, held)
            if failures >= patience.attempts:
                raise DsmError(
                    f"{url}: {error}; given up after {failures} attempts without progress, run"
                    f" again to continue at byte {held:,}"
                ) from error
            pause = patience.pause_s * 2 ** max(0, failures - 1)
            time.sleep(min(max(pause, error.retry_after_s), _MAX_PAUSE_S))
        else:
            _state_path(part).unlink(missing_ok=True)
            return continued


def discard(part: Path) -> None:
    """Removes a part and what is known of it."""
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _attempt(
    url: str, part: Path, num_bytes: int | None, timeout_s: float, on_progress: OnProgress
) -> None:
    held, validator = _resumable(part, url)
    if num_bytes is not None and held == num_bytes:
        return
    headers = {"User-Agent": "dsm_engine", "Accept-Encoding": "identity"}
    if held:
        headers |= {"Range": f"bytes={held}-", "If-Range": validator}
    with _open(url, headers, timeout_s, part) as response:
        _check_transport(url, response)
        start, total = 0, response.length
        if response.status == 206:
            start, total = held, _total_of_range(url, response, part, held, validator)
            if total is None and num_bytes is None:  # the range may end before the file does
                discard(part)
                raise _Transient("the server does not say how long the whole file is")
        expected = total if num_bytes is None else num_bytes
        if total is not None and total != expected:
            discard(part)
            raise DsmError(f"{url}: is {total:,} bytes, not {expected:,}: another file")
        if expected is None and not response.chunked:
            raise DsmError(f"{url}: the server does not say where the file ends; use --from")
        if not start:
            discard(part)  # before what is written there is known as the new file's
        write_json(_state_path(part), {"url": url, "validator": _validator(response.headers)})
        done = _write(part, start, expected, _chunks(response), on_progress)
    if expected is not None and done < expected:
        raise _Transient(f"the server stopped at byte {done:,} of {expected:,}")
    if expected is not None and done > expected:
        discard(part)
        raise DsmError(f"{url}: is longer than {expected:,} bytes: another file")


def _open(url: str, headers: dict[str, str], timeout_s: float, part: Path) -> Any:
    try:
        return build_opener().open(Request(url, headers=headers), timeout=timeout_s)
    except HTTPError as error:
        if error.code == 416:  # the part is not the beginning of what the server has now
            discard(part)
            raise _Transient("the server has no such range") from error
        if error.code in _TRANSIENT_STATUS:
            raise _Transient(f"HTTP {error.code} {error.reason}", _retry_after_s(error)) from error
        raise DsmError(f"{url}: HTTP {error.code} {error.reason}") from error
    except (URLError, OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError):
            raise DsmError(f"{url}: cannot be reached: {reason}") from error
        raise _Transient(reason or type(error).__name__) from error
    except ValueError as error:  # no address at all
        raise DsmError(f"{url}: cannot be fetched: {error}") from error


def _check_transport(url: str, response: Any) -> None:
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise DsmError(f"{url}: leads to {response.url}, which is not encrypted")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DsmError(f"{url}: the server sends it as {encoding}, unasked")


def _total_of_range(url: str, response: Any, part: Path, held: int, validator: str) -> int | None:
    """The bytes of the whole file, where the server says so: a range may be shorter than was asked
    for (RFC 9110, 15.3.7), so that its length tells nothing. It is confirmed to continue `part`.
    """
    if not held:
        raise DsmError(f"{url}: the server sends a range, unasked")
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    same = (
        match is not None
        and int(match[1]) == held
        and response.length in (None, int(match[2]) + 1 - held)
        and _validator(response.headers) == validator
    )
    if match is None or not same:
        discard(part)
        raise _Transient("the server has another file than before, or sends another range")
    return None if match[3] == "*" else int(match[3])


def _write(
    part: Path, start: int, total: int | None, chunks: Iterator[bytes], on_progress: OnProgress
) -> int:
    done = start
    try:
        with part.open("ab" if start else "wb") as file:
            on_progress(done, total)
            for chunk in chunks:
                file.write(chunk)
                done += len(chunk)
                on_progress(done, total)
                if total is not None and done > total:
                    break
    except OSError as error:
        raise DsmError(f"{part}: cannot be written: {error.strerror or error}") from error
    return done


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(error or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _resumable(part: Path, url: str) -> tuple[int, str]:
    """The bytes that can be continued and what the server is asked to confirm; else 0 and ""."""
    with suppress(DsmError):
        state = read_json(_state_path(part))
        if isinstance(state, dict) and state.get("url") == url and state.get("validator"):
            return _num_held(part), str(state["validator"])
    return 0, ""


def _num_held(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validator(headers: Any) -> str:
    """What If-Range may hold: a strong ETag (RFC 9110, 13.1.5), else the date of the file."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _retry_after_s(error: HTTPError) -> float:
    seconds = error.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) < 9 else 0.0
