"""Honest clients: closed loops on threads, and arrivals on a schedule."""

import asyncio
import statistics
import threading
import time
from collections import Counter

from . import http1

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'


class Outcome:
    """One request's end."""

    __slots__ = ("status", "reason", "seconds", "at", "request_id", "body", "tag")

    def __init__(self, status, reason, seconds, at, request_id=None, body=b"", tag=None):
        self.status, self.reason, self.seconds, self.at = status, reason, seconds, at
        self.request_id, self.body, self.tag = request_id, body, tag


class Clients:
    """So many clients, each with a kept connection, that ask again as soon as they are answered, or after
    `pause` seconds. A connection that the proxy closed between two requests is opened again; everything else that goes wrong is an outcome with status 0."""

    def __init__(self, address, count=4, path="/v2/models/synthetic/infer", body=BODY, headers=(), pause=0.0,
                 timeout=15, method="POST"):
        self.address, self.path, self.body, self.headers = address, path, body, dict(headers)
        self.pause, self.timeout, self.method = pause, timeout, method
        self.outcomes, self.stopping = [], threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(self.timeout + 5)
        return self.outcomes

    def wait(self, count, seconds=30):
        """Until so many more were answered."""
        goal, end = len(self.outcomes) + count, time.monotonic() + seconds
        while len(self.outcomes) < goal and time.monotonic() < end:
            time.sleep(0.01)

    def _run(self):
        connection = None
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                if connection is not None and connection.is_closed():
                    connection.close()
                    connection = None
                if connection is None:
                    connection = http1.Connection(self.address, self.timeout)
                answer = connection.request(self.method, self.path, self.headers, self.body)
                outcome = Outcome(answer.status, answer.reason, answer.seconds, started, answer.request_id)
                if answer.headers.get("connection", "").lower() == "close":
                    connection.close()
                    connection = None
            except (OSError, ValueError) as error:
                outcome = Outcome(0, f"{type(error).__name__}: {error}", time.monotonic() - started, started)
                if connection:
                    connection.close()
                connection = None
            self.outcomes.append(outcome)
            if self.pause:
                time.sleep(self.pause)
        if connection:
            connection.close()


def errors(outcomes):
    """What was not 200, by status and reason."""
    return Counter((o.status, o.reason) for o in outcomes if o.status != 200)


def quantile(seconds, q):
    """The q-quantile of times, in milliseconds."""
    found = sorted(seconds)
    return 1000 * found[min(len(found) - 1, int(q * len(found)))] if found else float("nan")


def median_ms(seconds):
    return 1000 * statistics.median(seconds) if seconds else float("nan")


def scheduled(address, rate, seconds, path="/v2/models/synthetic/infer", body=BODY, headers=(), timeout=15,
              vary=None):
    """Requests at a constant rate, whatever becomes of those before, on kept connections. Latencies count
    from the intended start. `vary(i)` gives more headers and a tag for the i-th."""
    return asyncio.run(_scheduled(address, rate, seconds, path, body, dict(headers), timeout, vary))


async def _scheduled(address, rate, seconds, path, body, headers, timeout, vary):
    free, outcomes, tasks = [], [], []
    began = time.monotonic()
    for i in range(int(rate * seconds)):
        due = began + i / rate
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        more, tag = vary(i) if vary else ({}, None)
        tasks.append(asyncio.create_task(
            _one(address, free, outcomes, path, body, {**headers, **more}, timeout, due, tag)))
    await asyncio.gather(*tasks)
    for _, writer in free:
        writer.close()
    return outcomes


async def _one(address, free, outcomes, path, body, headers, timeout, due, tag):
    try:
        status, reason = await asyncio.wait_for(_ask(address, free, path, body, headers), timeout)
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        status, reason = 0, type(error).__name__
    outcomes.append(Outcome(status, reason, time.monotonic() - due, due, tag=tag))


async def _ask(address, free, path, body, headers):
    reader, writer = free.pop() if free else await asyncio.open_connection(*http1.split(address))
    try:
        writer.write(http1.head("POST", path, {**headers, "content-length": len(body)}) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            pairs[name.lower()] = value.strip()
        if "content-length" in pairs:
            await reader.readexactly(int(pairs["content-length"]))
        else:
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await reader.readexactly(size + 2)
            await reader.readuntil(b"\r\n")
    except BaseException:
        writer.close()
        raise
    if pairs.get("connection", "").lower() == "close":
        writer.close()
    else:
        free.append((reader, writer))
    return int(head[0].split(" ")[1]), pairs.get("x-forebay-reason", "ok")


class Asking(Clients):
    """Threads that each call `make()` for a function, and that function again and again: it gives
    `(good, words)`, and raises what goes wrong."""

    def __init__(self, make, count=4, pause=0.0, timeout=15):
        super().__init__("", count, pause=pause, timeout=timeout)
        self.make = make

    def _run(self):
        ask = self.make()
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                good, words = ask()
            except (OSError, ValueError) as error:
                good, words = False, f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - started
            self.outcomes.append(Outcome(200 if good else 0, words, seconds, started))
            if self.pause:
                time.sleep(self.pause)
