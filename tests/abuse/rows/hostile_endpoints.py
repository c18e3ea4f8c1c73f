"""Endpoints that attack the proxy over HTTP/2: an endpoint may be somebody else's, or broken."""

import contextlib
import socket
import struct
import threading
import time

from lab import http2
from lab.around import at_rest, cpu_share, healthy
from lab.endpoint import OK, Endpoint, H2Endpoint, read_request
from lab.http2 import CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame
from lab.kinds import ask_once
from lab.processes import Proxy, pool
from lab.row import row

LITERAL = b"\0\x01x"
# 200, and a field of 16,000 bytes, as HPACK literals.
STATUS = b"\x88"
LARGE = LITERAL + b"\x7f" + bytes([(16_000 - 127) & 127 | 128, (16_000 - 127) >> 7]) + b"a" * 16_000

# What is sent again and again from the first request on; `n` is the number of its stream.
FLOODS = {
    "PING": lambda n: frame(PING, payload=bytes(8)) * 500,
    "SETTINGS": lambda n: frame(SETTINGS, payload=struct.pack(">HI", 4, 65535)) * 500,
    "WINDOW_UPDATE": lambda n: frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)) * 500,
    "unknown kinds": lambda n: frame(0xEE, payload=bytes(64)) * 500,
    "1xx": lambda n: frame(HEADERS, END_HEADERS, n, b"\x08\x03103") * 100,
    "empty DATA": lambda n: frame(DATA, 0, n) * 500,
    "CONTINUATION": lambda n: frame(CONTINUATION, 0, n, LITERAL + b"\x01a") * 500,
    "large head": lambda n: frame(CONTINUATION, 0, n, LARGE) * 4,
    "more than its window": lambda n: frame(DATA, 0, n, bytes(16_000)) * 20,
}
# What comes first, where the flood needs it.
FIRST = {
    "empty DATA": lambda n: frame(HEADERS, END_HEADERS, n, STATUS),
    "CONTINUATION": lambda n: frame(HEADERS, 0, n, STATUS),
    "large head": lambda n: frame(HEADERS, 0, n, STATUS),
    "more than its window": lambda n: frame(HEADERS, END_HEADERS, n, STATUS),
}
# What is said once to each request.
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
                        self._attack(s, number)

    def _attack(self, s, number):
        self.requests += 1
        s.sendall(self.first(number))
        while self.more and not self.stopping.is_set():
            s.sendall(self.more(number))


def in_front(t, hostile, kind):
    """A proxy with a route to the hostile endpoint, and another one to a good one."""
    good = H2Endpoint(t) if kind == "grpc" else Endpoint(t)
    more = 'protocol = "h2"\nretry = { attempts = 1 }'
    models = 'models = ["synthetic"]\ndeadline = "3s"'
    text = pool([hostile], more, models, name="hostile") + pool([good], name="good")
    return Proxy(t, text, ready=2)


KINDS = {"held": "h2", "streamed path": "h2 stream", "gRPC": "grpc"}
FORMS = {f"{name}, {word}": (name, kind) for name in FLOODS | LIES for word, kind in KINDS.items()
         # One of each kind is forwarded in the way that HTTP/2 requests are; the others where it may matter.
         if word == "held" or name in ("PING", "large head", "more than its window", "RST_STREAM", "GOAWAY", "no HTTP/2")}


@row(25, "an endpoint attacks over HTTP/2", FORMS, word="endpoint", limit=40)
def hostile(t, form):
    """An endpoint floods its connection, or answers what HTTP/2 forbids -> the request ends within its deadline of
    3 s, with a refusal or an answer; memory stays within 16 MiB, no more than half a core is spent on it afterwards,
    other pools are served meanwhile, and the proxy goes on."""
    name, kind = form
    nothing = lambda n: b""  # noqa: E731
    endpoint = Hostile(t, LIES.get(name) or FIRST.get(name, nothing), FLOODS.get(name))
    proxy = in_front(t, endpoint, kind)
    elsewhere = "/v2/models/other/infer"
    if kind != "grpc":
        healthy(t, proxy, "before", elsewhere)
    proxy.forget_peak()
    rss, found = proxy.rss(), []

    def ask():
        began = time.monotonic()
        try:
            path = "/v2/models/synthetic/generate" if kind == "h2 stream" else None
            answer = ask_once(proxy.address, kind, seconds=10, path=path)
            found.append((answer[0], answer[1], time.monotonic() - began))
        except (OSError, ValueError) as error:
            found.append((0, f"{type(error).__name__}: {error}", time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    if kind != "grpc":
        healthy(t, proxy, "meanwhile", elsewhere)
    for thread in threads:
        thread.join()
    grown = proxy.peak() - rss
    slowest = max(seconds for _, _, seconds in found)
    share = cpu_share(proxy, 1)
    t.figure(f"{sorted({(s, r) for s, r, _ in found})} within {slowest:.1f} s, memory {grown / 2**20:+.1f} MiB, "
             f"then {share:.0%} of a core, {endpoint.requests} requests there")
    t.check(endpoint.requests > 0, "the endpoint was not asked")
    t.check(slowest <= 4.5, f"a request took {slowest:.1f} s")
    t.check(all(status != 0 and status != -1 for status, _, _ in found), "requests without an answer")
    t.check(grown <= 16 << 20, f"memory grew by {grown / 2**20:.1f} MiB")
    t.check(share <= 0.5, f"{share:.0%} of a core")
    t.check(proxy.alive() and proxy.metric("forebay_panics_total") == 0, "the proxy panicked or ended")
    if kind != "grpc":
        healthy(t, proxy, "after", elsewhere)
    at_rest(t, proxy)
