"""HTTP/2: floods of frames, heads that are too much, and conformance."""

import os
import shutil
import struct
import subprocess
import time

from lab import http1, http2
from lab.around import REQUESTS, around, healthy
from lab.endpoint import Endpoint
from lab.http2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
                       SETTINGS, WINDOW_UPDATE, Raw, block, error_of, frame, settings)
from lab.processes import INFER, Proxy, Worker, pool, synthetic
from lab.row import eventually, row


def head(stream, end=True, method="GET", path="/v2/health/live", extra=()):
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, block(method, path, extra))


def rapid_reset(i):
    stream = 2 * i + 1
    return head(stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def made_you_reset(i):
    """The server is made to reset each stream by a window that overflows."""
    stream = 2 * i + 1
    over = frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 0x7FFFFFFF))
    return head(stream, end=False, method="POST", path=INFER) + over


# Each gives the bytes of the i-th step; what comes first; pause between batches in seconds.
FLOODS = {
    "PING": lambda i: frame(PING, 0, 0, struct.pack(">Q", i)),
    "PING acknowledgements": lambda i: frame(PING, 1, 0, struct.pack(">Q", i)),
    "SETTINGS": lambda i: settings(initial_window_size=65535 + i % 2),
    "SETTINGS, empty": lambda i: settings(),
    "WINDOW_UPDATE": lambda i: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) if i < 2**30 else b"",
    "PRIORITY": lambda i: frame(PRIORITY, 0, 2 * (i % 1000) + 1, struct.pack(">IB", 0, 1)),
    "unknown kinds": lambda i: frame(0x40 + i % 8, 0, 0, b"x"),
    "RST_STREAM": rapid_reset,
    "MadeYouReset": made_you_reset,
    "empty DATA": None,
    "CONTINUATION": None,
    "empty CONTINUATION": None,
    "empty HEADERS trailers": None,
}


def opening(kind):
    if kind == "empty DATA":
        return head(1, end=False, method="POST", path=INFER)
    if kind in ("CONTINUATION", "empty CONTINUATION"):
        return frame(HEADERS, END_STREAM, 1, block("GET", "/v2/health/live"))
    if kind == "empty HEADERS trailers":
        return b""
    return b""


def step(kind, i):
    if kind == "empty DATA":
        return frame(DATA, 0, 1)
    if kind == "CONTINUATION":
        return frame(CONTINUATION, 0, 1, b"\x00\x01a" + b"\x7f\x81\x07" + b"x" * 256)
    if kind == "empty CONTINUATION":
        return frame(CONTINUATION, 0, 1)
    if kind == "empty HEADERS trailers":
        stream = 2 * i + 1
        return head(stream, end=False, method="POST", path=INFER) + frame(
            HEADERS, END_HEADERS | END_STREAM, stream, b"")
    return FLOODS[kind](i)


def flooded(t, process, address, kind, seconds=4):
    """Floods one connection until it ends; when and how that was, and what it cost."""
    rss, cpu = process.rss(), process.cpu()
    sent, sent_bytes, began = 0, 0, time.monotonic()
    with Raw(address) as connection:
        connection.send(frame(SETTINGS, 1) + opening(kind))
        connection.socket.settimeout(0.2)
        ended, code = None, None
        while (now := time.monotonic()) - began < seconds:
            batch = b"".join(step(kind, sent + i) for i in range(200))
            sent += 200
            sent_bytes += len(batch)
            alive = connection.send(batch)
            found = connection.frames(0.001)
            code = error_of(found) if code is None else code
            if code is not None or connection.closed or (not alive and not found):
                ended = time.monotonic() - began
                break
        if ended is not None and code is None:
            code = error_of(connection.frames(0.2))
    del now
    return {"ended": ended, "code": code, "sent": sent, "bytes": sent_bytes,
            "rss": process.rss() - rss, "cpu": process.cpu() - cpu}


def started(t, form):
    """The process under attack, its address, and an honest request at it."""
    if form == "worker":
        worker = Worker(t)
        return worker, worker.address, lambda: http1.get(worker.address, "/v2/health/live").status
    proxy = Proxy(t, pool([Endpoint(t)]), ready=1)
    return proxy, proxy.address, lambda: http1.post(proxy.address, INFER).status


