"""Clients that do not send, do not read, or leave."""

import collections
import contextlib
import resource
import socket
import ssl
import struct
import threading
import time

from lab import http1, http2
from lab.around import REQUESTS, around, at_rest, healthy
from lab.endpoint import Endpoint, H2Endpoint, reply, sleeping
from lab.http2 import DATA, END_HEADERS, GRPC, GRPC_INFER, GRPC_LIVE, GRPC_STREAM, HEADERS, SETTINGS, Raw, block, frame, settings
from lab.load import BODY, median_ms, quantile
from lab.processes import INFER, ROOT, Proxy, Worker, pool, synthetic
from lab.row import eventually, row

HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n".encode()
KEPT = HEAD + b"content-length: 2\r\n\r\n{}"
STATED = HEAD + b"content-length: 1000\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
# A client's half of a TLS handshake: the first bytes of a record that never ends.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def h2_head(extra=(), path=INFER):
    return frame(HEADERS, END_HEADERS, 1, block("POST", path, extra))


H2 = http2.PREFACE + settings() + frame(SETTINGS, 1)
# name -> (where, first bytes, bytes a second, seconds allowed, reason)
SLOW = {
    "silent": ("proxy", b"", b"", 10, None),
    "header": ("proxy", b"POST /", b"x", 10, "request_timeout"),
    "header, kept connection": ("proxy", KEPT + b"POST /", b"x", 10, "request_timeout"),
    "body": ("proxy", STATED, b"x", 5, "request_timeout"),
    "body, streamed path": ("proxy", STATED.replace(INFER.encode(), b"/v1/completions"), b"x", 5, "request_timeout"),
    "chunks": ("proxy", CHUNKED, b"1\r\nx\r\n", 5, "request_timeout"),
    "within a chunk": ("proxy", CHUNKED + b"ff\r\n", b"x", 5, "request_timeout"),
    "h2 preface, half": ("proxy", http2.PREFACE[:10], b"", 10, None),
    "h2 preface": ("proxy", http2.PREFACE, b"", 10, None),
    "h2 preface and SETTINGS": ("proxy", H2, b"", 10, None),
    "h2 head without its end": ("proxy", H2 + frame(HEADERS, 0, 1, block("POST", INFER)), b"", 10, None),
    "h2 body": ("proxy", H2 + h2_head(), frame(DATA, 0, 1, b"x"), 5, "request_timeout"),
    "h2 body, streamed path": ("proxy", H2 + h2_head(path="/v1/x"), frame(DATA, 0, 1, b"x"), 5, "request_timeout"),
    "gRPC body": ("proxy", H2 + h2_head(GRPC.items(), GRPC_INFER), frame(DATA, 0, 1, b"\0"), 5, "request_timeout"),
    "TLS hello": ("tls", HELLO, b"", 10, None),
    "admin, silent": ("admin", b"", b"", 10, None),
    "admin, header": ("admin", b"GET /", b"x", 10, None),
    "admin, body": ("admin", b"POST /reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n", b"x", 10, None),
    "worker, silent": ("worker", b"", b"", 10, None),
    "worker, header": ("worker", b"POST /", b"x", 10, None),
    "worker, body": ("worker", STATED, b"x", 5, None),
    "worker, h2 preface": ("worker", http2.PREFACE, b"", 10, None),
    "worker, h2 body": ("worker", H2 + h2_head(), frame(DATA, 0, 1, b"x"), 5, None),
}


@row(19, "slow sender", {name: name for name in SLOW}, idle=True, limit=80)
def slow_sender(t, form):
    """Silent connections, 1 byte a second of a head or a body, a bare HTTP/2 preface -> 408 or close within
    10 s in all (bodies here: body_timeout = 5 s), whoever listens."""
    where, first, drip, allowed, reason = SLOW[form[0]]
    if where == "worker":
        process = Worker(t, "--body-timeout", "5s")
        address = process.address
    else:
        tls = ""
        if where == "tls":
            tls = f'[listener.tls]\ncertificate = "{ROOT}/conf/tls/example.pem"\nkey = "{ROOT}/conf/tls/example.key"'
        process = Proxy(t, pool([Endpoint(t)]), listener=tls, limits='body_timeout = "5s"', ready=1)
        address = process.admin if where == "admin" else process.address
    counted = reason and process.metric(REQUESTS, f'reason="{reason}"')
    said, took = bytearray(), None
    began = time.monotonic()
    with http1.connect(address, 5) as s:
        s.sendall(first)
        while time.monotonic() - began < allowed + 25:
            data, closed = http1.drain(s, 1 if drip else 5)
            said += data
            if closed or b" 408 " in data or http2_over(data):
                took = time.monotonic() - began
                break
            try:
                s.sendall(drip)
            except OSError:
                took = time.monotonic() - began
                break
    if t.check(took is not None, f"still open after {allowed + 25} s, answered {bytes(said[:60])!r}"):
        t.figure(f"ended after {took:.1f} s")
        t.check(took <= allowed + 3, f"ended only after {took:.1f} s")
    if where != "proxy":
        path = "/livez" if where == "admin" else "/v2/health/live"
        if where != "tls":
            t.equal(http1.get(address, path).status, 200, "the probe after")
        return
    if reason:
        rise = lambda: process.metric(REQUESTS, f'reason="{reason}"') - counted  # noqa: E731
        eventually(lambda: rise() == 1, 3)
        t.equal(rise(), 1, f"{REQUESTS}{{reason={reason}}} rose by")
        eventually(lambda: any(line["reason"] == reason for line in process.lines()), 3)
        t.equal(sum(line["reason"] == reason for line in process.lines()), 1, "lines in the access log")
    if reason and not first.startswith(b"PRI"):
        t.check(b" 408 " in said, f"answered {bytes(said[-300:])!r}")
    healthy(t, process, "after")
    at_rest(t, process)


