"""A network between the proxy and its endpoints that loses packets."""

import hashlib
import itertools
import random
import threading
import time

from lab import http1, http2
from lab.around import at_rest
from lab.endpoint import Endpoint, H2Endpoint, reply
from lab.kinds import STREAMED
from lab.load import quantile
from lab.network import NEAR, Network
from lab.processes import INFER, Proxy, pool
from lab.row import row

LOSSY = {"HTTP/1": INFER, "HTTP/1, streamed path": STREAMED, "gRPC": None}


@row(11, "30% of the packets get lost, 100 ms round trip", LOSSY, quick=False, limit=90)
def lossy(t, form):
    """Three endpoints beyond a network that loses 30% of the packets in each direction and delays each by 50 ms
    -> no answer is another request's or broken, at most 10% of the requests are sent again, no endpoint stays out
    for it, and nine of ten requests are answered within 30 s."""
    seed = random.getrandbits(32)
    network = Network(t, 0.3, 0.05, seed)
    endpoints = [_echo(t, form[0]) for _ in range(3)]
    addresses = [network.beyond(endpoint.address) for endpoint in endpoints]
    more = 'connect_timeout = "10s"\nretry = { attempts = 3, budget = "10%" }'
    probe = 'interval = "5s", fast_interval = "1s", timeout = "5s"'
    proxy = Proxy(t, pool(addresses, more, 'deadline = "30s"', probe=probe))
    proxy.wait_ready(3, 60)
    outcomes, stop = [], threading.Event()
    make = _grpc if form[0] is None else _rest
    numbers = itertools.count()
    threads = [threading.Thread(target=_ask, args=(make(proxy, form[0]), numbers, stop, outcomes)) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(40 if t.full else 20)
    stop.set()
    for thread in threads:
        thread.join()
    retries = proxy.metric("forebay_retries_total")
    good = [seconds for verdict, seconds in outcomes if verdict == "ok"]
    bad = [verdict for verdict, _ in outcomes if verdict == "wrong"]
    t.figure(f"{len(good)} of {len(outcomes)} answered, {len(bad)} wrong, {retries:.0f} retries, median "
             f"{quantile(good, 0.5):.0f} ms, p99 {quantile(good, 0.99):.0f} ms, {network.lost} of "
             f"{network.lost + network.passed} packets lost, seed {seed}")
    others = {verdict for verdict, _ in outcomes} - {"ok", "wrong"}
    t.equal(bad, [], "wrong answers")
    t.check(retries <= 0.1 * len(outcomes), f"{retries:.0f} retries of {len(outcomes)} requests")
    t.check(len(good) > 0.9 * len(outcomes), f"{len(outcomes) - len(good)} not answered: {others}")
    network.loss = 0
    proxy.wait_ready(3, 30)
    at_rest(t, proxy, 10)


def _echo(t, path):
    """An endpoint whose answer only the right request has."""
    if path is None:
        return H2Endpoint(t, lambda head, _: (
            [(":status", "200"), ("content-type", "application/grpc"), ("x-tag", head["x-tag"])],
            http2.grpc_message(b""), [("grpc-status", "0")]), host=NEAR)
    return Endpoint(t, lambda request, s, _: s.sendall(reply(_answer(request.body))) or True, host=NEAR)


def _answer(body):
    """Long enough to fill several packets, so that some of them get lost."""
    return hashlib.sha256(body).hexdigest().encode() * 64


def _rest(proxy, path):
    kept = []

    def ask(number):
        if not kept:
            kept.append(http1.Connection(proxy.address, 70))
        body = b'{"number": %d, "pad": "%s"}' % (number, b"x" * 3000)
        connection = kept.pop()
        answer = connection.request("POST", path, {}, body)
        if answer.status != 200:
            connection.close()
            return f"{answer.status} {answer.reason}"
        kept.append(connection)
        return "ok" if answer.body == _answer(body) else "wrong"

    return ask


def _grpc(proxy, _):
    def ask(number):
        client = http2.Client(proxy.address, 70)
        stream = client.open("POST", http2.GRPC_INFER, {**http2.GRPC, "x-tag": f"{number}"}, http2.infer_message())
        found = client.wait([stream], 70)[0]
        client.close()
        if found.grpc_status != 0:
            return f"grpc {found.grpc_status} {found.reason}"
        return "ok" if found.headers.get("x-tag") == f"{number}" else "wrong"

    return ask


def _ask(ask, numbers, stop, outcomes):
    while not stop.is_set():
        began = time.monotonic()
        try:
            verdict = ask(next(numbers))
        except (OSError, ValueError) as error:
            verdict = f"{type(error).__name__}"
        outcomes.append((verdict, time.monotonic() - began))
