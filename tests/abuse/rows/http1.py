"""HTTP/1 that is too large, too much, or not by the letter."""

import select

from lab import http1
from lab.around import around, at_rest, healthy
from lab.endpoint import Endpoint
from lab.load import BODY
from lab.processes import INFER, Proxy, Worker, pool
from lab.row import row

HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n".encode()
SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
GET_V2 = b"GET /v2 HTTP/1.1\r\n"

# Vectors in which two readers could see two different requests: each gets 400, and its connection ends.
DESYNC = {
    "cl-te": HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "te-cl": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n" + SMUGGLED,
    "te-cl-0": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "te-te": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n" + SMUGGLED,
    "te-twice": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "te-list-twice": HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n" + SMUGGLED,
    "te-unknown": HEAD + b"transfer-encoding: xchunked\r\n\r\n" + SMUGGLED,
    "te-not-last": HEAD + b"transfer-encoding: chunked, gzip\r\n\r\n" + SMUGGLED,
    "te-quoted": HEAD + b'transfer-encoding: "chunked"\r\n\r\n' + SMUGGLED,
    "te-space": HEAD + b"transfer-encoding : chunked\r\n\r\n" + SMUGGLED,
    "te-tab": HEAD + b"transfer-encoding\t: chunked\r\n\r\n" + SMUGGLED,
    "te-vt": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + SMUGGLED,
    "te-nul": HEAD + b"transfer-encoding: chunked\0\r\n\r\n" + SMUGGLED,
    "te-http10": HEAD.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "cl-twice": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "cl-list": HEAD + b"content-length: 1, 2\r\n\r\nx",
    "cl-plus": HEAD + b"content-length: +1\r\n\r\nx",
    "cl-minus": HEAD + b"content-length: -1\r\n\r\nx",
    "cl-hex": HEAD + b"content-length: 0x1\r\n\r\nx",
    "cl-space": HEAD + b"content-length: 1 0\r\n\r\nx",
    "cl-empty": HEAD + b"content-length:\r\n\r\nx",
    "cl-huge": HEAD + b"content-length: 18446744073709551617\r\n\r\nx",
    "bare-lf": HEAD + b"content-length: 0\n\n",
    "bare-lf-all": HEAD.replace(b"\r\n", b"\n") + b"content-length: 0\n\n",
    "bare-cr": HEAD + b"a: b\rcontent-length: 5\r\n\r\n",
    "obs-fold": HEAD + b"folded: 1\r\n 2\r\ncontent-length: 0\r\n\r\n",
    "obs-fold-tab": HEAD + b"folded: 1\r\n\t2\r\ncontent-length: 0\r\n\r\n",
    "fold-first": f"POST {INFER} HTTP/1.1\r\n host: x\r\n\r\n".encode(),
    "nul-value": HEAD + b"a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "nul-name": HEAD + b"a\0b: c\r\ncontent-length: 0\r\n\r\n",
    "nul-target": b"GET /v2\0 HTTP/1.1\r\nhost: x\r\n\r\n",
    "space-name": HEAD + b"a b: c\r\ncontent-length: 0\r\n\r\n",
    "no-colon": HEAD + b"nonsense\r\ncontent-length: 0\r\n\r\n",
    "empty-name": HEAD + b": x\r\ncontent-length: 0\r\n\r\n",
    "chunk-lf": HEAD + b"transfer-encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    "chunk-ext-lf": HEAD + b"transfer-encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
    "chunk-negative": HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "chunk-hex": HEAD + b"transfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
    "chunk-huge": HEAD + b"transfer-encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n",
    "chunk-short": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
    "chunk-no-crlf": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n",
    "chunk-end-lf": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
    "chunk-empty-size": HEAD + b"transfer-encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n",
    "trailer-lf": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\nc: d\r\n\r\n",
}

