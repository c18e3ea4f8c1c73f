"""Endpoints that die, stop, lie, drip, or answer without being asked."""

import threading
import time

from lab import http1, http2
from lab.around import REQUESTS, around, at_rest, healthy
from lab.endpoint import OK, Endpoint, H2Endpoint, gone_within, grpc_ok, reply
from lab.kinds import KINDS, STREAMED, ask_once, clients
from lab.load import BODY, errors, median_ms, quantile
from lab.processes import INFER, SIGCONT, SIGKILL, SIGSTOP, Proxy, Relay, pool, synthetic
from lab.row import eventually, row

GRPC_OR_REST = {"HTTP/1": "h1", "HTTP/2": "h2", "gRPC": "grpc"}


def fleet(t, count=3, slots=4, service="constant:5ms", more="", route="", **kw):
    workers = [synthetic(t, slots, service) for _ in range(count)]
    return workers, Proxy(t, pool(workers, more, route), ready=count, **kw)


def out_of_rotation(proxy, address, seconds=5):
    """How long until the endpoint is not ready."""
    began = time.monotonic()
    eventually(lambda: proxy.endpoints()[address]["health"] != "ready", seconds, 0.01)
    return time.monotonic() - began


@row(1, "kill -9 of one of three", GRPC_OR_REST)
def killed(t, form):
    """A worker is killed under load -> 0 client errors, out of rotation within 1 s."""
    workers, proxy = fleet(t)
    healthy(t, proxy, "before")
    with clients(proxy.address, form[0], 6) as load:
        load.wait(200)
        workers[0].signal(SIGKILL)
        took = out_of_rotation(proxy, workers[0].address)
        load.wait(20_000 if t.full else 1000, 100)
        outcomes = load.stop()
    t.figure(f"{len(outcomes)} requests, {sum(errors(outcomes).values())} errors, out after {took:.2f} s")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.check(took <= 1.0, f"out of rotation only after {took:.2f} s")
    t.check(proxy.metric("forebay_retries_total") <= len(outcomes), "retries")
    logged = lambda: sum(line["reason"] == "ok" for line in proxy.lines())  # noqa: E731
    eventually(lambda: logged() == len(outcomes) + 1, 5)
    t.equal(logged(), len(outcomes) + 1, "lines with ok")
    healthy(t, proxy, "after")
    at_rest(t, proxy)


@row(2, "SIGSTOP of one of three", GRPC_OR_REST, alone=True)
def stopped(t, form):
    """A worker is stopped under load -> attempt timeout, hedge, ejection: 0 errors, p99 <= the attempt
    timeout + 50 ms."""
    workers, proxy = fleet(t, more='retry = { attempt_timeout = "300ms" }\nhedge = {}')
    healthy(t, proxy, "before")
    with clients(proxy.address, form[0], 6, pause=0.01) as load:
        load.wait(300)
        workers[0].signal(SIGSTOP)
        time.sleep(3)
        outcomes = load.stop()
    workers[0].signal(SIGCONT)
    p99 = quantile([o.seconds for o in outcomes], 0.99)
    t.figure(f"{len(outcomes)} requests, p99 {p99:.0f} ms, slowest {quantile([o.seconds for o in outcomes], 1):.0f} ms")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.check(p99 <= 350, f"p99 {p99:.0f} ms")
    t.eventually("its return", lambda: proxy.ready() == 3, 15)
    healthy(t, proxy, "after")


@row(3, "one worker ten times slower", alone=True)
def slower(t):
    """A worker becomes ten times slower -> its share is at most 20% of fair within 5 s."""
    workers, proxy = fleet(t, service="constant:10ms")
    healthy(t, proxy, "before")
    answered = lambda w: proxy.metric("forebay_attempts_total", f'endpoint="{w.address}"', 'outcome="answered"')  # noqa: E731
    with clients(proxy.address, "h1", 6) as load:
        load.wait(200)
        http1.post(workers[0].address, "/slow", b"10")
        time.sleep(5)
        before = [answered(w) for w in workers]
        time.sleep(3)
        done = [answered(w) - b for w, b in zip(workers, before)]
        outcomes = load.stop()
    share = done[0] / (sum(done) / 3)
    t.figure(f"{share:.0%} of its fair share")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.check(share <= 0.2, f"its share is {share:.0%} of fair")


