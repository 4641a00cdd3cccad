"""A server of archives on 127.0.0.1 that knows Range and If-Range, and misbehaves when told to."""

import gzip
import random
import re
import threading
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

ARCHIVE, OTHER = (gzip.compress(random.Random(seed).randbytes(300_000), mtime=0) for seed in (0, 1))


class Asked(NamedTuple):
    path: str
    range: str | None
    if_range: str | None
    status: int


class ArchiveServer(ThreadingHTTPServer):
    """`files` by URL path; `faults` are used up one a request; `asked` is what came in.

    Faults: ("status", code) answers so; ("drop", n) closes the connection after n bytes of the body; ("stall", n) waits
    there until `gate` is set, having set `stalled`; ("headers", {...}) overrides headers, None leaves one out.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {"ETag": '"one"'}
        self.ranges = True
        self.faults: deque[tuple] = deque()
        self.asked: list[Asked] = []
        self.stalled, self.gate = threading.Event(), threading.Event()

    @classmethod
    @contextmanager
    def running(cls):
        """A server in a thread of its own, with `toy.tgz`."""
        with cls() as server:
            server.files["/toy.tgz"] = ARCHIVE
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield server
            server.gate.set()
            server.shutdown()
            thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        kind, value = self.server.faults.popleft() if self.server.faults else (None, None)
        body = self.server.files.get(self.path)
        wanted, if_range = self.headers["Range"], self.headers["If-Range"]
        headers = dict(self.server.headers)
        status = value if kind == "status" else 200 if body is not None else 404
        if status != 200:
            body = b"<html>no</html>"
        elif wanted and self.server.ranges and if_range in (None, *headers.values()):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            status = 206 if start < len(body) else 416
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}" if status == 206 else "bytes */0"
            body = body[start:]
        headers["Content-Length"] = str(len(body))
        headers |= value if kind == "headers" else {}
        self.server.asked.append(Asked(self.path, wanted, if_range, status))
        self.send_response(status)
        for header, content in headers.items():
            if content is not None:
                self.send_header(header, content)
        self.end_headers()
        if kind == "stall":
            self.wfile.write(body[:value])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.gate.wait(60)
            body = body[value:]
        self.wfile.write(body[:value] if kind == "drop" else body)

    def log_message(self, *args):
        pass