# Not HTTP, or not what a server must take.
MALFORMED = {
    "no-host": GET_V2 + b"\r\n",
    "two-hosts": GET_V2 + b"host: a\r\nhost: b\r\n\r\n",
    "host-space": GET_V2 + b"host: a b\r\n\r\n",
    "target-space": b"GET /v2 /x HTTP/1.1\r\nhost: x\r\n\r\n",
    "target-none": b"GET HTTP/1.1\r\nhost: x\r\n\r\n",
    "target-relative": b"GET v2 HTTP/1.1\r\nhost: x\r\n\r\n",
    "target-control": b"GET /v2\x01 HTTP/1.1\r\nhost: x\r\n\r\n",
    "target-other-host": b"GET http://other/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "version-9": b"GET /v2 HTTP/9.9\r\nhost: x\r\n\r\n",
    "version-lower": b"GET /v2 http/1.1\r\nhost: x\r\n\r\n",
    "version-space": b"GET /v2  HTTP/1.1\r\nhost: x\r\n\r\n",
    "version-09": b"GET /v2\r\n\r\n",
    "method-odd": b"G(T /v2 HTTP/1.1\r\nhost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(40) + b"\r\n\r\n",
    "binary": bytes(range(128, 256)) + b"\r\n\r\n",
    "preface-cut": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + b"\r\n\r\n",
}


def echo_proxy(t, more="", **kw):
    """A proxy in front of a scripted endpoint that notes every request."""
    endpoint = Endpoint(t)
    return Proxy(t, pool([endpoint], more), ready=1, **kw), endpoint


def refused(t, address, name, data, before=b"", status=400):
    """Sends a vector; it is answered with `status` and the connection ends."""
    answer, closed = http1.raw(address, before + data, 3)
    found = http1.answers(answer)
    expected = ([200] if before else []) + [status]
    t.equal(found, expected, f"{name}: statuses")
    t.check(closed, f"{name}: the connection stays open")
    return answer


@row(24, "desync vectors", {"proxy": "first", "proxy, kept connection": "behind"}, limit=120)
def desync(t, form):
    """CL.TE, TE.CL, doubled TE, bare LF, folding, NUL, chunk oddities -> 400 invalid_request and close, and
    no second request ever reaches an endpoint."""
    proxy, endpoint = echo_proxy(t)
    before = HEAD + b"content-length: 2\r\n\r\n{}" if form[0] == "behind" else b""
    with around(t, proxy, "invalid_request", len(DESYNC)):
        for name, data in DESYNC.items():
            answer = refused(t, proxy.address, name, data, before)
            if not before:
                t.equal(http1.reason_of(answer), "invalid_request", f"{name}: reason")
    t.check("/smuggled" not in endpoint.paths(), "a smuggled request arrived")
    t.equal(len(endpoint.requests), 2 + (len(DESYNC) if before else 0), "requests at the endpoint")
    t.equal(endpoint.strays, [], "bytes at the endpoint that are no request")
    at_rest(t, proxy)
    t.figure(f"{len(DESYNC)} vectors, {endpoint.paths().count('/smuggled')} desyncs")


@row(24, "desync vectors", {"worker": "worker", "admin": "admin"}, limit=120)
def desync_elsewhere(t, form):
    """The same bytes at the worker and the admin listener: no second request is ever answered well, and
    both go on."""
    if form[0] == "worker":
        process = Worker(t)
        address, alive = process.address, "/v2/health/live"
    else:
        process, _ = echo_proxy(t)
        address, alive = process.admin, "/livez"
    served = 0
    for name, data in DESYNC.items():
        data = data.replace(b"/smuggled", alive.encode())
        answer, closed = http1.raw(address, data, 2)
        found = http1.answers(answer)
        served += found.count(200)
        t.check(200 not in found, f"{name}: the smuggled request was answered: {found}")
        if form[0] == "admin":
            t.equal(found[:1], [400], f"{name}: status")
            t.check(closed, f"{name}: the connection stays open")
    t.equal(http1.get(address, alive).status, 200, "the probe after")
    t.figure(f"{len(DESYNC)} vectors, {served} desyncs")