def http2_over(data):
    """Whether these bytes of HTTP/2 hold a GOAWAY, a reset, or a refusal."""
    rest = data
    while len(rest) >= 9 and not rest.startswith(b"HTTP"):
        length, kind = int.from_bytes(rest[:3], "big"), rest[3]
        if kind in (http2.GOAWAY, http2.RST_STREAM, http2.HEADERS):
            return True
        rest = rest[9 + length:]
    return False


@row(19, "10,000 held connections", word="10,000 held", quick=False, alone=True, limit=180)
def held(t):
    """10,000 silent or dripping connections from many addresses -> honest requests' p99 <= 2 x that of a proxy that
    holds none. Both are asked in turn, request by request, so that whatever else the machine does slows both."""
    fleet = pool([synthetic(t, 16, "constant:1ms")])
    limits = 'header_timeout = "120s"'
    proxy, twin = (Proxy(t, fleet, limits=limits, ready=1) for _ in range(2))
    with http1.Connection(proxy.address) as honest, http1.Connection(twin.address) as other:
        def measure(count=600):
            ask = lambda of: of.request("POST", INFER, {}, BODY).seconds  # noqa: E731
            return zip(*((ask(other), ask(honest)) for _ in range(count)))
        measure(100)
        rss = proxy.rss()
        sockets = []
        for i in range(10_000):
            s = from_address(proxy.address, f"127.0.{1 + i // 250}.{1 + i % 250}")
            s.send(b"POST /" if i % 2 else http2.PREFACE[:8])
            sockets.append(s)
        quiet, loaded = measure()
        grown = proxy.rss() - rss
        for s in sockets:
            s.close()
    t.figure(f"p99 {quantile(quiet, 0.99):.1f} -> {quantile(loaded, 0.99):.1f} ms, {grown / 10_000 / 1024:.1f} KiB each")
    t.check(quantile(loaded, 0.99) <= 2 * quantile(quiet, 0.99) + 2, "honest requests are slow")
    t.check(quantile(loaded, 0.5) <= 2 * quantile(quiet, 0.5), "the median of honest requests is slow")
    healthy(t, proxy, "after")


def from_address(address, source, timeout=5):
    """A connection from one of the loopback's many addresses."""
    s = socket.socket()
    s.settimeout(timeout)
    s.bind((source, 0))
    s.connect(http1.split(address))
    return s


SLOW_READ = {"HTTP/1, held": ("h1", INFER, 900_000), "HTTP/1, streamed": ("h1", "/v1/x", 20_000_000),
             "HTTP/1, dripping reader": ("drip", "/v1/x", 20_000_000),
             "HTTP/2, window 0": ("h2", "/v1/x", 20_000_000), "HTTP/2, held": ("h2", INFER, 900_000),
             "HTTP/2, dripping window": ("h2drip", "/v1/x", 20_000_000)}


@row(20, "slow read", SLOW_READ, idle=True, limit=90)
def slow_read(t, form):
    """A client that takes nothing of its answer, or a byte a second -> aborted within 15 s, and at most
    256 KiB of memory a connection; the endpoint is let go."""
    kind, path, size = form
    body = bytes(size)
    endpoint = Endpoint(t, lambda request, s, _: s.sendall(reply(body if len(request.body) == 7 else b"{}")) or True)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    healthy(t, proxy, "before")
    # One that is read in full, so that what every first answer brings is there.
    http1.post(proxy.address, path, b"payload", timeout=20)
    rss, count, clients = proxy.rss(), 16, []
    began = time.monotonic()
    for _ in range(count):
        if kind.startswith("h2"):
            s = Raw(proxy.address, first=settings(initial_window_size=0) + frame(SETTINGS, 1)).socket
            s.sendall(frame(HEADERS, END_HEADERS, 1, block("POST", path)) + frame(DATA, 1, 1, b"payload"))
        else:
            s = http1.connect(proxy.address, 5, receive_buffer=4096)
            s.sendall(http1.head("POST", path, {"content-length": 7}) + b"payload")
        clients.append(s)
    time.sleep(2)
    grown = (proxy.rss() - rss) / count
    while time.monotonic() - began < 35 and proxy.status()["in_flight"]:
        for s in clients:
            try:
                if kind == "drip":
                    s.recv(1)
                elif kind == "h2drip":
                    s.sendall(frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)))
            except OSError:
                pass
        time.sleep(1)
    took = time.monotonic() - began
    t.figure(f"aborted after {took:.1f} s, {grown / 1024:.0f} KiB each")
    t.check(took <= 16.5, f"still in flight after {took:.1f} s")
    # A held answer exists once, however many clients read it.
    t.check(grown <= 256 * 1024 + (size if size < 1 << 20 else 0), f"{grown / 1024:.0f} KiB a connection")
    for s in clients:
        s.close()
    healthy(t, proxy, "after")
    at_rest(t, proxy)


@row(20, "slow read", {"whole": 1, "abandoned": 0}, word="Layer 4,", limit=60)
def slow_read_layer4(t, form):
    """16 clients at Layer 4 that take nothing of 20 MB each -> at most 256 KiB of memory a connection, the endpoint is
    held back, other connections are served; a client that reads after all gets the whole, and one that leaves costs
    nothing any more."""
    size = 20_000_000
    endpoint = Endpoint(t, lambda request, s, _: s.sendall(reply(bytes(size) if request.body == b"payload" else b"{}")) or True)
    layer4 = '[[listener]]\naddress = "127.0.0.1:0"\nprotocol = "tcp"\npool = "test"\n'
    proxy = Proxy(t, layer4 + pool([endpoint]), ready=1)
    address = proxy.listeners[1]
    healthy(t, proxy, "before", address=address)
    rss, count, clients = proxy.rss(), 16, []
    for _ in range(count):
        s = http1.connect(address, 20, receive_buffer=4096)
        s.sendall(http1.head("POST", INFER, {"content-length": 7}) + b"payload")
        clients.append(s)
    time.sleep(2)
    grown = (proxy.rss() - rss) / count
    healthy(t, proxy, "meanwhile", address=address)
    t.figure(f"{grown / 1024:.0f} KiB each")
    t.check(grown <= 256 * 1024, f"{grown / 1024:.0f} KiB a connection")
    if form[0]:
        s, came = clients[0], 0
        while came < size and (data := s.recv(1 << 20)):
            came += len(data)
        t.check(came >= size, f"{came} bytes of {size} came")
    for s in clients:
        s.close()
    open_now = lambda: proxy.status()["listeners"][1]["connections"]  # noqa: E731
    t.check(eventually(lambda: open_now() == 0, 10), f"{open_now()} connections still open")
    healthy(t, proxy, "after", address=address)
    at_rest(t, proxy)