# Share of a core that a flood may take over the second from its beginning on.
FLOOD_COST = 0.05


def cost_of_a_second(process, do):
    """Share of a core that a process takes over a second or, if that lasts longer, while `do()` is under way."""
    cpu, began = process.cpu(), time.monotonic()
    do()
    time.sleep(max(0.0, began + 1 - time.monotonic()))
    return (process.cpu() - cpu) / (time.monotonic() - began)


@row(25, "flood", {f"{kind}, {form}": (kind, form) for kind in FLOODS for form in ("proxy", "worker")})
def flood(t, form):
    """One connection floods with cheap frames -> GOAWAY within 1 s of the flood, memory +<= 32 MiB, and
    <= 5% of a core over the second from its beginning on, that is 50 ms of processor time; honest requests
    go on."""
    kind, where = form
    process, address, ask = started(t, where)
    t.equal(ask(), 200, "the probe before")
    # The first connection brings what every one uses.
    http2.request(address, "GET", "/v2/health/live")
    quiet = cost_of_a_second(process, lambda: None)
    found = {}
    cost = cost_of_a_second(process, lambda: found.update(flooded(t, process, address, kind))) - quiet
    t.equal(ask(), 200, "the probe after")
    if t.check(found["ended"] is not None, f"not ended after {found['sent']} frames in 4 s"):
        t.figure(f"ended in {found['ended']:.2f} s after {found['sent']} frames")
        t.check(found["ended"] <= 1.5, f"ended only after {found['ended']:.2f} s")
        t.check(found["code"] is not None, "no GOAWAY before the end")
    t.figure(f"code {found['code']}, memory {found['rss'] / 2**20:+.1f} MiB, {cost:.0%} of a core over the second")
    t.check(found["rss"] <= 32 << 20, f"memory grew by {found['rss']} bytes")
    # The kernel counts in steps of 10 ms.
    t.check(cost <= FLOOD_COST + 0.01, f"{cost:.0%} of a core")
    if where == "proxy":
        t.check("panicked" not in process.messages(), "a panic")


@row(25, "flood that comes back", word="again", forms={kind: kind for kind in ("PING", "SETTINGS", "RST_STREAM")}, quick=False,
     alone=True, limit=90)
