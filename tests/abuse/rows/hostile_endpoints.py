"""Endpoints that attack the proxy over HTTP/2: an endpoint may be somebody else's, or broken."""

import contextlib
import socket
import struct
import threading
import time

from lab import http2
from lab.around import at_rest, healthy
from lab.endpoint import OK, Endpoint, H2Endpoint, read_request
from lab.http2 import (
    CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
)
from lab.kinds import ask_once
from lab.load import BODY
from lab.processes import INFER, Proxy, pool
from lab.row import eventually, row

LITERAL = b"\0\x01x"
# 200, and a field of 16,000 bytes, as HPACK literals.
STATUS = b"\x88"
LARGE = LITERAL + b"\x7f" + bytes([(16_000 - 127) & 127 | 128, (16_000 - 127) >> 7]) + b"a" * 16_000

ANSWER = lambda n: frame(HEADERS, END_HEADERS, n, STATUS) + frame(DATA, 1, n, b"{}")  # noqa: E731


class Flood:
    """Bytes that are sent again and again from the first request on; `n` is the number of its stream. `first` comes before
    it, and is a whole answer if it `answers`. `kind` is how it is counted, unless the HTTP/2 library ends the
    connection by itself."""

    def __init__(self, more, first=lambda n: b"", answers=False, kind=None):
        self.more, self.first, self.kind, self.answers = more, first, kind, answers


HEAD = lambda n: frame(HEADERS, END_HEADERS, n, STATUS)  # noqa: E731
FLOODS = {
    "PING": Flood(lambda n: frame(PING, payload=bytes(8)) * 500, kind="ping"),
    "PING answers": Flood(lambda n: frame(PING, 1, 0, bytes(8)) * 500, kind="ping"),
    "SETTINGS": Flood(lambda n: frame(SETTINGS, payload=struct.pack(">HI", 4, 65535)) * 500, kind="settings"),
    "WINDOW_UPDATE": Flood(lambda n: frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)) * 500, kind="window_update"),
    "PRIORITY": Flood(lambda n: frame(PRIORITY, 0, n, bytes(5)) * 500, kind="priority"),
    "unknown kinds": Flood(lambda n: frame(0xEE, payload=bytes(64)) * 500, kind="other"),
    "GOAWAY again": Flood(lambda n: frame(GOAWAY, payload=struct.pack(">II", 0x7FFFFFFF, 0)) * 500, kind="other"),
    "RST_STREAM on no stream": Flood(lambda n: frame(RST_STREAM, 0, n + 1000, struct.pack(">I", 8)) * 500),
    "1xx": Flood(lambda n: frame(HEADERS, END_HEADERS, n, b"\x08\x03103") * 100, kind="headers"),
    "empty DATA": Flood(lambda n: frame(DATA, 0, n) * 500, HEAD),
    "padding": Flood(lambda n: frame(DATA, 8, n, b"\xff" + bytes(255)) * 100, HEAD),
    "CONTINUATION": Flood(lambda n: frame(CONTINUATION, 0, n, LITERAL + b"\x01a") * 500,
                          lambda n: frame(HEADERS, 0, n, STATUS)),
    "large head": Flood(lambda n: frame(CONTINUATION, 0, n, LARGE) * 4, lambda n: frame(HEADERS, 0, n, STATUS),
                        kind="headers"),
    "more than its window": Flood(lambda n: frame(DATA, 0, n, bytes(16_000)) * 20, HEAD, kind="flow_control"),
    "trailers again": Flood(lambda n: frame(HEADERS, END_HEADERS | 1, n, b"\0\x01a\x01b") * 500, ANSWER, answers=True),
    "DATA after the end": Flood(lambda n: frame(DATA, 0, n, bytes(100)) * 500, ANSWER, answers=True),
    "PING after an answer": Flood(lambda n: frame(PING, payload=bytes(8)) * 500, ANSWER, answers=True, kind="ping"),
    "unknown kinds after an answer": Flood(lambda n: frame(0xEE, payload=bytes(64)) * 500, ANSWER, answers=True,
                                           kind="other"),
}
# Bytes that each request gets once.
LIES = {
    "RST_STREAM": lambda n: frame(RST_STREAM, 0, n, struct.pack(">I", 2)),
    "REFUSED_STREAM": lambda n: frame(RST_STREAM, 0, n, struct.pack(">I", 7)),
    "GOAWAY": lambda n: frame(GOAWAY, payload=struct.pack(">II", 0, 0)),
    "GOAWAY with an error": lambda n: frame(GOAWAY, payload=struct.pack(">II", n, 2)),
    "HEADERS on no stream": lambda n: frame(HEADERS, END_HEADERS, 0, STATUS),
    "DATA before HEADERS": lambda n: frame(DATA, 1, n, b"{}"),
    "a push": lambda n: frame(5, END_HEADERS, n, struct.pack(">I", 2) + STATUS),
    "a window of 2^31": lambda n: frame(WINDOW_UPDATE, 0, n, struct.pack(">I", 0x7FFFFFFF)) * 2,
    "a status that is none": lambda n: frame(HEADERS, END_HEADERS | 1, n, b"\x08\x03abc"),
    "no status": lambda n: frame(HEADERS, END_HEADERS | 1, n, LITERAL + b"\x01a"),
    "no HTTP/2": lambda n: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
}