SIZES = {"3 KB": 3_000, "100 KB": 100_000, "900 KB": 900_000}
UNREAD = {f"{kind}, {size}": (kind, size) for kind in ("h2 GET", "h2 POST", "h2 streamed POST", "h1 pipelined GET",
          "h1 pipelined POST", "h1 one each") for size in SIZES} | {"gRPC, 3 KB": ("gRPC", "3 KB")}


@row("P4", "slots held by clients that do not read", UNREAD)
def unread(t, form):
    """100 requests of one client with window 0, or of 20 pipelining ones, whose answers are not read -> the
    endpoint's slots are free again as soon as its work is done: honest requests' median <= 100 ms (or 4 x that of a
    proxy that is left alone, asked in turn), none fails."""
    kind, size = form[0], SIZES[form[1]]
    body = bytes(size)

    def answer(request, s, _):
        s.sendall(reply(body if "attack" in request.headers else b"{}"))
        return True

    if kind == "gRPC":
        endpoint = H2Endpoint(t, lambda head, _: (
            [(":status", "200"), ("content-type", "application/grpc")],
            http2.grpc_message(bytes(size if "attack" in head else 0)), [("grpc-status", "0")]))
    else:
        endpoint = Endpoint(t, answer)
    proxy = Proxy(t, pool([endpoint], "slots = 4"), ready=1)
    twin = Proxy(t, pool([H2Endpoint(t) if kind == "gRPC" else Endpoint(t)], "slots = 4"), ready=1)
    ask, left_alone = ((honest_grpc if kind == "gRPC" else honest)(of) for of in (proxy, twin))
    t.equal(ask()[0], 200, "the probe before")
    held = []
    if kind.startswith(("h2", "gRPC")):
        client = http2.Client(proxy.address, first={http2_window: 0}, grants=False)
        method = "GET" if "GET" in kind else "POST"
        path = {"h2 POST": INFER, "h2 streamed POST": "/v1/x", "gRPC": GRPC_INFER}.get(kind, "/v2/models/synthetic")
        message = {"gRPC": http2.infer_message(), "h2 GET": None}.get(kind, BODY)
        more = {"attack": "1", **(GRPC if kind == "gRPC" else {})}
        for _ in range(100):
            client.open(method, path, more, message)
        client.pump(0.2)
        held.append(client)
    else:
        data = http1.head("GET", "/v2/models/synthetic", {"attack": "1"})
        if "GET" not in kind:
            data = http1.head("POST", INFER, {"attack": "1", "content-length": len(BODY)}) + BODY
        for _ in range(20 if "pipelined" in kind else 60):
            s = http1.connect(proxy.address, 5, receive_buffer=2048)
            s.sendall(data * (50 if "pipelined" in kind else 1))
            held.append(s)
    # The endpoint has finished its work for them by then.
    time.sleep(1.5)
    serves_others(t, [(ask(), left_alone()) for _ in range(20)])
    for one in held:
        one.close()
    at_rest(t, proxy, 10)
    t.equal(ask()[0], 200, "the probe after")


http2_window = 4


@row("P4", "slots held for want of memory", {"HTTP/1": "h1", "HTTP/2": "h2"}, word="full memory,")
def full_memory(t, form):
    """24 clients of as many addresses do not read answers of 900 KB, which fill limits.memory (16 MiB), so that the
    rest of them keeps all slots of the endpoint -> each keeps one the less time the more others wait, not for 10 s: an
    honest request behind all of them is answered within 3.5 s; nothing of others fails, and all memory is given
    back."""
    body = bytes(900_000)
    endpoint = Endpoint(t, lambda request, s, _: s.sendall(
        reply(body if "attack" in request.headers else b"{}")) or True)
    proxy = Proxy(t, pool([endpoint], 'slots = 4\nqueue = { size = 500 }'), limits='memory = "16MiB"', ready=1)
    healthy(t, proxy, "before")
    held = []
    for i in range(24):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.bind((f"127.0.8.{i + 1}", 0))
        s.connect(http1.split(proxy.address))
        if form[0] == "h1":
            # The kernel takes the first answers.
            s.sendall((http1.head("POST", INFER, {"attack": "1", "content-length": len(BODY)}) + BODY) * 8)
        else:
            s.sendall(http2.PREFACE + settings(initial_window_size=0) + frame(SETTINGS, 1)
                      + frame(HEADERS, END_HEADERS, 1, block("POST", INFER, {"attack": "1"})) + frame(DATA, 1, 1, BODY))
        held.append(s)
    short = lambda: proxy.metric("forebay_memory_full_total") > 0  # noqa: E731
    t.check(eventually(short, 10), "memory was never short")
    found, began = [], time.monotonic()
    while time.monotonic() - began < 8:
        asked = time.monotonic()
        found.append((http1.post(proxy.address, INFER, BODY, timeout=20).status, time.monotonic() - asked))
        time.sleep(0.1)
    longest = max(seconds for _, seconds in found)
    t.figure(f"{len(found)} answers, the longest after {longest:.1f} s")
    t.equal({status for status, _ in found}, {200}, "others' answers")
    t.check(longest <= 3.5, f"one had to wait for {longest:.1f} s")
    for s in held:
        s.close()
    t.check(eventually(lambda: proxy.metric("forebay_memory_held_bytes") == 0, 10), "memory is not given back")
    at_rest(t, proxy, 10)