def flood_again(t, form):
    """A client that opens a new connection as soon as its flood is ended, for 5 s -> what it costs stays
    small, and honest requests' median within 2 x + 2 ms."""
    process, address, ask = started(t, "proxy")
    quiet = sorted(timed(ask) for _ in range(100))[50]
    cpu, began = process.cpu(), time.monotonic()
    rounds, busy = 0, []
    while time.monotonic() - began < 5:
        flooded(t, process, address, form[0], 1)
        busy.append(timed(ask))
        rounds += 1
    share = (process.cpu() - cpu) / (time.monotonic() - began)
    busy = sorted(busy)[len(busy) // 2]
    t.figure(f"{rounds} rounds, {share:.0%} of a core, median {1e3 * quiet:.1f} -> {1e3 * busy:.1f} ms")
    t.check(busy <= 2 * quiet + 0.002, "honest requests are slow")


def timed(ask):
    began = time.monotonic()
    ask()
    return time.monotonic() - began


@row(25, "slow rapid reset", word="slow reset", forms={"proxy": "proxy", "worker": "worker"}, limit=60)
def slow_reset(t, form):
    """50 streams a second opened and reset, far below a flood -> the connection is ended within some seconds
    (at most 30), before thousands of them."""
    process, address, ask = started(t, form[0])
    t.equal(ask(), 200, "the probe before")
    began, i, code = time.monotonic(), 0, None
    with Raw(address) as connection:
        connection.send(frame(SETTINGS, 1))
        while time.monotonic() - began < 30 and code is None and not connection.closed:
            connection.send(rapid_reset(i))
            i += 1
            code = error_of(connection.frames(0.02))
    t.figure(f"{i} resets in {time.monotonic() - began:.1f} s, code {code}")
    t.check(code is not None or connection.closed, "never ended")
    t.equal(ask(), 200, "the probe after")


@row(25, "HPACK bomb", word="bomb", forms={"proxy": "proxy", "worker": "worker"})
def bomb(t, form):
    """One field of 4 KB in the table, referred to 30,000 times in a head -> 431 or an error of the stream
    or connection; memory +<= 32 MiB."""
    process, address, ask = started(t, form[0])
    t.equal(ask(), 200, "the probe before")
    rss = process.rss()
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000
    first = frame(HEADERS, END_HEADERS | END_STREAM, 1, block("GET", "/v2/health/live") + entry)
    bombs = b""
    payload = block("GET", "/v2/health/live") + b"\xbe" * 15_000
    for stream in (3, 5, 7, 9):
        bombs += frame(HEADERS, END_STREAM, stream, payload)
        bombs += frame(CONTINUATION, END_HEADERS, stream, b"\xbe" * 15_000)
    with Raw(address) as connection:
        connection.send(frame(SETTINGS, 1) + first + bombs)
        found = connection.frames(3, until=(GOAWAY,))
    heads = http2.statuses([f for f in found if f[0] == HEADERS]) if found else {}
    bad = {stream: head for stream, head in heads.items() if stream > 1 and head[0] != 431}
    t.equal(bad, {}, "bombs that were answered")
    t.figure(f"answered {heads}, code {error_of(found)}, memory {(process.rss() - rss) / 2**20:+.1f} MiB")
    t.check(process.rss() - rss <= 32 << 20, "memory grew")
    t.equal(ask(), 200, "the probe after")


MANY = {
    "101 fields": ([(f"a{i}", "b") for i in range(101)], 431, "headers_too_large"),
    "1000 fields": ([(f"a{i}", "b") for i in range(1000)], 431, "headers_too_large"),
    "1000 cookies": ([("cookie", f"a{i}=b") for i in range(1000)], 431, "headers_too_large"),
    "70 KB": ([(f"a{i}", "x" * 7000) for i in range(10)], 431, "headers_too_large"),
    "content-length twice": ([("content-length", "2"), ("content-length", "3")], 400, "invalid_request"),
    "content-length list": ([("content-length", "2, 2")], 400, "invalid_request"),
    "content-length wrong": ([("content-length", "x")], 400, "invalid_request"),
}


@row(22, "HTTP/2 heads beyond the limits", word="h2", forms={name: name for name in MANY})
def many_fields(t, form):
    """Over HTTP/2 the same limits: 100 fields, 64 KiB, one content-length -> 431 or 400 with its reason,
    counted and logged; nothing reaches an endpoint."""
    extra, status, reason = MANY[form[0]]
    endpoint = Endpoint(t)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    with around(t, proxy, reason, 3):
        for _ in range(3):
            with http2.Client(proxy.address) as client:
                number = client.h2.get_next_available_stream_id()
                client.streams[number] = http2.Stream()
                pairs = http2.fields("POST", INFER, extra)
                client.h2.send_headers(number, pairs, end_stream=False)
                client.flush()
                client.h2.send_data(number, b"{}", end_stream=True)
                client.flush()
                found = client.wait([number], 5)[0]
            # A malformed request may be reset instead (RFC 9113, 8.1.1).
            reset = status == 400 and found.reset == 1
            t.check(reset or (found.status, found.reason) == (status, reason), f"answered {found}")
    t.equal(len(endpoint.requests), 2, "requests at the endpoint")


H2_BAD = {
    # Requests that the standard calls malformed: name -> fields in place of the usual ones.
    "no method": [(":scheme", "http"), (":path", "/v2"), (":authority", "x")],
    "no path": [(":method", "GET"), (":scheme", "http"), (":authority", "x")],
    "empty path": [(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "x")],
    "path twice": [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":path", "/b"), (":authority", "x")],
    "unknown pseudo": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), (":odd", "y")],
    "pseudo last": [(":method", "GET"), (":scheme", "http"), ("a", "b"), (":path", "/v2"), (":authority", "x")],
    "upper case": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("Odd", "y")],
    "connection": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("connection", "close")],
    "transfer-encoding": [(":method", "POST"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("transfer-encoding", "chunked")],
    "te gzip": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("te", "gzip")],
    "status": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), (":status", "200")],
    "CR LF in a value": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("a", "b\r\nc: d")],
    "NUL in a value": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("a", "b\0c")],
    "space in a name": [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x"), ("a b", "c")],
    "space in the path": [(":method", "GET"), (":scheme", "http"), (":path", "/v2 HTTP/1.1"), (":authority", "x")],
    "CR LF in the path": [(":method", "GET"), (":scheme", "http"), (":path", "/v2\r\na: b"), (":authority", "x")],
    "CR LF in the method": [(":method", "GET / HTTP/1.1\r\na: b"), (":scheme", "http"), (":path", "/v2"), (":authority", "x")],
}