class Hostile:
    """An HTTP/2 endpoint that answers probes (HTTP/1), and to each request sends `first(n)`, and then `more(n)` for
    as long as it is read."""

    def __init__(self, t, first, more):
        self.first, self.more, self.requests = first, more, 0
        # Of each connection that was flooded: the code of the GOAWAY, if one came.
        self.ended = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.stopping = threading.Event()
        t.stack.callback(self.listener.close)
        t.stack.callback(self.stopping.set)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                s, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(s,), daemon=True).start()

    def _serve(self, s):
        with s, contextlib.suppress(OSError, ValueError):
            if not s.recv(65536, socket.MSG_PEEK).startswith(b"PRI"):
                while read_request(s, b"")[0]:
                    s.sendall(OK)
                return
            s.sendall(http2.settings() + frame(SETTINGS, 1))
            data = b""
            while more := s.recv(65536):
                data += more
                data = data.removeprefix(http2.PREFACE)
                while len(data) >= 9 and len(data) >= 9 + (length := int.from_bytes(data[:3], "big")):
                    kind, number = data[3], int.from_bytes(data[5:9], "big")
                    data = data[9 + length:]
                    if kind == HEADERS:
                        self._attack(s, number, data)

    def _attack(self, s, number, ahead):
        self.requests += 1
        s.sendall(self.first(number))
        try:
            while self.more and not self.stopping.is_set():
                s.sendall(self.more(number))
        except OSError:
            self.ended.append(goaway_in(s, ahead))
            raise


def goaway_in(s, data):
    """The code of the GOAWAY among the frames that the proxy sent; `None` without one."""
    with contextlib.suppress(OSError):
        while more := s.recv(65536):
            data += more
    while len(data) >= 9:
        end = 9 + int.from_bytes(data[:3], "big")
        if data[3] == GOAWAY and len(data) >= end:
            return struct.unpack(">I", data[13:17])[0]
        data = data[end:]
    return None


def in_front(t, hostile, kind):
    """A proxy with a route to the hostile endpoint, and another one to a good one."""
    good = H2Endpoint(t) if kind.startswith("grpc") else Endpoint(t)
    more = 'protocol = "h2"\nretry = { attempts = 1 }'
    # Streams of gRPC name no model in their path.
    models = "" if kind == "grpc stream" else 'models = ["synthetic"]\ndeadline = "3s"'
    text = pool([hostile], more, models, name="hostile") + pool([good], name="good")
    return Proxy(t, text, ready=2)


KINDS = {"held": "h2", "streamed path": "h2 stream", "gRPC": "grpc", "gRPC stream": "grpc stream"}
GRPC_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# The floods that are tried in every way in which requests are forwarded over HTTP/2.
EVERYWHERE = {"PING", "1xx", "large head", "more than its window", "DATA after the end"}
FLOOD_FORMS = {f"{name}, {word}": (name, kind) for name in FLOODS for word, kind in KINDS.items()
               if word == "held" or name in EVERYWHERE and not (FLOODS[name].answers and kind.startswith("grpc"))}
LIE_FORMS = {f"{name}, {word}": (name, kind) for name in LIES for word, kind in KINDS.items()
             # The others where it may matter.
             if word == "held" or (word != "gRPC stream" and name in ("RST_STREAM", "GOAWAY", "no HTTP/2"))}


def ask(address, kind):
    """`(status, reason, seconds)` of one request; status 0 if it got no answer."""
    began = time.monotonic()
    try:
        if kind == "grpc stream":
            found = http2.request(address, "POST", GRPC_STREAM, http2.GRPC, http2.infer_message())
            status, reason = -1 if found.grpc_status is None else found.grpc_status, found.reason
        elif kind == "grpc":
            status, reason, _ = ask_once(address, kind)
        else:
            path = INFER if kind == "h2" else "/v2/models/synthetic/generate"
            found = http2.request(address, "POST", path, {"content-length": str(len(BODY))}, BODY)
            # A long answer may have begun.
            status, reason = found.status or 0, found.reason if found.ended else "cut"
        return status, reason, time.monotonic() - began
    except (OSError, ValueError) as error:
        return 0, f"{type(error).__name__}: {error}", time.monotonic() - began