def serves_others(t, found):
    """Pairs of `(status, seconds)`: of honest requests at the attacked proxy, and at one that is left alone."""
    bad = [here for here, _ in found if here[0] != 200]
    median, usual = (median_ms([pair[place][1] for pair in found]) for place in (0, 1))
    t.figure(f"honest median {median:.1f} ms, elsewhere {usual:.1f} ms, {len(bad)} of {len(found)} failed")
    t.equal(bad, [], "honest requests that failed")
    t.check(median <= max(100, 4 * usual), f"honest median {median:.0f} ms")


def honest(proxy, path=INFER):
    """Asks once on a new connection: status and seconds."""

    def ask():
        began = time.monotonic()
        try:
            status = http1.post(proxy.address, path, BODY, timeout=5).status
        except (OSError, ValueError):
            status = 0
        return status, time.monotonic() - began

    return ask


def honest_grpc(proxy):
    def ask():
        began = time.monotonic()
        found = http2.infer(proxy.address, 5)
        return 200 if found.grpc_status == 0 else 0, time.monotonic() - began

    return ask


UNSENT = {"chunked, inference": ("chunked", INFER), "chunked, streamed path": ("chunked", "/v1/x"),
          "20 MiB stated": ("stated", INFER), "20 MiB stated, streamed path": ("stated", "/v1/x"),
          "small stated, streamed path": ("small", "/v1/x"), "h2, streamed path": ("h2", "/v1/x"),
          "h2, inference": ("h2", INFER), "gRPC": ("grpc", GRPC_INFER)}


