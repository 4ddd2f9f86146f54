"""A web server on this machine that answers range requests, and fails on demand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class RangeServer:
    """What the server does, and what it was asked."""

    folder: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)
    """For the next GET requests, in order: "500", "429", "403", "drop", "cut", "slow", "stall" or
    "" for none."""
    head_faults: list[str] = field(default_factory=list)
    """For the next HEAD requests: status codes."""
    knows_ranges: bool = True
    validators: tuple[str, ...] = ("etag", "date")
    """What it tells of a version: "etag", "weak etag", "date"; and it compares what it is asked."""
    compares: bool = True
    gets: list[tuple[str, str]] = field(default_factory=list)
    """(path, range) of every GET request."""

    def headers(self, path: Path) -> dict[str, str]:
        status = path.stat()
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        told = {
            "etag": ("ETag", tag),
            "weak etag": ("ETag", f"W/{tag}"),
            "date": ("Last-Modified", formatdate(status.st_mtime, usegmt=True)),
        }
        return dict(told[name] for name in self.validators)


@contextmanager
def serve(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder until the ``with`` statement ends."""
    state = RangeServer(folder)

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: RangeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server_state.head_faults:
            self._send(int(self.server_state.head_faults.pop(0)), {}, b"", with_body=False)
        else:
            self._answer(with_body=False)

    def do_GET(self) -> None:
        self.server_state.gets.append((self.path, self.headers.get("Range", "")))
        faults = self.server_state.faults
        fault = faults.pop(0) if faults else ""
        if fault.isdigit():
            self._send(int(fault), {}, b"no")
        elif fault == "drop":
            self.close_connection = True
        elif fault == "stall":
            time.sleep(3)
            self.close_connection = True
        else:
            self._answer(with_body=True, fault=fault)

    def _answer(self, with_body: bool, fault: str = "") -> None:
        state = self.server_state
        path = state.folder / self.path.lstrip("/")
        if not path.is_file():
            self._send(404, {}, b"")
            return
        told = state.headers(path)
        asked = self.headers
        if state.compares and (
            asked.get("If-Match", told.get("ETag")) != told.get("ETag")
            or asked.get("If-Unmodified-Since", told.get("Last-Modified"))
            != told.get("Last-Modified")
        ):
            self._send(412, told, b"")
            return
        content, code = path.read_bytes(), 200
        if state.knows_ranges and "Range" in asked:
            first, last = asked["Range"].removeprefix("bytes=").split("-")
            told["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, code = content[int(first) : int(last) + 1], 206
        self._send(code, told, content, with_body, fault)

    def _send(
        self,
        code: int,
        headers: dict[str, str],
        content: bytes,
        with_body: bool = True,
        fault: str = "",
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not with_body:
            return
        half = len(content) // 2
        self.wfile.write(content[:half])
        if fault == "cut":
            self.close_connection = True
            return
        if fault == "slow":
            self.wfile.flush()
            time.sleep(0.1)
        self.wfile.write(content[half:])