@row(24, "HTTP/2 heads that would be two requests in HTTP/1", word="h2", limit=60)
def h2_bad(t):
    """Malformed heads (missing or doubled pseudo-fields, CR LF, connection fields) -> the stream is reset
    or answered 4xx, and nothing but whole, clean requests reaches an endpoint."""
    endpoint = Endpoint(t)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    healthy(t, proxy, "before")
    import hpack

    for name, pairs in H2_BAD.items():
        with Raw(proxy.address) as connection:
            encoded = hpack.Encoder().encode(pairs, huffman=False)
            connection.send(frame(SETTINGS, 1) + frame(HEADERS, END_HEADERS | END_STREAM, 1, encoded))
            found = connection.frames(3, until=(HEADERS, RST_STREAM, GOAWAY))
        kinds = [f[0] for f in found]
        answered = http2.statuses(found)
        well = answered.get(1, (0,))[0]
        t.check(RST_STREAM in kinds or GOAWAY in kinds or 400 <= well < 500 or connection.closed,
                f"{name}: answered {answered}, frames {kinds}")
        t.check(not 200 <= well < 400, f"{name}: answered {well}")
    t.equal(endpoint.strays, [], "bytes at the endpoint that are no request")
    t.equal(len(endpoint.requests), 1, "requests at the endpoint")
    healthy(t, proxy, "after")
    t.figure(f"{len(H2_BAD)} heads")


def conformance_cases():
    """`name -> (bytes, what may come)`; "conn": GOAWAY or the end, "stream": a reset or that."""
    get = head(1)
    post = head(1, end=False, method="POST", path=INFER)
    return {
        "DATA on stream 0": (frame(DATA, 0, 0, b"x"), "conn"),
        "DATA on an idle stream": (frame(DATA, 0, 5, b"x"), "conn"),
        "DATA with too much padding": (post + frame(DATA, 8, 1, b"\x20x"), "conn"),
        "HEADERS on stream 0": (frame(HEADERS, 5, 0, block("GET", "/v2")), "conn"),
        "HEADERS on an even stream": (head(2), "conn"),
        "HEADERS on a lower stream": (head(5) + head(3), "conn"),
        "HEADERS with too much padding": (frame(HEADERS, 13, 1, b"\xffx"), "conn"),
        "HEADERS depend on themselves": (frame(HEADERS, 0x25, 1, struct.pack(">IB", 1, 1) + block("GET", "/v2")), "any"),
        "HEADERS with a broken block": (frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff"), "conn"),
        "HEADERS within a head": (frame(HEADERS, 1, 1, block("GET", "/v2")) + head(3), "conn"),
        "PING within a head": (frame(HEADERS, 1, 1, block("GET", "/v2")) + frame(PING, 0, 0, bytes(8)), "conn"),
        "CONTINUATION from nowhere": (frame(CONTINUATION, 4, 1, b""), "conn"),
        "PRIORITY on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), "conn"),
        "PRIORITY of 4 bytes": (frame(PRIORITY, 0, 1, bytes(4)), "stream"),
        "RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), "conn"),
        "RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 7, bytes(4)), "conn"),
        "RST_STREAM of 3 bytes": (get + frame(RST_STREAM, 0, 1, bytes(3)), "conn"),
        "SETTINGS on a stream": (frame(SETTINGS, 0, 1), "conn"),
        "SETTINGS acknowledged with payload": (frame(SETTINGS, 1, 0, bytes(6)), "conn"),
        "SETTINGS of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), "conn"),
        "SETTINGS with push = 2": (settings(enable_push=2), "conn"),
        "SETTINGS with a window of 2^31": (settings(initial_window_size=2**31), "conn"),
        "SETTINGS with frames of 1 byte": (settings(max_frame_size=1), "conn"),
        "PUSH_PROMISE by a client": (frame(5, 4, 1, bytes(4) + block("GET", "/v2")), "conn"),
        "PING on a stream": (frame(PING, 0, 1, bytes(8)), "conn"),
        "PING of 7 bytes": (frame(PING, 0, 0, bytes(7)), "conn"),
        "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), "conn"),
        "WINDOW_UPDATE of 0": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), "conn"),
        "WINDOW_UPDATE of 0 on a stream": (post + frame(WINDOW_UPDATE, 0, 1, bytes(4)), "stream"),
        "WINDOW_UPDATE beyond 2^31": (frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 2, "conn"),
        "WINDOW_UPDATE of 3 bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), "conn"),
        "WINDOW_UPDATE on an idle stream": (frame(WINDOW_UPDATE, 0, 9, struct.pack(">I", 1)), "conn"),
        "a frame beyond 16 KiB": (post + frame(DATA, 0, 1, bytes(16385)), "conn"),
        "DATA after the end": (get + frame(DATA, 0, 1, b"x"), "stream"),
        "HEADERS after the end": (get + head(1), "stream"),
        "a length that is a lie": (head(1, end=False, method="POST", path=INFER, extra=[("content-length", "9")])
                                   + frame(DATA, END_STREAM, 1, b"x"), "stream"),
        "more than the length": (head(1, end=False, method="POST", path=INFER, extra=[("content-length", "1")])
                                 + frame(DATA, END_STREAM, 1, b"xyz"), "stream"),
        "trailers without the end": (post + frame(HEADERS, 4, 1, block("GET", "/v2")), "stream"),
    }