@row("P5", "slots held by clients that do not send", UNSENT)
def unsent(t, form):
    """20 uploads at 1 byte a second -> no slot is taken for them: honest requests' median <= 100 ms (or 4 x that of a
    proxy that is left alone, asked in turn), none fails, for 5 s."""
    kind, path = form
    endpoint = H2Endpoint(t) if kind == "grpc" else Endpoint(t)
    proxy = Proxy(t, pool([endpoint], "slots = 4"), ready=1)
    twin = Proxy(t, pool([H2Endpoint(t) if kind == "grpc" else Endpoint(t)], "slots = 4"), ready=1)
    ask, left_alone = ((honest_grpc if kind == "grpc" else honest)(of) for of in (proxy, twin))
    t.equal(ask()[0], 200, "the probe before")
    top = f"POST {path} HTTP/1.1\r\nhost: x\r\n"
    first, drip = {
        "chunked": (top + "transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "stated": (top + "content-length: 20971520\r\n\r\n", b"x"),
        "small": (top + "content-length: 500\r\n\r\n", b"x"),
        "h2": (H2 + h2_head(path=path), frame(DATA, 0, 1, b"x")),
        "grpc": (H2 + h2_head(GRPC.items(), path), frame(DATA, 0, 1, b"\0")),
    }[kind]
    sockets = [http1.connect(proxy.address, 5) for _ in range(20)]
    for s in sockets:
        s.sendall(first if isinstance(first, bytes) else first.encode())
    found, began = [], time.monotonic()
    while time.monotonic() - began < 5:
        for s in sockets:
            try:
                s.sendall(drip)
            except OSError:
                pass
        for _ in range(4):
            found.append((ask(), left_alone()))
            time.sleep(0.2)
    serves_others(t, found)
    for s in sockets:
        s.close()
    at_rest(t, proxy, 10)
    t.equal(ask()[0], 200, "the probe after")


@row("P6", "memory reserved by what is stated", {"h2": "h2", "HTTP/1": "h1", "gRPC messages": "grpc"})
def stated(t, form):
    """64 bodies that state 16 MiB and send a byte -> what has arrived is counted, not what is stated: gRPC
    and buffered inferences, ServerLive and retries go on."""
    calls = H2Endpoint(t)
    texts = Endpoint(t)
    config = pool([calls], name="grpc", route='paths = ["/inference."]') + pool([texts], name="rest")
    proxy = Proxy(t, config, ready=2)
    healthy(t, proxy, "before")
    held = []
    if form[0] == "h1":
        for _ in range(64):
            s = http1.connect(proxy.address, 5)
            s.sendall(HEAD + b"content-length: 16777216\r\n\r\nx")
            held.append(s)
    else:
        connection = Raw(proxy.address)
        connection.send(frame(SETTINGS, 1))
        for i in range(64):
            extra, path = [("content-length", str(16 << 20))], INFER
            piece = b"x"
            if form[0] == "grpc":
                extra, path = list(GRPC.items()), GRPC_INFER
                piece = b"\0" + struct.pack(">I", 16 << 20)
            connection.send(frame(HEADERS, END_HEADERS, 2 * i + 1, block("POST", path, extra))
                            + frame(DATA, 0, 2 * i + 1, piece))
        held.append(connection)
    time.sleep(0.5)
    for i in range(5):
        found = http2.infer(proxy.address)
        t.equal((found.status, found.grpc_status), (200, 0), "an inference over gRPC")
        found = http2.request(proxy.address, "POST", GRPC_LIVE, GRPC, http2.grpc_message())
        t.equal((found.status, found.grpc_status), (200, 0), "ServerLive")
        answer = http1.post(proxy.address, INFER, BODY, {"x-request-id": f"mine-{i}"})
        t.equal(answer.status, 200, "an inference over HTTP/1")
        eventually(lambda: proxy.lines_of(f"mine-{i}"), 3)
        t.equal([line["mode"] for line in proxy.lines_of(f"mine-{i}")], ["buffered"], "it is held, so that it can be retried")
    for one in held:
        one.close()
    at_rest(t, proxy, 10)
    healthy(t, proxy, "after")


@row("P6", "one client fills the memory for bodies", word="share")
def greedy_bodies(t):
    """One address sends bodies that fill limits.memory and then stalls -> another's buffered and gRPC
    inferences are still held and answered."""
    calls, texts = H2Endpoint(t), Endpoint(t)
    config = pool([calls], name="grpc", route='paths = ["/inference."]') + pool([texts], name="rest")
    proxy = Proxy(t, config, limits='memory = "16MiB"\nbuffer = "4MiB"\nbody = "8MiB"', ready=2)
    healthy(t, proxy, "before")
    held = []
    for _ in range(8):
        s = from_address(proxy.address, "127.0.0.9")
        s.sendall(HEAD + b"content-length: 4194304\r\n\r\n" + bytes(4_194_303))
        held.append(s)
    time.sleep(1)
    for i in range(5):
        found = http2.infer(proxy.address)
        t.equal((found.status, found.grpc_status), (200, 0), "another's inference over gRPC")
        answer = http1.post(proxy.address, INFER, BODY, {"x-request-id": f"mine-{i}"})
        t.equal(answer.status, 200, "another's inference over HTTP/1")
        eventually(lambda: proxy.lines_of(f"mine-{i}"), 3)
        t.equal([line["mode"] for line in proxy.lines_of(f"mine-{i}")], ["buffered"], "another's way")
    for s in held:
        s.close()
    at_rest(t, proxy, 10)
    healthy(t, proxy, "after")


GHOSTS = {"streamed": ("h1", "/v1/ghost"), "streamed, chunked": ("chunked", "/v1/ghost"),
          "streamed GET": ("get", "/v2/models/ghost"), "inference": ("h1", "/v2/models/ghost/infer"),
          "h2, streamed": ("h2", "/v1/ghost"), "h2, inference": ("h2", "/v2/models/ghost/infer")}


@row("P9", "ghosts in the queue", GHOSTS)
def ghosts(t, form):
    """Clients that leave while they wait in the queue -> they leave the queue at once: a living client is
    not refused with queue_full, and no ghost reaches an endpoint later."""
    kind, path = form
    endpoint = Endpoint(t, sleeping(1.0))
    proxy = Proxy(t, pool([endpoint], "slots = 1\nqueue = { size = 12 }"), ready=1)
    holders = [threading.Thread(target=http1.post, args=(proxy.address, "/v1/first")) for _ in range(3)]
    for holder in holders:
        holder.start()
    waiting = lambda: sum(sum(p["queued"].values()) for p in proxy.status()["pools"].values())  # noqa: E731
    # Some of these are at the endpoint, the others wait.
    t.eventually("the first requests", lambda: len(endpoint.requests) + waiting() == 3, 3)
    already, ghosts = waiting(), []
    for _ in range(12 - already):
        if kind == "h2":
            client = http2.Client(proxy.address)
            client.open("POST", path, {}, BODY)
            ghosts.append(client)
        else:
            s = http1.connect(proxy.address)
            top = {"chunked": f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
                   "get": f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n",
                   "h1": f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}"}[kind]
            s.sendall(top.encode())
            ghosts.append(s)
    t.check(eventually(lambda: waiting() == 12, 0.5), f"{waiting()} wait before they leave, expected 12")
    for ghost in ghosts:
        if kind == "h2":
            for number in ghost.streams:
                ghost.h2.reset_stream(number)
            ghost.flush()
        ghost.close()
    gone = eventually(lambda: waiting() <= already, 0.7)
    t.check(gone, f"{waiting() - already} still wait after they left")
    answer = http1.post(proxy.address, "/v1/living", timeout=15)
    t.equal((answer.status, answer.reason), (200, "ok"), "the living one's answer")
    for holder in holders:
        holder.join()
    time.sleep(0.3)
    executed = sum(p.startswith(path) for p in endpoint.paths())
    t.figure(f"{executed} of {len(ghosts)} ghosts executed")
    t.equal(executed, 0, "ghosts that were executed")
    eventually(lambda: proxy.metric(REQUESTS, 'reason="client_closed"') == len(ghosts), 3)
    t.equal(proxy.metric(REQUESTS, 'reason="client_closed"'), len(ghosts), "counted as client_closed")
    at_rest(t, proxy)


def wait_for(s, text):
    got = b""
    while text not in got:
        data = s.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {got!r}")
        got += data


WIDE = 2**31 - 1
# name -> (path, window of a stream)
SEND_BUFFERS = {"wide windows": ("/v1/x", WIDE), "wide windows, inference": (INFER, WIDE), "window 0": ("/v1/x", 0),
                "gRPC": (GRPC_INFER, WIDE)}
ANSWER_BYTES, UNREAD_CLIENTS = 60_000, 20


def in_kernel(port):
    """Bytes that the kernel holds between a proxy on this port and its clients."""
    found, ours = 0, f":{port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table.readlines()[1:]:
            _, here, there, _, queues = line.split()[:5]
            unsent, unread = (int(queue, 16) for queue in queues.split(":"))
            found += unsent * here.endswith(ours) + unread * there.endswith(ours)
    return found


def refusals(proxy):
    """How often each reason stands in the access log."""
    return dict(collections.Counter(line["reason"] for line in proxy.lines()))


@row("P6", "answers that HTTP/2 clients do not read", SEND_BUFFERS, word="unread,", limit=90)
def send_buffers(t, form):
    """20 clients ask for 100 answers of 60 KB each (120 MB), over HTTP/2 with wide windows or with none, and read
    nothing -> what is neither at the endpoint nor in the kernel is held, counted and bounded: no more than half of
    limits.memory (16 MiB), two pieces for each client, and for each slot one here and one on its way. Others are served meanwhile, and
    all memory is given back."""
    path, window = form
    body = bytes(ANSWER_BYTES)
    if path == GRPC_INFER:
        endpoint = H2Endpoint(t, lambda head, _: (
            [(":status", "200"), ("content-type", "application/grpc")],
            http2.grpc_message(body if "attack" in head else b""), [("grpc-status", "0")]))
    else:
        endpoint = Endpoint(t, lambda request, s, _: s.sendall(
            reply(body if "attack" in request.headers else b"{}")) or True)
    limits = 'memory = "16MiB"\nstall_timeout = "30s"'
    proxy = Proxy(t, pool([endpoint], 'slots = 40\nqueue = { size = 2500 }'), limits=limits, ready=1)
    ask = honest_grpc(proxy) if path == GRPC_INFER else honest(proxy, path)
    t.equal(ask()[0], 200, "the probe before")
    made = lambda: len(endpoint.requests)  # noqa: E731
    clients, before = [], made()
    for i in range(UNREAD_CLIENTS):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(5)
        s.bind((f"127.0.7.{i + 1}", 0))
        s.connect(http1.split(proxy.address))
        s.sendall(http2.PREFACE + settings(initial_window_size=window) + frame(SETTINGS, 1)
                  + frame(http2.WINDOW_UPDATE, payload=struct.pack(">I", 2**30)))
        clients.append(s)
    more = {"attack": "1", **(GRPC if path == GRPC_INFER else {})}
    message = http2.infer_message() if path == GRPC_INFER else BODY
    found, inside, counted = [], 0, 0
    for number in range(1, 200, 2):
        for s in clients:
            with contextlib.suppress(OSError):
                s.sendall(frame(HEADERS, END_HEADERS, number, block("POST", path, more)) + frame(DATA, 1, number, message))
        time.sleep(0.02)
        if number % 20 == 1:
            found.append(ask()[0])
            counted = max(counted, proxy.metric("forebay_memory_held_bytes"))
            # Those that are being made are not there yet.
            came = max(0, made() - before - len(found) - 40) * ANSWER_BYTES
            inside = max(inside, came - in_kernel(http1.split(proxy.address)[1]))
    t.figure(f"{inside / 2**20:.1f} MiB inside, {counted / 2**20:.1f} MiB counted, {made()} answers made")
    bound = (8 << 20) + (UNREAD_CLIENTS * 2 + 2 * 40) * (64 << 10)
    t.check(counted <= bound, f"{counted / 2**20:.1f} MiB counted")
    t.check(inside <= bound, f"{inside / 2**20:.1f} MiB inside")
    t.check(set(found) == {200}, f"others' answers {found}: {refusals(proxy)}")
    # However slow this machine is, memory becomes short once the kernel's buffers are full.
    short = lambda: proxy.metric("forebay_memory_full_total") > 0  # noqa: E731
    t.check(eventually(short, 30), f"memory was never short: {made()} answers")
    for s in clients:
        s.close()
    t.check(eventually(lambda: proxy.metric("forebay_memory_held_bytes") == 0, 10), "memory is not given back")
    at_rest(t, proxy, 10)
    t.equal(ask()[0], 200, "the probe after")


REQUESTS_HELD = {"inference": (INFER, ()), "streamed path": ("/v1/x", ()), "gRPC": (GRPC_INFER, GRPC.items()),
                 "gRPC health": (GRPC_LIVE, GRPC.items())}


@row("P6", "requests without end whose bodies do not come", REQUESTS_HELD, word="requests,")
def requests_held(t, form):
    """One client begins 1,200 requests over HTTP/2 and sends no bodies, where 400 may be in flight -> it gets no more
    than three quarters of them (and of those in reserve for health), the others are refused with connection_limit
    and counted; others' requests, calls and health go on meanwhile."""
    path, extra = form
    calls, texts = H2Endpoint(t), Endpoint(t)
    config = pool([calls], name="grpc", route='paths = ["/inference."]') + pool([texts], name="rest")
    proxy = Proxy(t, config, limits="requests = 400", ready=2)
    healthy(t, proxy, "before")
    held = []
    for _ in range(12):
        s = from_address(proxy.address, "127.0.6.7")
        s.sendall(H2 + b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, block("POST", path, extra)) for i in range(100)))
        held.append(s)
    refused = lambda: proxy.metric(REQUESTS, 'reason="connection_limit"')  # noqa: E731
    in_flight = lambda: proxy.status()["in_flight"]  # noqa: E731
    t.check(eventually(lambda: refused() >= 1200 - 350, 5), f"{refused()} refused, {in_flight()} in flight")
    t.figure(f"{in_flight()} in flight, {refused():.0f} refused")
    t.check(in_flight() <= 350, f"{in_flight()} in flight")
    for _ in range(10):
        healthy(t, proxy, "meanwhile")
        found = http2.infer(proxy.address)
        t.equal((found.status, found.grpc_status), (200, 0), "another's call")
        found = http2.request(proxy.address, "POST", GRPC_LIVE, GRPC, http2.grpc_message())
        t.equal((found.status, found.grpc_status), (200, 0), "ServerLive")
    for s in held:
        s.close()
    at_rest(t, proxy, 10)
    healthy(t, proxy, "after")


