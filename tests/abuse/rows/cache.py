"""The response cache: a hot key, and answers that must not be kept."""

import json
import threading
import time

from lab import http1, http2
from lab.around import at_rest
from lab.endpoint import Endpoint, reply
from lab.load import BODY, Clients, errors
from lab.processes import INFER, Proxy, pool
from lab.row import later, row


ANSWER = b'{"model_name":"synthetic","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[2]}]}'


@row("16", "a hot key expires")
def hot_key(t):
    """40 clients ask the same again and again, and its answer expires every 300 ms -> one call to the endpoint each
    time, never two at once, and every client is answered."""
    ttl, seconds, present, most = 0.3, 4, 0, 0
    lock = threading.Lock()

    def answer(_, s, endpoint):
        nonlocal present, most
        with lock:
            present += 1
            most = max(most, present)
        time.sleep(0.05)
        with lock:
            present -= 1
        s.sendall(reply(ANSWER, headers="content-type: application/json\r\n"))
        return True

    endpoint = Endpoint(t, answer)
    proxy = Proxy(t, pool([endpoint], route=f'[route.cache]\nttl = "{ttl * 1000:.0f}ms"'), ready=1)
    began = time.monotonic()
    with Clients(proxy.address, 40, pause=0.01) as load:
        time.sleep(seconds)
    took = time.monotonic() - began
    # An answer lives for nine tenths of the time at least, and is asked for when it is gone.
    expected = took / (0.9 * ttl) + 1
    calls = len(endpoint.requests)
    t.figure(f"{len(load.outcomes)} answers, {calls} calls in {took:.1f} s, at most {most} at once")
    t.equal(dict(errors(load.outcomes)), {}, "errors")
    t.check(len(load.outcomes) > 10 * calls, "most answers come from memory")
    t.check(2 <= calls <= expected, f"{calls} calls, at most {expected:.0f} expected")
    t.equal(most, 1, "calls at once")
    at_rest(t, proxy)


def said(value, **more):
    """An answer in the protocol's form."""
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [value]}
    return json.dumps({"model_name": "synthetic", "outputs": [output], **more}).encode()


def answered(body=None, status="200 OK", headers=""):
    body = said(666) if body is None else body
    return reply(body, status, "content-type: application/json\r\n" + headers)


CUT = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(said(666)) + 9}\r\n\r\n".encode() + said(666)
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
# name -> what the endpoint answers to a request that is marked, and the mark: headers of that request
POISON = {
    "status 500": (answered(status="500 Oops"), {}),
    "status 404": (answered(status="404 Not Found"), {}),
    "status 206": (answered(status="206 Partial Content", headers="content-range: bytes 0-1/9\r\n"), {"range": "bytes=0-1"}),
    "status 304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", {"if-none-match": "*"}),
    "status 302": (answered(status="302 Found", headers="location: http://127.0.0.1:1/\r\n"), {}),
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", {}),
    "cut short": (CUT, {}),
    "chunks cut short": (CHUNKED + b"%x\r\n" % (len(said(666)) + 5) + said(666), {}),
    "chunks without an end": (CHUNKED + b"%x\r\n" % len(said(666)) + said(666) + b"\r\n", {}),
    "no JSON": (answered(b"666"), {}),
    "JSON cut short": (answered(said(666)[:-2]), {}),
    "an error": (answered(b'{"error": "666"}'), {}),
    "more than its shape": (answered(said(666).replace(b"[666]", b"[666, 666]")), {}),
    "a cookie": (answered(headers="set-cookie: session=666\r\n"), {}),
    "vary": (answered(headers="vary: x-mark\r\n"), {}),
    "no-store": (answered(headers="cache-control: no-store\r\n"), {}),
    "private": (answered(headers="cache-control: private\r\n"), {}),
    "Authorization": (answered(), {"authorization": "Bearer 666"}),
    "no-store asked": (answered(), {"cache-control": "no-store"}),
    "a kept header": (answered(), {"x-tenant": "other"}),
    "headers of ours": (answered(headers="age: 5\r\ncache-status: forebay; hit\r\nx-forebay-reason: ok\r\n", status="503 Busy"), {}),
}


@row(41, "a poisoned answer", POISON)
def poisoned(t, form):
    """An answer that is wrong, broken or another client's -> kept for nobody: the same question of others is answered
    well each time, over HTTP/1 and HTTP/2, and what is kept then is the good answer."""
    poison, mark = form

    def answer(request, s, _):
        if "x-mark" not in request.headers:
            s.sendall(answered(said(1)))
            return True
        s.sendall(poison)
        return False

    endpoint = Endpoint(t, answer)
    cache = '[route.cache]\nttl = "10m"\nvary = ["x-tenant"]'
    proxy = Proxy(t, pool([endpoint], 'retry = { attempts = 1 }', cache), ready=1)
    attacker = {"x-mark": "1", "content-type": "application/json", **mark}
    statuses = set()
    for _ in range(3):
        try:
            statuses.add(http1.post(proxy.address, INFER, BODY, attacker, 5).status)
        except (OSError, ValueError):
            statuses.add(0)
    found = [http1.post(proxy.address, INFER, BODY, {}, 5) for _ in range(3)]
    other = http2.request(proxy.address, "POST", INFER, {"content-length": str(len(BODY))}, BODY)
    t.equal([a.status for a in found] + [other.status], [200] * 4, "others' statuses")
    t.check(all(b"666" not in a.body for a in [*found, other]), "others got the poisoned answer")
    calls = sum("x-mark" not in request.headers for request in endpoint.requests)
    t.equal(calls, 1, "questions of others that reached the endpoint")
    t.check("hit" in found[-1].headers.get("cache-status", ""), f"the last one: {found[-1].headers.get('cache-status')}")
    t.figure(f"the attacker's statuses {sorted(statuses)}")
    at_rest(t, proxy)


later("40", "Redis down or slow", "the shared cache")