@row(26, "HTTP/2 conformance", {"proxy": "proxy", "worker": "worker"}, limit=90)
def conformance(t, form):
    """38 breaches that RFC 9113 names -> an error of the stream or the connection as it says, and the
    process goes on."""
    process, address, ask = started(t, form[0])
    t.equal(ask(), 200, "the probe before")
    cases = conformance_cases()
    right = 0
    for name, (data, kind) in cases.items():
        with Raw(address) as connection:
            connection.send(frame(SETTINGS, 1) + data)
            until = (GOAWAY,) if kind == "conn" else (GOAWAY, RST_STREAM)
            found = connection.frames(2, until=until)
        kinds = {f[0] for f in found}
        refused = any(400 <= status < 500 for status, _ in http2.statuses(found).values())
        ended = GOAWAY in kinds or connection.closed
        good = kind == "any" or ended or (kind == "stream" and (RST_STREAM in kinds or refused))
        right += t.check(good, f"{name}: frames {sorted(kinds)}")
    t.equal(ask(), 200, "the probe after")
    t.figure(f"{right} of {len(cases)}")


@row(26, "HTTP/2 conformance by h2spec", word="h2spec", forms={"proxy": "proxy", "worker": "worker"}, quick=False, limit=180)
def h2spec(t, form):
    """Where h2spec is installed: all 146 cases, as stock."""
    tool = shutil.which("h2spec") or os.environ.get("H2SPEC")
    if not tool:
        t.skip("no h2spec on this machine")
    _, address, _ = started(t, form[0])
    host, port = http1.split(address)
    done = subprocess.run([tool, "-h", host, "-p", str(port), "-P", "/v2/health/live", "-o", "3"],
                          capture_output=True, text=True, timeout=170)
    line = [line for line in done.stdout.splitlines() if "tests," in line][-1]
    t.figure(line.strip())
    t.check(" 0 failed" in line, "cases failed: " + done.stdout[-500:])