WORKER_HELD = {"inference": "/v2/models/arith/infer", "gRPC": GRPC_INFER}


@row("P6", "requests of a worker without end whose bodies do not come", WORKER_HELD, word="worker,", alone=True, limit=90)
def worker_requests_held(t, form):
    """Two clients begin 10,000 requests over HTTP/2 each at a worker that may have 2,000 in flight, send no bodies and read
    nothing -> what is beyond the bound is refused, and reset where refusals are not read: they take 96 MiB at most (without
    a bound 330), which are given back; calls for health go on meanwhile."""
    worker = Worker(t, "--max-requests", "2000", "--body-timeout", "60s")
    extra = GRPC.items() if form[0] == GRPC_INFER else ()
    before, held = worker.rss(), []
    flood = http2.PREFACE + settings(initial_window_size=0) + frame(SETTINGS, 1)
    for i in range(80):
        s = from_address(worker.address, f"127.0.6.{8 + i % 2}")
        s.sendall(flood + b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, block("POST", form[0], extra)) for n in range(250)))
        held.append(s)
    for _ in range(10):
        found = http1.get(worker.address, "/v2/health/live")
        t.equal(found.status, 200, "a probe meanwhile")
        time.sleep(0.2)
    taken = worker.rss() - before
    t.figure(f"{taken / 2**20:.1f} MiB")
    t.check(taken <= 96 << 20, f"{taken / 2**20:.1f} MiB")
    for s in held:
        s.close()
    room = max(taken // 4, 8 << 20)
    t.check(eventually(lambda: worker.rss() - before <= room, 15, 0.5), "memory is not given back")
    t.equal(http1.get(worker.address, "/v2/models/arith").status, 200, "a call after")


@row("P10", "streams of gRPC without end", word="streams")
def streams(t):
    """One client opens 1,200 idle streams of gRPC on 12 connections, each of which has its own connection to an
    endpoint, at a limit of 1,024 descriptors -> it gets a quarter of the descriptors for clients, the others are
    refused with connection_limit and counted; others' requests, calls and streams go on, and all is given back."""
    calls, texts = H2Endpoint(t), Endpoint(t)
    config = pool([calls], name="grpc", route='paths = ["/inference."]') + pool([texts], name="rest")
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # noqa: E731
    proxy = Proxy(t, config, ready=2, before=few)
    healthy(t, proxy, "before")
    held = []
    for _ in range(12):
        s = from_address(proxy.address, "127.0.6.6")
        s.sendall(H2 + b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, block("POST", GRPC_STREAM, GRPC)) for i in range(100)))
        held.append(s)
    refused = lambda: proxy.metric(REQUESTS, 'reason="connection_limit"')  # noqa: E731
    t.check(eventually(lambda: refused() + len(calls.open) >= 1200, 15), f"{refused()} refused, {len(calls.open)} open")
    t.figure(f"{len(calls.open)} connections to the endpoint, {refused():.0f} streams refused")
    t.check(len(calls.open) <= 200, f"{len(calls.open)} connections to the endpoint")
    for i in range(10):
        healthy(t, proxy, "meanwhile")
        found = http2.infer(proxy.address)
        t.equal((found.status, found.grpc_status), (200, 0), "another's call")
        found = http2.request(proxy.address, "POST", GRPC_STREAM, GRPC, http2.grpc_message())
        t.equal((found.status, found.grpc_status), (200, 0), "another's stream")
    for s in held:
        s.close()
    at_rest(t, proxy, 10)
    t.check(eventually(lambda: proxy.fds() < 60, 10), f"{proxy.fds()} descriptors are still open")
    lines = sum(line["reason"] == "connection_limit" for line in proxy.lines())
    t.equal(lines, refused(), "lines of refused streams")


