"""A local server that misbehaves as it is told to, and sources of one file that it serves."""

import hashlib
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dsm_engine.recipes import validate_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))
try:
    import download_sources as tool
finally:
    sys.path.remove(str(REPOSITORY / "tools"))

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several reads of a socket
OTHER = CONTENT[::-1]


@dataclass
class Served:
    """What a server does for one path; `cuts` and `status` are used up, one a request."""

    content: bytes = CONTENT
    etag: str = '"one"'
    last_modified: str = ""
    ranges: bool = True
    shift: int = 0
    """How far behind the range that is asked for the one it sends begins."""
    most: int | None = None
    """The bytes of a range that are sent at once."""
    total: str = "{}"
    """What a range says of the length of the whole file."""
    unasked: bool = False
    """Whether it sends ranges that nobody asked for."""
    believes: bool = True
    """Whether If-Range is looked at."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the connection is closed."""
    status: list[int] = field(default_factory=list)
    """Errors that come first."""
    hangs: bool = False
    """Instead of closing a connection, it is left open in silence."""
    chunked: bool = False
    changes: list[tuple[bytes, str] | None] = field(default_factory=list)
    """What the file and its ETag become, one a request."""
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """A web server in a thread, and the requests it has had as (path, Range)."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.released = threading.Event()
        handler = type("Handler", (Handler,), {"owner": self})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no news."""


class Handler(BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.owner.requests.append((self.path, asked))
        served = self.owner.files.get(self.path)
        if served is None or served.status:
            self._refuse(404 if served is None else served.status.pop(0), served)
            return
        if served.changes and (change := served.changes.pop(0)):
            served.content, served.etag = change
        start = self._start(served, asked)
        if start is None:
            self._refuse(416, served)
            return
        is_range = bool(start) or served.unasked
        most = served.most if is_range else None
        body = served.content[start:][:most]
        self.send_response(206 if is_range else 200)
        if is_range:
            total = served.total.format(len(served.content))
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        self._send_body(served, body)

    def _start(self, served: Served, asked: str | None) -> int | None:
        validator = served.etag or served.last_modified
        if not asked or not served.ranges:
            return 0
        if served.believes and self.headers.get("If-Range") != validator:
            return 0
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        assert match is not None
        start = int(match[1]) + served.shift
        return start if start < len(served.content) else None

    def _send_body(self, served: Served, body: bytes) -> None:
        for name, value in (("ETag", served.etag), ("Last-Modified", served.last_modified)):
            if value:
                self.send_header(name, value)
        length = {"Transfer-Encoding": "chunked"} if served.chunked else {}
        for name, value in ({"Content-Length": str(len(body))} | served.headers | length).items():
            if not (served.chunked and name == "Content-Length"):
                self.send_header(name, value)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else None
        sent = body[:cut]
        as_chunk = served.chunked and sent  # an empty chunk would be the end
        self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if as_chunk else sent)
        self.wfile.flush()
        if cut is None:
            self.wfile.write(b"0\r\n\r\n" if served.chunked else b"")
            return
        if served.hangs:
            self.owner.released.wait(10)
        self.close_connection = True

    def _refuse(self, status: int, served: Served | None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in (served.headers if served else {}).items():
            self.send_header(name, value)
        self.end_headers()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def a_source(address: str, **changes: Any) -> dict[str, Any]:
    """A source of one pinned file, as the catalogue has it; changes of the file are keywords."""
    file = {
        "remote": "data/a.jsonl",
        "path": "a/a.jsonl",
        "bytes": len(CONTENT),
        "sha256": sha256(CONTENT),
    }
    return {
        "kind": "training",
        "licence": "MIT",
        "homepage": "https://a.example",
        "address": address,
        "reader": "jsonl",
        "files": [file | changes],
    }


def catalogue_of(**sources: Any) -> Any:
    return validate_recipe({"sources": sources}, tool.Catalogue, "test")