@row(23, "malformed requests", {"proxy": "proxy", "admin": "admin", "worker": "worker"}, limit=120)
def malformed(t, form):
    """What is not HTTP by the letter -> 4xx (or 505) and close; nothing reaches an endpoint."""
    if form[0] == "worker":
        process = Worker(t)
        address, endpoint, alive = process.address, None, "/v2/health/live"
    else:
        process, endpoint = echo_proxy(t)
        address = process.admin if form[0] == "admin" else process.address
        alive = "/livez" if form[0] == "admin" else "/v2/health/live"
    for name, data in MALFORMED.items():
        answer, closed = http1.raw(address, data, 2 if form[0] == "worker" else 3)
        found = http1.answers(answer)
        # A worker may keep a connection on which it refused a request that it could delimit.
        kept = form[0] == "worker" and found
        t.check(closed or kept, f"{name}: the connection stays open, answered {found}")
        ok = all(400 <= status < 500 or status == 505 for status in found)
        t.check(ok, f"{name}: answered {found}")
        if form[0] == "proxy":
            t.check(found, f"{name}: no answer")
    if endpoint:
        t.equal(endpoint.paths(), [], "requests at the endpoint")
    t.equal(http1.get(address, alive).status, 200, "the probe after")
    t.figure(f"{len(MALFORMED)} requests")


@row(23, "mutated requests", word="mutated", limit=90)
def mutated(t):
    """300 requests with random bytes changed -> each is answered or closed within its time, none hangs or
    panics, and one line and one count stand for each answer."""
    import random

    proxy, endpoint = echo_proxy(t, limits='header_timeout = "500ms"\nbody_timeout = "500ms"')
    seed = random.getrandbits(32)
    rng = random.Random(seed)
    t.figure(f"seed {seed}")
    samples = [HEAD + b"content-length: 2\r\n\r\n{}", GET_V2 + b"host: x\r\n\r\n",
               HEAD + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n\r\n"]
    healthy(t, proxy, "before")
    open_ones = 0
    for i in range(300):
        data = bytearray(samples[i % 3])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"\r\n\0 \t:/;,@\"{}|\\^<>%#?*\x7f\xc3\xff0aA")
        with http1.connect(proxy.address, 3) as s:
            s.sendall(data)
            # The end of the client's side: no answer that waits for more.
            s.shutdown(1)
            _, closed = http1.drain(s, 8)
            open_ones += not closed
    t.equal(open_ones, 0, "connections that did not end")
    t.check("panicked" not in proxy.messages(), "a panic")
    t.equal(endpoint.strays, [], "bytes at the endpoint that are no request")
    healthy(t, proxy, "after")
    at_rest(t, proxy)


HEADERS = {
    "101 fields": b"".join(b"a%d: b\r\n" % i for i in range(100)),
    "1000 fields": b"".join(b"a%d: b\r\n" % i for i in range(1000)),
    "70 KB in one field": b"a: " + b"x" * 70_000 + b"\r\n",
    "70 KB in 90 fields": b"".join(b"a%d: %s\r\n" % (i, b"x" * 780) for i in range(90)),
}


@row(22, "headers beyond 64 KiB or 100 fields", {name: name for name in HEADERS})
def headers(t, form):
    """A head that is too large -> exactly 431 headers_too_large and close."""
    proxy, endpoint = echo_proxy(t)
    data = GET_V2 + b"host: x\r\n" + HEADERS[form[0]] + b"\r\n"
    with around(t, proxy, "headers_too_large", 5):
        for _ in range(5):
            answer = refused(t, proxy.address, form[0], data, status=431)
            t.equal(http1.reason_of(answer), "headers_too_large", "reason")
    t.equal(len(endpoint.requests), 2, "requests at the endpoint")
    admin, closed = http1.raw(proxy.admin, data.replace(b"/v2", b"/livez"), 8)
    t.equal(http1.answers(admin)[:1], [431], "the admin listener's status")


@row(22, "headers just within the limits", word="within")
def headers_within(t):
    """99 fields and 60 KiB are taken."""
    proxy, _ = echo_proxy(t)
    pairs = {f"a{i}": "x" * 600 for i in range(95)}
    with around(t, proxy):
        t.equal(http1.post(proxy.address, INFER, BODY, pairs).status, 200, "status")


