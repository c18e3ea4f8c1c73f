"""Standard output, standard error and the access log: full, gone, or not read."""

import fcntl
import os
import socket
import struct
import time

from lab import http1
from lab.around import healthy
from lab.endpoint import Endpoint, sleeping
from lab.kinds import clients
from lab.load import BODY, errors, median_ms
from lab.processes import INFER, SIGHUP, SIGTERM, Proxy, Worker, anywhere, pool
from lab.row import eventually, row


def sink(t, kind):
    """A descriptor that takes nothing: its reader is gone, it is always full, or it is never read."""
    if kind == "/dev/full":
        fd = os.open("/dev/full", os.O_WRONLY)
        t.stack.callback(os.close, fd)
        return fd
    if kind == "closed":
        return None
    reader, writer = os.pipe()
    t.stack.callback(os.close, writer)
    if kind == "reader gone":
        os.close(reader)
        return writer
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    fcntl.fcntl(writer, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, b"x" * 512)
    except BlockingIOError:
        pass
    fcntl.fcntl(writer, fcntl.F_SETFL, flags)
    t.stack.callback(os.close, reader)
    return writer


KINDS = ("reader gone", "/dev/full", "pipe full")
STREAMS = {f"{stream}, {kind}": (stream, kind) for stream in ("stderr", "stdout", "both") for kind in KINDS}


def fixed(t, more=""):
    """A proxy's text with addresses that are known before it says them."""
    listener, admin = (port_at(anywhere()) for _ in range(2))
    return listener, admin, (
        f'[server]\nadmin = "{admin}"\nthreads = 2\ndrain_delay = "200ms"\naccess_log = "stdout"\n'
        f'[[listener]]\naddress = "{listener}"\n{more}'
    )


def port_at(address):
    host, _ = http1.split(address)
    with socket.create_server((host, 0)) as s:
        return "{}:{}".format(*s.getsockname())