# A request that the proxy answers itself.
H2_LIVE = frame(HEADERS, END_HEADERS | http2.END_STREAM, 1, block("GET", "/v2/health/live"))
# name -> (what each connection sends first, bytes allowed each)
MEMORY = {"silent": (b"", 8), "idle, kept": (KEPT, 8), "half a header": (b"POST / HTTP/1.1\r\n", 8),
          "h2 preface": (H2, 24), "h2 idle": (H2 + H2_LIVE, 24), "slow body": (HEAD + b"content-length: 1000\r\n\r\nx", 24),
          "TLS, silent": (b"", 16, "http/1.1"), "TLS, idle, kept": (KEPT, 16, "http/1.1"), "TLS, h2 idle": (H2 + H2_LIVE, 32, "h2")}


@row("P13", "memory of connections", MEMORY, alone=True, limit=90)
def memory(t, form):
    """1,500 connections (6,000 with --full) that do nothing -> at most 8 KiB each (HTTP/1), 24 KiB (HTTP/2,
    half a body), with TLS 8 KiB more, and the memory is given back when they close."""
    first, allowed = form[:2]
    tls = f'[listener.tls]\ncertificate = "{ROOT}/conf/tls/example.pem"\nkey = "{ROOT}/conf/tls/example.key"'
    # Connections to endpoints that a burst leaves behind are not the clients', and have a bound of their own.
    proxy = Proxy(t, pool([Endpoint(t)]), server="idle_connections = 1", ready=1, listener=tls if form[2:] else "",
                  limits='header_timeout = "60s"\nbody_timeout = "60s"')
    seal = sealing(form[2]) if form[2:] else None
    if not seal:
        healthy(t, proxy, "before")
    open_now = lambda: proxy.status()["listeners"][0]["connections"]  # noqa: E731
    holds(t, proxy, (first, allowed, seal), open_now)
    if not seal:
        healthy(t, proxy, "after")