@row("P11", "refusals of HTTP/2 itself are counted and logged", {
    "CONNECT": ([(":method", "CONNECT"), (":authority", "x:1")], 405),
    "no path": ([(":method", "GET"), (":scheme", "http"), (":authority", "x")], 400),
    "64 KiB of fields": ([(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x")]
                         + [(f"a{i}", "x" * 2000) for i in range(60)], 431)})
def refusals(t, form):
    """What the HTTP/2 layer refuses by itself (400, 405, 431) -> a count and a line as for any refusal."""
    import hpack

    proxy = Proxy(t, pool([Endpoint(t)]), ready=1)
    healthy(t, proxy, "before")
    pairs, status = form
    count = lambda: proxy.metric(REQUESTS, f'status="{status}"')  # noqa: E731
    before, statuses = count(), []
    for _ in range(3):
        with Raw(proxy.address) as connection:
            encoded = hpack.Encoder().encode(pairs, huffman=False)
            parts = [encoded[i:i + 16_000] for i in range(0, len(encoded), 16_000)]
            data = frame(HEADERS, END_STREAM | (END_HEADERS if len(parts) == 1 else 0), 1, parts[0])
            for i, part in enumerate(parts[1:], 2):
                data += frame(CONTINUATION, END_HEADERS if i == len(parts) else 0, 1, part)
            connection.send(frame(SETTINGS, 1) + data)
            statuses += [s for s, _ in http2.statuses(connection.frames(3, (HEADERS, RST_STREAM, GOAWAY))).values()]
    t.check(all(found == status for found in statuses), f"answered {statuses}")
    eventually(lambda: count() - before >= 3, 3)
    t.equal(count() - before, 3, f"counted with status {status}")
    lines = lambda: sum(line["status"] == status for line in proxy.lines())  # noqa: E731
    eventually(lambda: lines() == 3, 3)
    t.equal(lines(), 3, "lines")
    healthy(t, proxy, "after")


@row("P7", "an upload over HTTP/2 without content-length", word="upload,", forms={
    "inference": INFER, "streamed path": "/v1/completions", "empty": "/v1/empty", "trailers": "/v1/trailers"})
def uploads(t, form):
    """An HTTP/2 upload without content-length to an HTTP/1 endpoint -> exactly one well-formed request
    arrives, with one terminator, and the next client's request on the kept connection is its own."""
    endpoint = Endpoint(t)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    healthy(t, proxy, "before")
    for i in range(10):
        with http2.Client(proxy.address) as client:
            number = client.open("POST", form[0], {"x-request-id": f"up-{i}"}, end=False)
            if form[0] == "/v1/trailers":
                client.h2.send_data(number, b"hello")
                client.h2.send_headers(number, [("a", "b")], end_stream=True)
            elif form[0] != "/v1/empty":
                client.h2.send_data(number, b"hel")
                client.flush()
                client.h2.send_data(number, b"lo")
                client.h2.send_data(number, b"", end_stream=True)
            else:
                client.h2.send_data(number, b"", end_stream=True)
            client.flush()
            found = client.wait([number], 5)[0]
        t.equal((found.status, found.body), (200, b"{}"), "answer")
        other = http1.post(proxy.address, "/v1/after", b"mine", {"x-request-id": f"after-{i}"})
        t.equal((other.status, other.reason), (200, "ok"), "the next client's answer")
    t.equal(endpoint.strays, [], "bytes at the endpoint that are no request")
    sent = b"" if form[0] == "/v1/empty" else b"hello"
    bodies = {request.body for request in endpoint.requests if (request.id or "").startswith("up-")}
    t.equal(bodies, {sent}, "bodies at the endpoint")
    t.equal(len(endpoint.requests), 21, "requests at the endpoint")
    healthy(t, proxy, "after")
    t.figure(f"{endpoint.connections} connections, {len(endpoint.strays)} strays")


@row(25, "flood of streams", word="streams", limit=40)
def streams(t):
    """10,000 streams opened at once on one connection -> all are answered or refused (REFUSED_STREAM,
    GOAWAY, 503); memory +<= 64 MiB; honest requests go on."""
    proxy = Proxy(t, pool([synthetic(t, 16, "constant:1ms")]), ready=1)
    healthy(t, proxy, "before")
    rss = proxy.rss()
    with Raw(proxy.address) as connection:
        connection.send(frame(SETTINGS, 1))
        taken = connection.send(b"".join(head(2 * i + 1, path="/v2/models/synthetic") for i in range(10_000)))
        found = connection.frames(4, until=(GOAWAY,))
        healthy(t, proxy, "during")
    answered = sum(1 for f in found if f[0] == HEADERS)
    reset = sum(1 for f in found if f[0] == RST_STREAM)
    t.figure(f"{answered} answered, {reset} refused, code {error_of(found)}, memory {(proxy.rss() - rss) / 2**20:+.1f} MiB")
    t.check(not taken or error_of(found) is not None or answered + reset >= 9_000, "streams hang")
    t.check(proxy.rss() - rss <= 64 << 20, "memory grew")
    healthy(t, proxy, "after")