@row(4, "flapping with a period of 1 s", {"requests fail": "requests", "connections are refused": "refused"}, limit=40)
def flapping(t, form):
    """An endpoint fails every other half second -> ejected with back-off: at most one return a back-off
    window, and 0 errors for clients."""
    good = Endpoint(t)
    bad = {"now": False}

    def answer(request, s, _):
        if bad["now"]:
            return False
        s.sendall(OK)
        return True

    flappy = Endpoint(t, answer, probe=answer if form[0] == "refused" else None)
    proxy = Proxy(t, pool([good, flappy], 'ejection = { base_time = "1s" }'), ready=2)
    healthy(t, proxy, "before")
    returns, was, began = 0, True, time.monotonic()
    with clients(proxy.address, "h1", 3, pause=0.01) as load:
        while (now := time.monotonic() - began) < 10:
            bad["now"] = now % 1 >= 0.5
            ready = proxy.endpoints()[flappy.address]["health"] == "ready"
            returns += ready and not was
            was = ready
            time.sleep(0.02)
        outcomes = load.stop()
    t.figure(f"{returns} returns in 10 s, {len(outcomes)} requests")
    t.equal(dict(errors(outcomes)), {}, "errors")
    # Windows of 1, 2 and 4 s, and the first fall.
    t.check(returns <= 4, f"{returns} returns")
    bad["now"] = False
    healthy(t, proxy, "after")