@row("P3", "standard streams that take nothing", STREAMS, limit=60)
def streams(t, form):
    """Standard error or output whose reader is gone, that is full, or that nobody reads -> the proxy starts,
    answers, reloads, and drains on SIGTERM with 0, and cuts no request; lines are dropped and counted."""
    stream, kind = form
    endpoint = Endpoint(t, lambda request, s, e: (sleeping(1.0)(request, s, e) if request.path == "/v1/slow" else
                                                  s.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") or True))
    listener, admin, text = fixed(t, pool([endpoint]))
    broken = sink(t, kind)
    kw = {}
    if stream in ("stderr", "both"):
        kw["stderr"] = broken
    if stream in ("stdout", "both"):
        kw["stdout"] = broken
    proxy = Proxy(t, "", text=text, **kw)
    proxy.address, proxy.admin = listener, admin
    served = eventually(lambda: not proxy.alive() or ready(proxy), 15, 0.05)
    t.require(proxy.alive(), f"the proxy ended with {proxy.child.poll()}")
    t.require(served, "the proxy is not ready")
    healthy(t, proxy, "before")
    # Each of these is worth a line: aborted connections, bad requests, reloads that fail.
    for _ in range(100):
        s = http1.connect(listener, 2)
        s.sendall(http1.head("POST", "/v1/slow", {"content-length": 2}) + b"{")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    for _ in range(300):
        http1.raw(listener, b"nonsense\r\n\r\n", 1)
    for _ in range(100):
        healthy(t, proxy, "during")
        if t.faults:
            return
    proxy.config.write_text("nonsense")
    t.equal(proxy.reload().status, 422, "a reload of a broken file")
    proxy.signal(SIGHUP)
    time.sleep(0.3)
    t.require(proxy.alive(), f"SIGHUP ended the proxy with {proxy.child.poll()}")
    proxy.config.write_text(proxy.text)
    t.equal(proxy.reload().status, 200, "a reload of the right file")
    t.equal(proxy.get("/livez").status, 200, "/livez")
    healthy(t, proxy, "after")
    # A reader that stands still is given a moment before lines are dropped.
    def counted():
        http1.raw(listener, b"nonsense\r\n\r\n", 1)
        proxy.signal(SIGHUP)
        return any(proxy.metric(name) for name in ("forebay_access_log_dropped_total", "forebay_log_lines_dropped_total"))

    eventually(counted, 8, 0.2)
    text = proxy.get("/metrics").text
    dropped = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines()
               if "dropped" in line and not line.startswith("#") and line.split(" ")[1] != "0"}
    t.figure(f"dropped {dropped}")
    # The reports of what an endpoint says of its load are another thing.
    t.check(any("log" in name or "message" in name or "line" in name for name in dropped),
            "no metric counts the lines that were dropped")
    with http1.connect(listener, 10) as s:
        s.sendall(http1.head("POST", "/v1/slow", {"content-length": 2}) + b"{}")
        t.check(eventually(lambda: "/v1/slow" in endpoint.paths(), 2), "the last request did not arrive")
        proxy.signal(SIGTERM)
        answer, _ = http1.drain(s, 5)
    t.check(answer.startswith(b"HTTP/1.1 200"), f"the request in flight was cut: {answer[:60]!r}")
    began = time.monotonic()
    t.equal(proxy.ended(8), 0, "exit status after SIGTERM")
    t.figure(f"ended {time.monotonic() - began:.1f} s after its last answer")


def ready(proxy):
    try:
        return http1.get(proxy.admin, "/readyz", timeout=2).status == 200
    except (OSError, ValueError):
        return False


@row("P3", "a worker's standard streams that take nothing", word="worker,", forms={
    f"{stream}, {kind}": (stream, kind) for stream in ("stderr", "stdout") for kind in KINDS}, limit=90)
def worker_streams(t, form):
    """The same at a worker -> it starts, serves, reloads its models and drains with 0."""
    stream, kind = form
    address = port_at(anywhere())
    worker = object.__new__(Worker)
    from lab.processes import TEST_MODELS, Process, program
    command = [program(), "worker", "--listen", address, "--models", str(TEST_MODELS), "--drain-delay", "100ms"]
    Process.__init__(worker, command, t.folder, "worker", **{stream: sink(t, kind)})
    t.stack.callback(worker.kill)
    worker.address = address
    served = eventually(lambda: not worker.alive() or worker_ready(address), 45, 0.05)
    t.require(worker.alive(), f"the worker ended with {worker.child.poll()}")
    t.require(served, "the worker is not ready")
    for _ in range(100):
        http1.raw(address, b"nonsense\r\n\r\n", 1)
    worker.signal(SIGHUP)
    time.sleep(0.5)
    body = (b'{"inputs":[{"name":"a","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]},'
            b'{"name":"b","shape":[1,4],"datatype":"FP32","data":[10,20,30,40]}]}')
    for _ in range(10):
        t.equal(http1.post(address, "/v2/models/arith/infer", body).status, 200, "an inference")
    worker.signal(SIGTERM)
    t.equal(worker.ended(10), 0, "exit status after SIGTERM")


def worker_ready(address):
    try:
        return http1.get(address, "/v2/health/ready", timeout=2).status == 200
    except (OSError, ValueError):
        return False


@row(35, "the disk of the access log is full", {"file": "file", "stdout": "stdout"}, limit=60)
def full(t, form):
    """Lines can't be written -> dropped and counted, 0 errors; written again when there is room (a file that
    a reload opens again)."""
    endpoint = Endpoint(t)
    log = t.folder / "access.log"
    if form[0] == "stdout":
        fd = os.open("/dev/full", os.O_WRONLY)
        t.stack.callback(os.close, fd)
        proxy = Proxy(t, pool([endpoint]), ready=1, stdout=fd)
    else:
        log.symlink_to("/dev/full")
        proxy = Proxy(t, pool([endpoint]), access_log=str(log), ready=1)
    with clients(proxy.address, "h1", 4) as load:
        load.wait(500)
        outcomes = load.stop()
    t.equal(dict(errors(outcomes)), {}, "errors")
    dropped = lambda: proxy.metric("forebay_access_log_dropped_total")  # noqa: E731
    eventually(lambda: dropped() >= len(outcomes), 5)
    t.figure(f"{len(outcomes)} requests, {dropped():.0f} lines dropped")
    t.equal(dropped(), len(outcomes), "lines dropped")
    if form[0] == "file":
        log.unlink()
        t.equal(proxy.reload().status, 200, "reload")
        t.equal(http1.post(proxy.address, INFER, BODY, {"x-request-id": "again"}).status, 200, "answer")
        t.check(eventually(lambda: log.exists() and "again" in log.read_text(), 5), "no line after the disk has room")
    healthy(t, proxy, "after")


@row(35, "latency while the log's disk is full", word="latency", quick=False, alone=True, limit=60)
def full_latency(t):
    """The median latency beside a proxy whose log can be written -> within 10%, measured alternately."""
    endpoint = Endpoint(t)
    log = t.folder / "access.log"
    log.symlink_to("/dev/full")
    good, bad = Proxy(t, pool([endpoint]), ready=1), Proxy(t, pool([endpoint]), access_log=str(log), ready=1)
    times = {good.pid: [], bad.pid: []}
    with http1.Connection(good.address) as a, http1.Connection(bad.address) as b:
        for _ in range(20):
            for proxy, connection in ((good, a), (bad, b)):
                times[proxy.pid] += [connection.request("POST", INFER, {}, BODY).seconds for _ in range(100)]
    first, second = median_ms(times[good.pid]), median_ms(times[bad.pid])
    t.figure(f"median {first:.2f} ms, full {second:.2f} ms")
    t.check(second <= 1.1 * first + 0.05, "slower")