def attacked(t, endpoint, kind, at_once=True):
    """Four requests at the hostile endpoint, while others are served: the proxy, and how they ended."""
    proxy = in_front(t, endpoint, kind)
    elsewhere = "/v2/models/other/infer"
    is_grpc = kind.startswith("grpc")
    if not is_grpc:
        healthy(t, proxy, "before", elsewhere)
    proxy.forget_peak()
    rss, found = proxy.rss(), []
    threads = [threading.Thread(target=lambda: found.append(ask(proxy.address, kind))) for _ in range(4)]
    for thread in threads:
        thread.start()
        if not at_once:
            thread.join()
            # Another request on the same connection would end with it.
            eventually(lambda: len(endpoint.ended) == endpoint.requests, 5)
            # The endpoint may learn of the end before the proxy has put the connection away.
            time.sleep(0.1)
    time.sleep(0.5)
    if not is_grpc:
        healthy(t, proxy, "meanwhile", elsewhere)
    for thread in threads:
        thread.join()
    grown = proxy.peak() - rss
    slowest = max(seconds for _, _, seconds in found)
    t.figure(f"{sorted({(s, r) for s, r, _ in found})} within {slowest:.1f} s, memory {grown / 2**20:+.1f} MiB, "
             f"{endpoint.requests} requests there")
    t.check(endpoint.requests > 0, "the endpoint was not asked")
    t.check(slowest <= 4.5, f"a request took {slowest:.1f} s")
    t.check(all(status not in (0, -1) for status, _, _ in found), "requests without an answer")
    t.check(grown <= 16 << 20, f"memory grew by {grown / 2**20:.1f} MiB")
    t.check(proxy.alive() and proxy.metric("forebay_panics_total") == 0, "the proxy panicked or ended")
    if not is_grpc:
        healthy(t, proxy, "after", elsewhere)
    at_rest(t, proxy)
    return proxy, found


@row(25, "an endpoint lies over HTTP/2", LIE_FORMS, word="endpoint", limit=40)
def lies(t, form):
    """An endpoint answers what HTTP/2 forbids -> the request ends within its deadline of 3 s, with a refusal or an
    answer; memory stays within 16 MiB, other pools are served meanwhile, and the proxy goes on."""
    name, kind = form
    attacked(t, Hostile(t, LIES[name], None), kind)


@row(25, "an endpoint floods over HTTP/2", FLOOD_FORMS, word="endpoint", limit=40)
def floods(t, form):
    """An endpoint floods its connection -> the proxy closes it with GOAWAY, so that nothing is read of the flood any
    more; its requests end as failures of the endpoint (those that were answered before the flood keep their answer),
    a counter and the endpoint's state say so, memory stays within 16 MiB, and other pools are served meanwhile."""
    name, kind = form
    flood = FLOODS[name]
    endpoint = Hostile(t, flood.first, flood.more)
    proxy, found = attacked(t, endpoint, kind, at_once=not flood.answers)
    # However fast this machine is: what is closed costs nothing.
    closed = eventually(lambda: len(endpoint.ended) == endpoint.requests and endpoint.ended, 5)
    t.check(closed, f"{len(endpoint.ended)} of {endpoint.requests} floods were ended")
    t.figure(f"closed with {sorted(set(endpoint.ended), key=str)}")
    if flood.answers and flood.kind:
        t.check(all(status == 200 for status, _, _ in found), "an answer was lost")
    elif flood.answers:
        # The HTTP/2 library gives up what it has not handed over yet.
        t.check(all(status in (200, 502) for status, _, _ in found), "another answer")
    else:
        t.check(all(reason in ("endpoint_reset", "cut") for _, reason, _ in found), "another reason")
    if flood.kind:
        code = 3 if flood.kind == "flow_control" else 11
        t.check(set(endpoint.ended) == {code}, f"expected GOAWAY with code {code}")
        labels = 'pool="hostile"', f'kind="{flood.kind}"'
        t.equal(proxy.metric("forebay_endpoint_http2_floods_total", *labels), endpoint.requests, "floods counted")
        t.equal(proxy.endpoints()[endpoint.address]["http2_floods"], endpoint.requests, "floods in the status")
        t.check("exhausted its budget of frames" in proxy.messages(), "no line in the log")