@row(21, "body beyond the limit", {"stated": "stated", "chunked": "chunked", "streamed path": "streamed"})
def large_body(t, form):
    """A body of more than limits.body, stated or in chunks -> 413 body_too_large; memory +<= 2 MiB beyond
    what is held."""
    proxy, endpoint = echo_proxy(t, limits='body = "4MiB"\nbuffer = "1MiB"')
    path = INFER if form[0] != "streamed" else "/v1/completions"
    top = f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode()
    with around(t, proxy, "body_too_large", 5):
        for i in range(5):
            if i == 2:
                # Memory that the first requests take once, such as threads' stacks, does not count.
                rss = proxy.rss()
            with http1.connect(proxy.address, 10) as s:
                if form[0] == "stated":
                    s.sendall(top + b"content-length: 4194305\r\n\r\nx")
                else:
                    s.sendall(top + b"transfer-encoding: chunked\r\n\r\n")
                    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
                    try:
                        for _ in range(80):
                            s.sendall(piece)
                    except OSError:
                        pass
                answer, closed = http1.drain(s, 10)
            t.check(closed, "the connection stays open")
            t.check(http1.answers(answer)[:1] in ([413], []) if form[0] != "stated"
                    else http1.answers(answer)[:1] == [413], f"answered {answer[:80]!r}")
        grown = proxy.rss() - rss
    t.figure(f"memory {grown / 2**20:+.1f} MiB")
    t.check(grown <= 2 * 2**20, f"memory grew by {grown} bytes")


@row(21, "chunk flood", {"1-byte chunks": b"1\r\nx\r\n", "long extensions": b"1;" + b"e" * 8000 + b"\r\nx\r\n",
                         "trailers": None}, word="flood of")
def chunk_flood(t, form):
    """A body of tiny chunks, of endless extensions or of endless trailers -> refused (413, 431 or 400) or
    taken up to the limit, with bounded memory and processor time."""
    proxy, _ = echo_proxy(t, limits='body = "1MiB"\nbody_timeout = "5s"')
    healthy(t, proxy, "before")
    rss, cpu = proxy.rss(), proxy.cpu()
    chunk = form[0]
    with http1.connect(proxy.address, 8) as s:
        s.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        sent, most = 0, 48 << 20
        try:
            if chunk is None:
                s.sendall(b"1\r\nx\r\n0\r\n")
                chunk = b"a: " + b"b" * 1000 + b"\r\n"
            # Until there is an answer, or the end.
            while sent < most and not select.select([s], [], [], 0)[0]:
                s.sendall(chunk * max(1, 60_000 // len(chunk)))
                sent += len(chunk) * max(1, 60_000 // len(chunk))
        except OSError:
            pass
        answer, closed = http1.drain(s, 8)
    found = http1.answers(answer)
    t.check(closed, f"still open after {sent} bytes, answered {found}")
    t.check(all(status in (400, 408, 413, 431) for status in found), f"answered {found}")
    t.check(sent < most, f"{sent} bytes were taken")
    t.figure(f"ended after {sent >> 10} KiB, memory {(proxy.rss() - rss) / 2**20:+.1f} MiB, "
             f"{proxy.cpu() - cpu:.2f} s of processor time")
    t.check(proxy.rss() - rss <= 6 << 20, "memory grew")
    healthy(t, proxy, "after")


@row(49, "unknown models and odd characters in log fields", limit=90)
def series(t):
    """2,000 unknown model names (20,000 with --full), CR, LF, quotes and ANSI sequences in logged fields ->
    at most 1,000 series, and one valid JSON line a request."""
    endpoint = Endpoint(t)
    proxy = Proxy(t, pool([endpoint], route='models = ["synthetic"]'), ready=1)
    count = 20_000 if t.full else 2_000
    odd = ["%0d%0a", "%1b%5b31m", "%22%7d", "%00", "%e2%80%a8"]
    with around(t, proxy, "no_route", count):
        connection = http1.Connection(proxy.address)
        for i in range(count):
            path = f"/v2/models/m{i}{odd[i % len(odd)]}/infer"
            answer = connection.request("POST", path, {"x-request-id": f"r{i}"}, b"{}")
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = http1.Connection(proxy.address)
        connection.close()
        # A name that is no UTF-8 is refused before it is routed.
        answer = http1.post(proxy.address, "/v2/models/m%ff/infer")
        t.equal((answer.status, answer.reason), (400, "invalid_request"), "a name that is no UTF-8")
    text = proxy.get("/metrics").text
    names = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    t.figure(f"{count} names, {names} series, {len(proxy.lines())} lines")
    t.check(names <= 1000, f"{names} series")
    raw = proxy.out_path.read_bytes()
    t.check(b"\x1b" not in raw and b"\r" not in raw, "control characters in the log")
    t.equal(sum(1 for line in proxy.lines() if line["request_id"] == "r7"), 1, "lines of one request")
