"""A loopback HTTP proxy in front of a real S3 server, which lets requests go wrong on a seeded schedule."""

import random
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

_ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "unavailable": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "too_many": (429, "TooManyRequests", "Too many requests."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "expired_403": (403, "ExpiredToken", "The provided token has expired."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}
_BODY_FAULTS = ("reset_mid_body", "truncated", "short_length")

FAULTS = (*_ERRORS, *_BODY_FAULTS, "reset", "lost_answer", "latency", "stale_list")
"""What can go wrong with a request. Beside the errors of S3 by name:

reset: the connection is reset before the request reaches the server. lost_answer: the server did what it was asked,
and the connection is reset instead of its answer. reset_mid_body, truncated: half of the body, then a reset, or an
orderly close, short of the Content-Length told. short_length: half of the body under a Content-Length that agrees
with it. latency: `latency_s` more. stale_list: a LIST answer recorded earlier, if there is one.
"""


class Request(NamedTuple):
    """A request that came in; `path` with its query, `fault` what went wrong with it ("" for nothing)."""

    method: str
    path: str
    range: str
    fault: str


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultyS3:
    """Proxy to the S3 server at `upstream`; `with FaultyS3(endpoint, seed) as proxy: proxy.faults = {"reset": 0.1}`.

    Whether a request goes wrong depends on the seed, the request without its bucket, and how often the same came
    before; not on the order in which different ones come in.

    Args:
        burst: how many requests in a row a `slow_down` is for, whatever they ask. latency_s: of a `latency` fault.
        expiry_s: for how long everybody's credentials stay expired once an `expired` fault has hit.
    """

    def __init__(self, upstream: str, seed: int = 0, burst: int = 1, latency_s: float = 0.2, expiry_s: float = 0.0):
        self.upstream, self.seed = upstream, seed
        self.burst, self.latency_s, self.expiry_s = burst, latency_s, expiry_s
        self.requests: list[Request] = []
        self.revoked: set[str] = set()
        """Access keys that are expired for good: what is signed with them is answered ExpiredToken."""
        self.busiest = 0
        """The largest number of requests that were under way at once."""
        self._lock = threading.Lock()
        self._busy = self._burst_left = 0
        self._expired = ("", 0.0)  # which of the faults, until when
        self._nth: dict[tuple[str, str, str], int] = {}
        self._lists: dict[str, _Answer] = {}
        self.inject({})
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "FaultyS3":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def faults(self) -> dict[str, float]:
        """Probability of each fault, for requests that come from now on."""
        return self._faults

    @faults.setter
    def faults(self, faults: dict[str, float]) -> None:
        self.inject(faults)

    def inject(self, faults: dict[str, float], matching: str = "", times: int | None = None) -> None:
        """Set the probability of each fault, for requests whose `METHOD /path?query` the pattern is found in, and at
        most so many times in all."""
        if unknown := set(faults) - set(FAULTS):
            raise ValueError(f"unknown faults {unknown}")
        with self._lock:
            self._faults, self._matching, self._times = dict(faults), re.compile(matching), times
            self._burst_left, self._expired = 0, ("", 0.0)

    def count(self, matching: str = "", fault: str | None = None) -> int:
        """How many requests came in so far whose `METHOD /path?query` the pattern is found in."""
        found = [request for request in self.requests if re.search(matching, f"{request.method} {request.path}")]
        return len(found if fault is None else [request for request in found if request.fault == fault])

    def _decide(self, method: str, path: str, range_: str, key: str) -> str:
        """The fault of this request, noted down."""
        with self._lock:
            nth = self._nth[method, path, range_] = self._nth.get((method, path, range_), 0) + 1
            in_bucket = re.sub(r"^/[^/?]+", "", path)  # buckets have random names
            rng = random.Random(f"{self.seed} {method} {in_bucket} {range_} {nth}")
            fault = self._draw(rng, f"{method} {path}", path)
            if key in self.revoked:
                fault = "expired"
            self.requests.append(Request(method, path, range_, fault))
            return fault

    def _draw(self, rng: random.Random, request: str, path: str) -> str:
        if not self._matching.search(request):
            return ""
        if self._burst_left:
            self._burst_left -= 1
            return "slow_down"
        if time.monotonic() < self._expired[1]:
            return self._expired[0]
        for fault, probability in self._faults.items():
            if rng.random() >= probability or self._times == 0:
                continue
            if fault in _BODY_FAULTS and (not request.startswith("GET") or is_list(request)):
                continue
            if fault == "stale_list" and path not in self._lists:
                continue
            if self._times:
                self._times -= 1
            if fault == "slow_down":
                self._burst_left = self.burst - 1
            if fault.startswith("expired"):
                self._expired = (fault, time.monotonic() + self.expiry_s)
            return fault
        return ""

    def _moved(self, by: int) -> None:
        with self._lock:
            self._busy += by
            self.busiest = max(self.busiest, self._busy)


def is_list(request: str) -> bool:
    """Whether `METHOD /path?query` lists keys."""
    return request.startswith("GET") and bool(re.search(r"[?&](list-type|prefix|delimiter)=", request))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # no FIN before the reset that a fault has asked for

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up is part of the game


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[FaultyS3]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _upstream: HTTPConnection | None = None

    def _serve(self) -> None:
        self.proxy._moved(+1)
        try:
            self._answer()
        finally:
            self.proxy._moved(-1)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self) -> None:
        body = self._request_body()
        signed_with = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        fault = self.proxy._decide(
            self.command, self.path, self.headers.get("Range", ""), signed_with[1] if signed_with else ""
        )
        if fault in _ERRORS:
            self._send(_error(fault))
        elif fault == "reset":
            self._reset()
        elif fault == "stale_list":
            self._send(self.proxy._lists[self.path])
        else:
            if fault == "latency":
                time.sleep(self.proxy.latency_s)
            answer = self._ask(body)
            if is_list(f"{self.command} {self.path}") and answer.status == 200:
                self.proxy._lists.setdefault(self.path, answer)
            if fault == "lost_answer":
                self._reset()
            else:
                self._send(answer, fault if answer.status < 300 and len(answer.body) > 1 else "")

    def _request_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = b""  # forwarded chunked as it came
        while True:
            head = self.rfile.readline()
            raw += head + self.rfile.read(int(head.split(b";")[0], 16) + 2)
            if head.strip() == b"0":
                return raw

    def _ask(self, body: bytes) -> _Answer:
        """What the server answers; the Host header is the client's, which its signature covers."""
        for fresh in (False, True):  # the server may have closed an idle connection meanwhile
            if fresh or self._upstream is None:
                self._upstream = HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
            try:
                self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        self._upstream.putheader(name, value)
                self._upstream.endheaders(body or None)
                response: HTTPResponse = self._upstream.getresponse()
                headers = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "keep-alive")
                    and (name.lower() != "content-length" or self.command == "HEAD")
                ]
                return _Answer(response.status, headers, response.read())
            except (OSError, HTTPException):
                self._upstream.close()
                if fresh:
                    raise
        raise AssertionError

    def _send(self, answer: _Answer, fault: str = "") -> None:
        whole = answer.body
        sent = whole[: len(whole) // 2] if fault in _BODY_FAULTS else whole
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(sent if fault == "short_length" else whole)))
        self.end_headers()
        with suppress(OSError):
            if self.command != "HEAD":
                self.wfile.write(sent)
            if fault == "reset_mid_body":
                self.wfile.flush()
                time.sleep(0.05)  # a reset overtakes what the client has not read yet
                self._reset()
            elif fault == "truncated":
                self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self._upstream:
            self._upstream.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _error(fault: str) -> _Answer:
    status, code, message = _ERRORS[fault]
    xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return _Answer(status, [("Content-Type", "application/xml")], xml.encode())