# name -> (bytes, reason when it is held; either may be said where none stands)
LIES = {
    "nothing": (b"", "endpoint_reset"),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le", "endpoint_reset"),
    "less than its length": (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc", "endpoint_reset"),
    "chunks without an end": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "endpoint_reset"),
    "half a chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nabc", "endpoint_reset"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid_response"),
    "a broken status": (b"HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n\r\n{}", "invalid_response"),
    "status 99": (b"HTTP/1.1 99 OK\r\ncontent-length: 2\r\n\r\n{}", "invalid_response"),
    "a broken header": (b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 2\r\n\r\n{}", "invalid_response"),
    "broken chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n", None),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ", "invalid_response"),
    "a length that is none": (b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\n{}", "invalid_response"),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200_000, "invalid_response"),
    "endless 1xx": (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, None),
}


def lying(data, connections_end=True):
    def answer(request, s, _):
        if request.path == "/v2/models/good/infer":
            s.sendall(OK)
            return True
        s.sendall(data)
        return not connections_end

    return answer


@row(5, "an endpoint's wrong or truncated answer", {name: name for name in LIES})
def lies(t, form):
    """Held inferences -> 502 with endpoint_reset or invalid_response, counted and logged, and never a body
    that is not whole; beside a good endpoint -> 200 from that."""
    data, reason = LIES[form[0]]
    endpoint = Endpoint(t, lying(data))
    proxy = Proxy(t, pool([endpoint], "ejection = { consecutive_failures = 0, success_rate = \"0%\" }"), ready=1)
    with around(t, proxy, None, path="/v2/models/good/infer"):
        bad = {}
        for _ in range(5):
            answer = http1.post(proxy.address, INFER, BODY)
            bad[answer.status, answer.reason] = bad.get((answer.status, answer.reason), 0) + 1
        words = {r for _, r in bad}
        t.check(all(status == 502 for status, _ in bad), f"answered {bad}")
        t.check(words <= {"endpoint_reset", "invalid_response"}, f"answered {bad}")
        t.check(reason is None or reason in words, f"expected {reason}, found {bad}")
        eventually(lambda: proxy.metric(REQUESTS, 'status="502"') == 5, 3)
        t.equal(proxy.metric(REQUESTS, 'status="502"'), 5, "counted")
        lines = lambda: sum(line["status"] == 502 for line in proxy.lines())  # noqa: E731
        eventually(lambda: lines() == 5, 3)
        t.equal(lines(), 5, "lines")
    good = Endpoint(t)
    both = Proxy(t, pool([endpoint, good], 'policy = "round_robin"'), ready=2)
    found = [http1.post(both.address, INFER, BODY) for _ in range(20)]
    t.equal({(a.status, a.body) for a in found}, {(200, b"{}")}, "answers beside a good endpoint")
    t.figure(f"{bad}")


@row(5, "a streamed answer that breaks off", word="stream,", forms={"length": b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(5000),
     "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n" + bytes(5000) + b"\r\n",
     "broken chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"})
def cut_stream(t, form):
    """An answer that breaks off after it has begun -> the client can tell (HTTP/1: the connection ends
    before the body does; HTTP/2: a reset), and it is counted as endpoint_reset or invalid_response."""
    endpoint = Endpoint(t, lying(form[0]))
    proxy = Proxy(t, pool([endpoint]), ready=1)
    healthy(t, proxy, "before", "/v2/models/good/infer")
    whole = 0
    for _ in range(5):
        try:
            whole += http1.post(proxy.address, STREAMED, BODY).status == 200
        except OSError:
            pass
        found = http2.request(proxy.address, "POST", STREAMED, {}, BODY)
        whole += found.status == 200 and found.ended
    t.equal(whole, 0, "answers that looked whole")
    bad = lambda: sum(proxy.metric(REQUESTS, f'reason="{r}"') for r in ("endpoint_reset", "invalid_response"))  # noqa: E731
    eventually(lambda: bad() == 10, 3)
    t.equal(bad(), 10, "counted")
    healthy(t, proxy, "after", "/v2/models/good/infer")


@row(6, "half-open TCP", KINDS, limit=60)
def half_open(t, form):
    """The way to one of two endpoints goes dead without a word -> out of rotation within 3 s; requests that
    are there are cancelled and made elsewhere: none hangs, none fails."""
    kind = form[0]
    make = (lambda: H2Endpoint(t)) if kind == "grpc" else (lambda: Endpoint(t))
    near, far = make(), make()
    relay = Relay(t, far.address)
    proxy = Proxy(t, pool([near.address, relay.address]), ready=2)
    with clients(proxy.address, kind, 6, pause=0.02) as load:
        load.wait(100)
        relay.open.clear()
        cut = time.monotonic()
        took = out_of_rotation(proxy, relay.address)
        time.sleep(4)
        outcomes = load.stop()
    t.figure(f"out after {took:.2f} s, slowest {quantile([o.seconds for o in outcomes], 1):.0f} ms")
    t.check(took <= 3, f"out of rotation only after {took:.2f} s")
    failed = errors(outcomes)
    if kind == "stream":
        # A request that is not held can't be sent elsewhere: it gets an error that says so.
        failed = {key: n for key, n in failed.items() if key[0] not in (502, 503, 504)}
    t.equal(dict(failed), {}, "errors")
    slow = [o for o in outcomes if o.seconds > 4]
    t.equal(len(slow), 0, "requests that took more than 4 s")
    t.check(len(outcomes) > 200 and time.monotonic() > cut, "clients stood still")
    relay.open.set()


@row(7, "a refused connection", GRPC_OR_REST, alone=True)
def refused(t, form):
    """An endpoint refuses before a probe has seen it -> the next one, with at most 5 ms added (median of
    those that were retried), or twice what a request takes on a busy machine."""
    kind = form[0]
    make = (lambda: H2Endpoint(t)) if kind == "grpc" else (lambda: Endpoint(t))
    added, plain = [], []
    for _ in range(6):
        stays, goes = make(), make()
        proxy = Proxy(t, pool([stays, goes], 'policy = "round_robin"', probe='interval = "20s", fast_interval = "5s"'), ready=2)
        for i in range(6):
            began = time.monotonic()
            ask_once(proxy.address, kind)
            plain += [time.monotonic() - began] if i > 1 else []
        goes.close()
        for _ in range(4):
            retried = proxy.metric("forebay_retries_total")
            began = time.monotonic()
            status, reason, _ = ask_once(proxy.address, kind)
            took = time.monotonic() - began
            t.equal((status, reason), (200, "ok"), "an answer")
            added += [took] if proxy.metric("forebay_retries_total") > retried else []
        proxy.kill()
    t.require(added, "nothing was retried")
    extra = median_ms(added) - median_ms(plain)
    t.figure(f"{extra:+.1f} ms over {len(added)} retries")
    t.check(extra <= max(5, 2 * median_ms(plain)), f"{extra:.1f} ms added")


@row(7, "an endpoint whose queue of connections is full", {"HTTP/1": "h1", "HTTP/1, streamed path": "stream", "Layer 4": "tcp"},
     word="overflow,")
def overflow(t, form):
    """The kernel of the only endpoint drops the first packet of a connection, because it accepts none for a moment ->
    the connection is made by the one that the proxy's kernel sends a second later: the request is answered, and
    nothing is counted as failed."""
    kind = form[0]
    endpoint = Endpoint(t)
    layer4 = '[[listener]]\naddress = "127.0.0.1:0"\nprotocol = "tcp"\npool = "test"\n'
    proxy = Proxy(t, layer4 + pool([endpoint], "idle_timeout = \"1ms\"", probe='interval = "20s"'), ready=1)
    address = proxy.listeners[1 if kind == "tcp" else 0]
    filling = endpoint.overflow()
    asked = threading.Thread(target=lambda: found.append(ask_once(address, "h1" if kind == "tcp" else kind)))
    found, began = [], time.monotonic()
    asked.start()
    time.sleep(0.4)
    for s in filling:
        s.close()
    endpoint.accepts.set()
    asked.join()
    took = time.monotonic() - began
    t.figure(f"answered after {took:.2f} s")
    t.equal(found[0][:2], (200, "ok"), "the answer")
    t.check(took >= 0.9, "its first packet was not dropped")
    t.equal(proxy.metric("forebay_attempts_total", 'outcome="connect_failed"'), 0, "attempts that failed")


@row(8, "a partition that heals", {"HTTP/1": "h1", "gRPC": "grpc"}, limit=60)
def partition(t, form):
    """An endpoint behind a cut is unreachable for 4 s -> back in use within 5 s of the healing, no errors
    meanwhile."""
    kind = form[0]
    make = (lambda: H2Endpoint(t)) if kind == "grpc" else (lambda: Endpoint(t))
    near, far = make(), make()
    relay = Relay(t, far.address)
    proxy = Proxy(t, pool([near.address, relay.address]), ready=2)
    with clients(proxy.address, kind, 4, pause=0.02) as load:
        load.wait(50)
        relay.open.clear()
        time.sleep(4)
        t.check(proxy.endpoints()[relay.address]["health"] != "ready", "still ready while cut off")
        relay.open.set()
        healed, served = time.monotonic(), len(far.requests)
        eventually(lambda: len(far.requests) > served + 3 and proxy.ready() == 2, 8)
        took = time.monotonic() - healed
        outcomes = load.stop()
    t.figure(f"back after {took:.1f} s")
    t.check(took <= 5, f"back only after {took:.1f} s")
    t.equal(dict(errors(outcomes)), {}, "errors")


@row(9, "cold start", KINDS)
def cold(t, form):
    """An endpoint that is not ready yet -> gets nothing; 503 no_endpoint meanwhile, and it is used as soon as
    it says that it is ready."""
    warm = threading.Event()

    def probe(request, s, _):
        s.sendall(OK if warm.is_set() else reply(b"{}", "503 Service Unavailable"))
        return True

    endpoint = Endpoint(t, probe=probe)
    proxy = Proxy(t, pool([endpoint]))
    kind = "h2" if form[0] == "grpc" else form[0]
    if form[0] == "grpc":
        found = ask_once(proxy.address, "grpc")
        t.equal(found[:2], (14, "no_endpoint"), "gRPC before it is ready")
    for _ in range(10):
        t.equal(ask_once(proxy.address, kind)[:2], (503, "no_endpoint"), "before it is ready")
    t.equal(len(endpoint.requests), 0, "requests before it is ready")
    warm.set()
    proxy.wait_ready(1)
    t.equal(ask_once(proxy.address, kind)[0], 200, "after")


def live(address, kind):
    """A request that the proxy answers itself, on a connection of its own."""
    if kind == "grpc":
        http2.request(address, "POST", http2.GRPC_LIVE, http2.GRPC, http2.grpc_message())
    elif kind.startswith("h2"):
        http2.request(address, "GET", "/v2/health/live")
    else:
        http1.get(address, "/v2/health/live")


@row(10, "all endpoints down", KINDS, alone=True)
def all_down(t, form):
    """Nothing in rotation -> 503 no_endpoint with Retry-After, at once: within 10 ms, or twice what an answer of the
    proxy's own takes on a busy machine (medians of requests in turn)."""
    endpoints = [Endpoint(t), Endpoint(t)]
    proxy = Proxy(t, pool(endpoints), ready=2)
    healthy(t, proxy, "before")
    for endpoint in endpoints:
        endpoint.close()
    proxy.wait_ready(0)
    times, own = [], []
    for _ in range(20):
        began = time.monotonic()
        live(proxy.address, form[0])
        own.append(time.monotonic() - began)
        began = time.monotonic()
        status, reason, _ = ask_once(proxy.address, form[0])
        times.append(time.monotonic() - began)
        t.equal((status, reason), (14 if form[0] == "grpc" else 503, "no_endpoint"), "answer")
    if form[0] == "h1":
        t.check("retry-after" in http1.post(proxy.address, INFER).headers, "no Retry-After")
    t.figure(f"median {median_ms(times):.1f} ms, an answer of its own {median_ms(own):.1f} ms")
    t.check(median_ms(times) <= max(10, 2 * median_ms(own)), f"median {median_ms(times):.1f} ms")
    eventually(lambda: proxy.metric(REQUESTS, 'reason="no_endpoint"') >= 20, 3)
    counted = int(proxy.metric(REQUESTS, 'reason="no_endpoint"'))
    lines = lambda: sum(line["reason"] == "no_endpoint" for line in proxy.lines())  # noqa: E731
    eventually(lambda: lines() >= counted, 3)
    t.equal(lines(), counted, "lines")


STRAY = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nstray"


@row("P7", "stray bytes of an endpoint", {"with the answer": 0.0, "a moment later": 0.05, "an empty line": b"\r\n",
     "half a head": b"HTTP/1.1 200 OK\r\n"})
def stray(t, form):
    """Bytes that an endpoint sends unasked -> its connection is closed, and they are given to nobody: each
    client gets the answer to its own request."""
    late = form[0] if isinstance(form[0], float) else 0.02
    data = form[0] if isinstance(form[0], bytes) else STRAY

    def answer(request, s, _):
        own = request.headers.get("x-request-id", "none").encode()
        s.sendall(reply(own) + (data if late == 0.0 else b""))
        if late:
            threading.Timer(late, lambda: quietly(s, data)).start()
        return True

    endpoint = Endpoint(t, answer)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    wrong = []
    with http1.Connection(proxy.address) as honest:
        for i in range(40):
            path = (INFER, STREAMED, "/v2/models/synthetic")[i % 3]
            method = "GET" if i % 3 == 2 else "POST"
            found = honest.request(method, path, {"x-request-id": f"own-{i}"}, None if method == "GET" else BODY)
            if (found.status, found.body) != (200, f"own-{i}".encode()):
                wrong.append((i, found.status, found.reason, found.body[:40]))
            if found.headers.get("connection") == "close":
                honest.close()
                honest = http1.Connection(proxy.address)
            if late:
                # On a connection that is used again before they come, they can't be told from its answer.
                time.sleep(late + 0.05)
    t.figure(f"{len(wrong)} of 40 wrong, {endpoint.connections} connections")
    t.equal(wrong, [], "wrong answers")


def quietly(s, data):
    try:
        s.sendall(data)
    except OSError:
        pass


@row("P8", "PING to gRPC endpoints", {"silent unary call": "unary", "idle stream": "stream"}, idle=True, limit=80)
def pings(t, form):
    """A call that is silent for 45 s -> no more than one PING per data sent: gRPC's own servers hang up at
    the third (too_many_pings)."""
    done = threading.Event()
    t.stack.callback(done.set)

    def answer(head, body):
        if "ModelInfer" in head[":path"] and not head[":path"].endswith("Live"):
            done.wait(60)
        return grpc_ok(head, body)

    endpoint = H2Endpoint(t, answer)
    proxy = Proxy(t, pool([endpoint], route='deadline = "80s"'), ready=1)
    with http2.Client(proxy.address) as client:
        path = http2.GRPC_INFER if form[0] == "unary" else "/inference.GRPCInferenceService/ModelStreamInfer"
        number = client.open("POST", path, http2.GRPC, http2.infer_message(), end=form[0] == "unary")
        began = time.monotonic()
        while time.monotonic() - began < 45 and not client.streams[number].done:
            client.pump(1)
        state = client.streams[number]
        t.figure(f"{len(endpoint.pings)} PINGs in {time.monotonic() - began:.0f} s")
        t.check(not state.done, f"the call ended: {state}")
        t.check(len(endpoint.pings) <= 1, f"{len(endpoint.pings)} PINGs")


@row("P8", "requests at an endpoint that probes find dead", GRPC_OR_REST, word="dead,", limit=60)
def dead_requests(t, form):
    """An endpoint stops while requests are there, no attempt_timeout is set -> they are cancelled as soon as
    probes fail and made elsewhere: all answered within 5 s, not at their deadline of 30 s."""
    kind = form[0]
    workers, proxy = fleet(t, 2, 8, "constant:300ms")
    with clients(proxy.address, kind, 8, timeout=20) as load:
        load.wait(16)
        workers[0].signal(SIGSTOP)
        time.sleep(6)
        outcomes = load.stop()
    workers[0].signal(SIGCONT)
    slowest = max(o.seconds for o in outcomes)
    t.figure(f"{len(outcomes)} requests, slowest {slowest:.1f} s")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.check(slowest <= 5, f"a request took {slowest:.1f} s")


def dripping(part):
    def answer(request, s, endpoint):
        head, body = {
            "head": (b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 100, b""),
            "body": (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"b" * 1000),
            "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nc\r\n" * 300),
            "silent body": (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbbb", b""),
        }[part]
        step = 6 if part == "chunks" else 1
        if part == "head":
            head, body = b"", head
        s.sendall(head)
        for i in range(0, len(body), step):
            s.sendall(body[i:i + step])
            if gone_within(s, 0.5):
                endpoint.abandoned += 1
                return False
        endpoint.abandoned += gone_within(s, 30)
        return False

    return answer


DRIPS = {f"{part}, {name}": (part, kind) for part in ("head", "body", "chunks", "silent body")
         for name, kind in (("HTTP/1", "h1"), ("HTTP/1, streamed path", "stream"), ("HTTP/2", "h2"),
                            ("HTTP/2, streamed path", "h2 stream"))}


@row("P14", "endpoints that drip", DRIPS, limit=40)
def drips(t, form):
    """An endpoint that drips its head or body beyond the request's deadline of 2 s -> ends at the deadline,
    with 504 if nothing was sent, cut otherwise; what was streamed came as it came."""
    part, kind = form
    endpoint = Endpoint(t, dripping(part))
    proxy = Proxy(t, pool([endpoint], route='deadline = "2s"'), ready=1)
    began, first, status, ended, body = time.monotonic(), None, None, False, b""
    if kind.startswith("h2"):
        with http2.Client(proxy.address) as client:
            number = client.open("POST", INFER if kind == "h2" else STREAMED, {"content-length": str(len(BODY))}, BODY)
            stream = client.streams[number]
            while time.monotonic() - began < 12 and not stream.done:
                client.pump(0.1)
                if stream.body and first is None:
                    first = time.monotonic() - began
            status, ended, body = stream.status, stream.ended, stream.body
            done = stream.done
    else:
        with http1.connect(proxy.address, 12) as s:
            s.sendall(http1.head("POST", INFER if kind == "h1" else STREAMED, {"content-length": len(BODY)}) + BODY)
            found, done = b"", False
            while time.monotonic() - began < 12 and not done:
                more, closed = http1.drain(s, 0.1)
                found += more
                top, _, body = found.partition(b"\r\n\r\n")
                if body and first is None:
                    first = time.monotonic() - began
                status = int(top[9:12]) if top else None
                # A refusal is whole; the connection may stay.
                ended = status == 504 and b"}" in body
                done = closed or ended
    took = time.monotonic() - began
    t.figure(f"ended after {took:.1f} s with {status}, first bytes after {first if first is None else round(first, 1)} s")
    t.check(done, f"still going after {took:.1f} s")
    t.check(took <= 3, f"ended only after {took:.1f} s")
    held = kind in ("h1", "h2")
    if held or part == "head":
        t.equal(status, 504, "status")
    else:
        t.equal(status, 200, "status of what had begun")
        t.check(first is not None and first < 1.5, f"first bytes of the body after {first} s")
        t.check(not (kind.startswith("h2") and ended), "the cut answer looks whole")
    reasons = lambda: [line["reason"] for line in proxy.lines()]  # noqa: E731
    eventually(reasons, 3)
    t.equal(reasons(), ["deadline_exceeded"], "reason in the log")
    t.check(eventually(lambda: endpoint.abandoned == 1, 2), "the endpoint is not let go")
    at_rest(t, proxy)


@row("P17", "the only endpoint is busy and its probes are silent", {"streaming": "stream", "held": "held"}, limit=40)
def busy(t, form):
    """The only endpoint streams tokens and answers no probe meanwhile -> progress on a request is better
    evidence: a second request is sent there, not refused with 503."""
    streaming = threading.Event()

    def probe(request, s, _):
        if streaming.is_set():
            gone_within(s, 30)
            return False
        s.sendall(OK)
        return True

    def answer(request, s, _):
        if request.path == STREAMED:
            streaming.set()
            s.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(25):
                s.sendall(b"5\r\ntoken\r\n")
                time.sleep(0.2)
            s.sendall(b"0\r\n\r\n")
            return True
        s.sendall(OK)
        return True

    endpoint = Endpoint(t, answer, probe)
    proxy = Proxy(t, pool([endpoint], probe='interval = "300ms", timeout = "200ms", fast_interval = "50ms"'), ready=1)
    found = {}
    thread = threading.Thread(target=lambda: found.update(stream=http1.post(proxy.address, STREAMED, BODY, timeout=20)))
    thread.start()
    t.eventually("the stream", streaming.is_set)
    time.sleep(2)
    path = "/v1/embeddings" if form[0] == "stream" else INFER
    words = []
    for _ in range(5):
        answer_now = http1.post(proxy.address, path, BODY)
        words.append((answer_now.status, answer_now.reason))
        time.sleep(0.1)
    thread.join()
    t.equal(words, [(200, "ok")] * 5, "answers while it streams")
    t.equal((found["stream"].status, found["stream"].body), (200, b"token" * 25), "the streamed answer")


@row("P17", "nothing in rotation, endpoints down only by their probes", word="down,",
     forms={"HTTP/1": "h1", "HTTP/1, streamed path": "stream", "HTTP/2": "h2"})
def down_by_probe(t, form):
    """All endpoints' probes fall silent, while requests would be answered -> they are still tried."""
    silent = threading.Event()

    def probe(request, s, _):
        if silent.is_set():
            gone_within(s, 10)
            return False
        s.sendall(OK)
        return True

    endpoint = Endpoint(t, None, probe)
    proxy = Proxy(t, pool([endpoint], probe='interval = "300ms", timeout = "200ms", fast_interval = "50ms"'), ready=1)
    silent.set()
    time.sleep(1.5)
    found = [ask_once(proxy.address, form[0])[:2] for _ in range(5)]
    t.equal(found, [(200, "ok")] * 5, "answers")