WORKER_MEMORY = {"silent": (b"", 8), "half a header": (b"POST / HTTP/1.1\r\n", 24),
                 "idle, kept": (b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n", 24), "h2 idle": (H2 + H2_LIVE, 24)}


@row("P13", "memory of connections", WORKER_MEMORY, word="worker,", alone=True, limit=90)
def worker_memory(t, form):
    """The same of a worker, whose HTTP library keeps two buffers of 8 KiB for HTTP/1 -> at most 24 KiB each, 8 for a
    silent one, given back."""
    worker = Worker(t)
    # A probe may still be open.
    own = worker.fds() - 2
    holds(t, worker, (*form, None), lambda: worker.fds() - own)
    t.equal(http1.get(worker.address, "/v2/health/live").status, 200, "the probe after")


def sealing(protocol):
    """Wraps sockets of a client that speaks this protocol within TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context.wrap_socket


def holds(t, process, kind, open_now):
    """What so many connections of a kind (first bytes, KiB allowed for each, TLS) take."""
    first, allowed, seal = kind
    count, before = 6000 if t.full else 1500, process.rss()
    opened = []
    for i in range(count):
        s = from_address(process.address, f"127.0.{1 + i // 100}.{1 + i % 100}")
        opened.append(seal(s) if seal else s)
        opened[-1].sendall(first)
    for s in opened:
        if first.endswith(H2_LIVE):
            wait_for(s, b"live")
        elif first == KEPT or b"/live" in first:
            wait_for(s, b"200 OK")
    t.check(eventually(lambda: open_now() >= count, 15), f"only {open_now()} are open")
    time.sleep(0.5)
    each = (process.rss() - before) / count
    for s in opened:
        s.close()
    t.check(eventually(lambda: open_now() <= 4, 10), f"{open_now()} still open")
    left = lambda: process.rss() - before  # noqa: E731
    # An allocator keeps some of what it had; a quarter of what a flood took is not some.
    room = max(0.25 * each * count, 8 << 20)
    eventually(lambda: left() <= room, 12, 0.5)
    t.figure(f"{each / 1024:.1f} KiB each, {left() / 2**20:.1f} MiB left of {each * count / 2**20:.1f}")
    t.check(each <= allowed * 1024, f"{each / 1024:.1f} KiB each, expected at most {allowed}")
    t.check(left() <= room, f"{left() / 2**20:.1f} MiB are not given back")


@row("P13", "a listener that is full of idle connections", word="room,", forms={"kept": "kept", "silent": "silent", "h2": "h2"})
def room(t, form):
    """A listener at max_connections whose connections are all idle -> makes room: a new client is served
    within 2 s, instead of a 503 for 60 s."""
    proxy = Proxy(t, pool([Endpoint(t)]), listener="max_connections = 50", ready=1)
    healthy(t, proxy, "before")
    opened = []
    for i in range(50):
        s = from_address(proxy.address, f"127.0.0.{10 + i}")
        if form[0] == "kept":
            s.sendall(KEPT)
            s.recv(65536)
        elif form[0] == "h2":
            s.sendall(H2)
        opened.append(s)
    time.sleep(0.5)
    found = [eventually(lambda: ask_once(proxy) == 200, 2) for _ in range(3)]
    t.equal(found, [True] * 3, "new clients that are served")
    for s in opened:
        s.close()
    healthy(t, proxy, "after")


def ask_once(proxy):
    try:
        return http1.post(proxy.address, INFER, BODY, timeout=2).status
    except (OSError, ValueError):
        return 0


@row("P13", "one address opens connections without end", word="one address")
def one_address(t):
    """One address opens as many connections as the listener may have -> others still get in."""
    proxy = Proxy(t, pool([Endpoint(t)]), listener="max_connections = 200", ready=1)
    healthy(t, proxy, "before")
    opened = []
    for _ in range(400):
        try:
            s = from_address(proxy.address, "127.0.0.7", 0.5)
            s.sendall(b"POST / HTTP/1.1\r\n")
            opened.append(s)
        except OSError:
            pass
    time.sleep(0.3)
    found = []
    for i in range(10):
        try:
            s = from_address(proxy.address, f"127.0.1.{1 + i}", 2)
            s.sendall(KEPT)
            found.append(s.recv(65536)[9:12])
            s.close()
        except OSError as error:
            found.append(str(error))
    t.equal(found, [b"200"] * 10, "others' answers")
    for s in opened:
        s.close()
    healthy(t, proxy, "after")


@row("P4", "slots under honest slow readers", word="honest", quick=False)
def slow_but_honest(t):
    """A client that reads 200 KB at 100 KB/s -> its answer is whole."""
    body = bytes(range(256)) * 800
    endpoint = Endpoint(t, lambda request, s, _: s.sendall(reply(body)) or True)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    with http1.connect(proxy.address, 10, receive_buffer=4096) as s:
        s.sendall(http1.head("GET", "/v1/slow"))
        found = b""
        while not found.endswith(body[-1000:]) and (data := s.recv(4096)):
            found += data
            time.sleep(0.04)
    t.check(found.endswith(body[-1000:]) and len(found) > len(body), f"{len(found)} bytes came")


@row(17, "deadlines that pass in the queue", {"inference": ("h1", INFER), "streamed path": ("h1", "/v1/x"),
                                             "h2": ("h2", INFER), "gRPC": ("grpc", GRPC_INFER)})
def expired(t, form):
    """Requests whose deadline passes while they wait -> 504 deadline_exceeded or at once 503
    deadline_unreachable, in time; none is executed after its deadline."""
    kind, path = form
    late = []
    if kind == "grpc":
        def answer(head, _):
            time.sleep(0.5)
            return ([(":status", "200"), ("content-type", "application/grpc")], b"\0\0\0\0\0", [("grpc-status", "0")])
        endpoint = H2Endpoint(t, answer)
        count = lambda: len(endpoint.requests)  # noqa: E731
    else:
        def note(request, s, e):
            due = float(request.headers.get("x-due", "inf"))
            if time.time() > due + 0.02:
                late.append(time.time() - due)
            return sleeping(0.5)(request, s, e)
        endpoint = Endpoint(t, note)
        count = lambda: len(endpoint.requests)  # noqa: E731
    proxy = Proxy(t, pool([endpoint], "slots = 1"), ready=1)
    found = []

    def ask():
        began = time.monotonic()
        headers = {"x-request-deadline": "800", "x-due": f"{time.time() + 0.8}"}
        try:
            if kind == "h1":
                answer = http1.post(proxy.address, path, BODY, headers)
                found.append((answer.status, answer.reason, time.monotonic() - began))
            elif kind == "h2":
                answer = http2.request(proxy.address, "POST", path, headers, BODY)
                found.append((answer.status, answer.reason, time.monotonic() - began))
            else:
                answer = http2.infer(proxy.address, headers=headers)
                found.append((answer.grpc_status, answer.reason, time.monotonic() - began))
        except OSError as error:
            found.append((0, str(error), time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = sorted({(status, reason) for status, reason, _ in found})
    allowed = {(200, "ok"), (0, "ok"), (504, "deadline_exceeded"), (503, "deadline_unreachable"),
               (4, "deadline_exceeded"), (14, "deadline_unreachable")}
    t.check(set(words) <= allowed, f"answered {words}")
    slowest = max(seconds for _, _, seconds in found)
    t.check(slowest <= 1.5, f"an answer after {slowest:.1f} s")
    t.equal(late, [], "requests that were executed after their deadline")
    t.figure(f"{count()} of 12 executed, 0 expected late, found {len(late)}; answers {words}")
    t.check(count() <= 3, f"{count()} were executed in 0.8 s by one that takes 0.5 s each")
    at_rest(t, proxy)
