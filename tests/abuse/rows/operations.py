"""What an operator does, and does wrong: reloads, upgrades, drains, certificates, descriptors, clocks."""

import datetime
import os
import pathlib
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time

from lab import http1, http2
from lab.around import at_rest, cpu_share, healthy
from lab.clock import Clock
from lab.endpoint import Endpoint, H2Endpoint, sleeping
from lab.kinds import STREAMED, ask_once, clients
from lab.load import BODY, errors
from lab.processes import INFER, ROOT, SIGHUP, SIGTERM, Proxy, anywhere, pool, program, synthetic
from lab.row import eventually, row

RELOADS = "forebay_reloads_total"


def many_endpoints(text):
    """3,700 endpoints on one line, the last one wrong: an error at a column beyond 65,535."""
    ends = ", ".join(f'"10.0.{i // 250}.{i % 250}:8001"' for i in range(3700))
    return text + f'\n[pool.long]\nendpoints = [{ends}, "nonsense"]\n'


BROKEN = {
    "syntax": lambda text: text + "\n[[[\n",
    "unknown key": lambda text: text + "\n[pool.x]\nendpoints = [\"127.0.0.1:1\"]\nodd = 1\n",
    "wrong type": lambda text: text.replace("[[route]]", "[[route]]\ndeadline = 5"),
    "column beyond 65,535": many_endpoints,
    "70,000 brackets": lambda text: text + "\na=" + "[" * 70_000 + "\n",
    "70,000 braces": lambda text: text + "\na=" + "{a=" * 70_000 + "\n",
    "70,000 dots": lambda text: text + "\n" + ".".join(["a"] * 70_000) + "=1\n",
    "column beyond 65,535, other letters": lambda text: text + "\nname = \"" + "\u00e4\U0001f30a" * 40_000 + "\" nonsense\n",
    "line beyond 70,000": lambda text: text + "\n" * 70_000 + "odd = \n",
    "70,000 mistakes": lambda text: text + "".join(f"\nodd{i} = 1" for i in range(5_000)),
    "control characters": lambda text: text + "\nname = \"\x00\x1b[31m\"\n",
    "no UTF-8": lambda text: text.encode() + b"\nname = \"\xff\xfe\"\n",
    "empty": lambda text: "",
    "1 MB of nothing": lambda text: " " * (1 << 20) + "x",
    "a string without end": lambda text: text + "\nname = \"" + "a" * 200_000,
    "missing": None,
    "a folder": "folder",
}


@row(31, "reload of a broken file", {name: name for name in BROKEN}, limit=60)
def broken(t, form):
    """A file that is wrong, in whatever way, by check, /reload and SIGHUP -> exit 1 and 422 with line and
    column, the old configuration stays, and nothing else happens: connections, requests and counters go
    on."""
    endpoint = Endpoint(t)
    proxy = Proxy(t, pool([endpoint]), ready=1)
    healthy(t, proxy, "before")
    make = BROKEN[form[0]]
    with clients(proxy.address, "h1", 2, pause=0.01) as load, http1.Connection(proxy.address) as kept:
        t.equal(kept.request("POST", INFER, {}, BODY).status, 200, "a kept connection before")
        if make is None:
            proxy.config.unlink()
        elif make == "folder":
            proxy.config.unlink()
            proxy.config.mkdir()
        else:
            text = make(proxy.text)
            proxy.config.write_bytes(text if isinstance(text, bytes) else text.encode())
        done = subprocess.run([program(), "check", str(proxy.config)], capture_output=True, timeout=20)
        t.equal(done.returncode, 1, "exit status of check")
        words = (done.stdout + done.stderr).decode(errors="replace")
        t.check("panicked" not in words, "check panics")
        t.check(len(words) < 2 << 20, f"check says {len(words)} bytes")
        if make not in (None, "folder") and form[0] not in ("empty", "no UTF-8"):
            t.check("forebay.toml:" in words and any(c.isdigit() for c in words), f"no line named: {words.strip()[:120]!r}")
        before = proxy.metric(RELOADS)
        try:
            answer = proxy.reload()
            t.equal(answer.status, 422, "status of /reload")
            t.check(len(answer.body) < 1 << 20, f"/reload says {len(answer.body)} bytes")
        except OSError as error:
            t.check(False, f"/reload: {type(error).__name__}: {error}")
        proxy.signal(SIGHUP)
        t.check(eventually(lambda: not proxy.alive() or proxy.metric(RELOADS) - before == 2, 10), "SIGHUP has no effect")
        if t.check(proxy.alive(), f"SIGHUP ended the proxy: {proxy.messages()[-300:]}"):
            t.equal(kept.request("POST", INFER, {}, BODY).status, 200, "the kept connection after")
            t.equal(proxy.metric(RELOADS) - before, 2, f"{RELOADS} rose by")
            t.equal(proxy.metric(RELOADS, 'outcome="ok"') + proxy.metric(RELOADS, 'outcome="applied"'), 0, "reloads that went well")
            t.equal(proxy.status()["generation"], 1, "generation")
        outcomes = load.stop()
    t.equal(dict(errors(outcomes)), {}, "errors of requests meanwhile")
    t.require(proxy.alive(), "the proxy has ended")
    if proxy.config.is_dir():
        proxy.config.rmdir()
    proxy.config.write_text(proxy.text)
    t.equal(proxy.reload().status, 200, "a reload of the right file")
    t.check("panicked" not in proxy.messages(), "a panic")
    healthy(t, proxy, "after")


@row(32, "100 reloads under load", {"HTTP/1": "h1", "HTTP/2": "h2", "gRPC": "grpc"}, limit=90)
def reloads(t, form):
    """100 reloads in turn of two files, under load -> 0 errors, and counters go on."""
    workers = [synthetic(t, 4, "constant:3ms") for _ in range(3)]
    proxy = Proxy(t, pool(workers), ready=3)
    texts = [proxy.text, proxy.text.replace(f', "{workers[2].address}"', "")]
    assert texts[0] != texts[1]
    with clients(proxy.address, form[0], 4) as load:
        for i in range(100):
            proxy.config.write_text(texts[(i + 1) % 2])
            answer = proxy.reload()
            t.equal(answer.status, 200, "a reload")
            time.sleep(0.02)
        outcomes = load.stop()
    t.figure(f"{len(outcomes)} requests, {sum(errors(outcomes).values())} errors")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.equal(proxy.metric(RELOADS), 100, RELOADS)
    t.check(proxy.metric("forebay_requests_total") >= len(outcomes), "counters were reset")
    at_rest(t, proxy)


@row(33, "upgrade under load by passed sockets", {"HTTP/1": "h1", "HTTP/2": "h2", "gRPC": "grpc", "TLS": "tls"}, limit=90)
def upgrade(t, form):
    """Three times a new process takes the listener over, under load -> 0 errors."""
    workers = [synthetic(t, 4, "constant:3ms") for _ in range(2)]
    host, _ = http1.split(anywhere())
    listener = socket.create_server((host, 0), backlog=1024)
    t.stack.callback(listener.close)
    address = "{}:{}".format(*listener.getsockname())
    tls = f'[listener.tls]\ncertificate = "{ROOT}/conf/tls/example.pem"\nkey = "{ROOT}/conf/tls/example.key"' if form[0] == "tls" else ""

    def start():
        text = (f'[server]\nadmin = "127.0.0.1:0"\nthreads = 2\ndrain_delay = "200ms"\naccess_log = "stdout"\n'
                f'[[listener]]\naddress = "{address}"\n{tls}\n{pool(workers)}')
        return Proxy(t, "", text=text, sockets=[listener], ready=2)

    proxy = start()
    load = tls_clients(address, 3) if form[0] == "tls" else clients(address, form[0], 4)
    with load:
        load.wait(100)
        for _ in range(3):
            new = start()
            proxy.signal(SIGTERM)
            t.equal(proxy.ended(20), 0, "exit status of the old one")
            proxy = new
            load.wait(100)
        outcomes = load.stop()
    t.figure(f"{len(outcomes)} requests, {sum(errors(outcomes).values())} errors")
    t.equal(dict(errors(outcomes)), {}, "errors")


def unverified():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def tls_clients(address, count):
    """Clients over TLS on kept connections."""
    from lab.load import Asking

    def make():
        state = {"connection": None}

        def ask():
            connection = state["connection"]
            if connection is None:
                connection = http1.Connection(address)
                connection.socket = unverified().wrap_socket(connection.socket, server_hostname="x")
            kept, state["connection"] = state["connection"], None
            try:
                answer = connection.request("POST", INFER, {}, BODY)
            except (ssl.SSLEOFError, ConnectionError):
                if not kept:
                    raise
                # Closed while it was idle: whatever the client is, it asks on a new one.
                return ask()
            if answer.headers.get("connection", "").lower() == "close":
                connection.close()
            else:
                state["connection"] = connection
            return answer.status == 200, f"{answer.status} {answer.reason}"

        return ask

    return Asking(make, count)


@row(34, "SIGTERM with requests in flight", {"HTTP/1": "h1", "HTTP/1, streamed path": "stream", "HTTP/2": "h2",
                                             "gRPC": "grpc", "Layer 4": "tcp"}, limit=40)
def drain(t, form):
    """SIGTERM -> not ready at once, clients told to close, what is in flight is answered, and the process
    ends with 0 within the grace + 1 s."""
    kind = form[0]
    if kind == "grpc":
        def slow(head, body):
            time.sleep(1.5)
            return ([(":status", "200"), ("content-type", "application/grpc")], b"\0\0\0\0\0", [("grpc-status", "0")])
        endpoint = H2Endpoint(t, slow)
    else:
        endpoint = Endpoint(t, sleeping(1.5))
    layer4 = 'protocol = "tcp"\npool = "test"' if kind == "tcp" else ""
    proxy = Proxy(t, pool([endpoint]), listener=layer4, server='drain_timeout = "10s"', ready=1)
    found = []

    def ask():
        try:
            found.append(ask_once(proxy.address, "h1" if kind == "tcp" else kind)[:2])
        except OSError as error:
            found.append((0, str(error)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    t.eventually("the requests", lambda: len(endpoint.requests) == 8)
    proxy.signal(SIGTERM)
    began = time.monotonic()
    ready = eventually(lambda: proxy.get("/readyz").status == 503, 1, 0.01)
    t.check(ready, "ready although it drains")
    for thread in threads:
        thread.join()
    status = proxy.ended(12)
    took = time.monotonic() - began
    t.figure(f"ended after {took:.1f} s with {status}")
    t.equal(found, [(200, "ok")] * 8, "answers")
    t.equal(status, 0, "exit status")
    t.check(took <= 1.5 + 0.2 + 1 + 1, f"ended only after {took:.1f} s")
    if kind != "tcp":
        t.equal(sum(line["reason"] == "ok" for line in proxy.lines()), 8, "lines")


@row(34, "SIGTERM with a request that does not end", word="cut", limit=40)
def drain_cut(t):
    """A request that lasts longer than drain_timeout -> the process ends within the grace + 1 s."""
    endpoint = Endpoint(t, sleeping(30))
    proxy = Proxy(t, pool([endpoint]), server='drain_timeout = "2s"', ready=1)
    with http1.connect(proxy.address) as s:
        s.sendall(http1.head("POST", STREAMED, {"content-length": 2}) + b"{}")
        t.eventually("the request", lambda: endpoint.requests)
        began = time.monotonic()
        proxy.signal(SIGTERM)
        status = proxy.ended(10)
        took = time.monotonic() - began
    t.figure(f"ended after {took:.1f} s with {status}")
    t.check(status is not None and took <= 2 + 0.2 + 1 + 0.5, f"ended after {took:.1f} s")


def limited(number):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


@row(36, "descriptors run out", {"silent connections": b"", "half a header": b"POST / HT", "kept connections": "kept"},
     alone=True, limit=60)
def descriptors(t, form):
    """Connections take all descriptors -> at most 5% of a core, no endpoint is blamed (in rotation, not
    ejected), admin answers, and within 2 s of their end all is as before."""
    endpoints = [Endpoint(t), Endpoint(t)]
    # Each file of the proxy itself counts: it has some 30 at rest.
    proxy = Proxy(t, pool(endpoints), ready=2, before=limited(96))
    healthy(t, proxy, "before")
    first = http1.head("POST", INFER, {"content-length": 2}) + b"{}" if form[0] == "kept" else form[0]
    opened = []
    for i in range(150):
        s = socket.socket()
        s.bind((f"127.0.0.{2 + i}", 0))
        s.settimeout(1)
        try:
            s.connect(http1.split(proxy.address))
            s.sendall(first)
        except OSError:
            pass
        opened.append(s)
    time.sleep(1)
    share = cpu_share(proxy, 3)
    try:
        health = [e["health"] for e in proxy.endpoints().values()]
        t.equal(health, ["ready", "ready"], "endpoints while descriptors are short")
        t.equal(proxy.metric("forebay_ejections_total"), 0, "ejections")
    except (OSError, ValueError) as error:
        t.check(False, f"admin does not answer: {type(error).__name__}: {error}")
    t.figure(f"{share:.0%} of a core, {proxy.fds()} descriptors")
    t.check(share <= 0.05, f"{share:.0%} of a core")
    for s in opened:
        s.close()
    began = time.monotonic()

    def served():
        try:
            return http1.post(proxy.address, INFER, BODY, timeout=1).status == 200
        except (OSError, ValueError):
            return False

    back = eventually(served, 10)
    took = time.monotonic() - began
    t.check(back and took <= 2, f"served again after {took:.1f} s")
    healthy(t, proxy, "after")
    t.equal([e["health"] for e in proxy.endpoints().values()], ["ready", "ready"], "endpoints after")


@row("P10", "no descriptors are left for endpoints", word="endpoints", alone=True, limit=60)
def blamed(t):
    """Requests come while no descriptor is left to connect to endpoints -> their refusal is the proxy's own,
    and no endpoint is taken out or ejected for it."""
    endpoints = [Endpoint(t, sleeping(0.5)) for _ in range(2)]
    proxy = Proxy(t, pool(endpoints, "slots = 64"), ready=2, before=limited(80))
    results, lock = [], threading.Lock()

    def ask():
        try:
            answer = http1.post(proxy.address, INFER, BODY, timeout=8)
            with lock:
                results.append((answer.status, answer.reason))
        except (OSError, ValueError) as error:
            with lock:
                results.append((0, type(error).__name__))

    threads = [threading.Thread(target=ask) for _ in range(120)]
    worst = []
    for thread in threads:
        thread.start()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        try:
            worst.append(min(proxy.ready(), 2))
        except (OSError, ValueError):
            worst.append(-1)
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    t.figure(f"{sum(r[0] == 200 for r in results)} of 120 answered, others {sorted(set(results) - {(200, 'ok')})}")
    t.check(-1 not in worst, f"admin failed {worst.count(-1)} of {len(worst)} times")
    t.check(all(w == 2 for w in worst if w >= 0), f"endpoints in rotation fell to {min(w for w in worst if w >= 0)}")
    t.equal(proxy.metric("forebay_ejections_total"), 0, "ejections")
    t.check(eventually(lambda: proxy.ready() == 2, 3), "not both in rotation after")
    healthy(t, proxy, "after")


@row("P10", "the soft limit of descriptors", word="soft limit")
def soft_limit(t):
    """A soft limit of 128 below a hard one of 4096 -> raised at start; where even that does not hold
    max_connections, a warning says so."""
    soft = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 4096))  # noqa: E731
    proxy = Proxy(t, pool([Endpoint(t)]), ready=1, before=soft)
    limits = pathlib.Path(f"/proc/{proxy.pid}/limits").read_text()
    line = [line for line in limits.splitlines() if line.startswith("Max open files")][0].split()
    t.equal(line[3], "4096", "the soft limit")
    t.check("max_connections" in proxy.messages(), "no warning that max_connections (20000) does not fit")
    healthy(t, proxy, "after")


@row(37, "the clock jumps by an hour, both ways", limit=60)
def clock(t):
    """The wall clock jumps by an hour and by a day, both ways -> timeouts are monotonic: no spurious timeout, no
    error, no endpoint leaves the rotation; the log tells the time of the clock."""
    wall = Clock(t)
    with wall.shown():
        proxy = Proxy(t, pool([Endpoint(t, sleeping(0.2))]), ready=1)
    apart = []
    with clients(proxy.address, "h1", 4) as load:
        for offset in (3600, -3600, 0, 86400, -86400, 0):
            load.wait(10)
            wall.move(offset)
            time.sleep(0.5)
            load.wait(5)
            told = datetime.datetime.fromisoformat(proxy.lines()[-1]["time"])
            apart.append(abs(told.timestamp() - time.time() - offset))
        outcomes = load.stop()
    t.figure(f"{len(outcomes)} requests")
    t.check(max(apart) < 30, f"the log's times are {apart} s off")
    t.equal(dict(errors(outcomes)), {}, "errors")
    slow = max(o.seconds for o in outcomes)
    t.check(slow < 2, f"a request took {slow:.1f} s")
    t.equal(proxy.ready(), 1, "in rotation")


def pair(folder, name):
    """A new certificate and key, if the machine can make one."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", str(key), "-out", str(certificate), "-days", "30", "-subj", f"/CN={name}.example.org",
                    "-addext", f"subjectAltName=DNS:{name}.example.org"], check=True, capture_output=True, timeout=20)
    key.chmod(0o600)
    return certificate, key


@row(38, "certificates rotate, and a bad pair comes", limit=60)
def certificates(t):
    """A rotated certificate -> served after a reload; a pair that does not fit, or is no certificate ->
    refused with 422, the old one stays; 0 handshakes fail."""
    if not shutil.which("openssl"):
        t.skip("no openssl to make certificates with")
    first, second = pair(t.folder, "first"), pair(t.folder, "second")
    used = (t.folder / "used.pem", t.folder / "used.key")

    def install(certificate, key):
        shutil.copy(certificate, used[0])
        shutil.copy(key, used[1])
        used[1].chmod(0o600)

    install(*first)
    proxy = Proxy(t, pool([Endpoint(t)]), listener=f'[listener.tls]\ncertificate = "{used[0]}"\nkey = "{used[1]}"', ready=1)

    def served():
        context = unverified()
        with http1.connect(proxy.address) as s, context.wrap_socket(s, server_hostname="x") as encrypted:
            return encrypted.getpeercert(True)

    def der(certificate):
        return ssl.PEM_cert_to_DER_cert(certificate.read_text())

    with tls_clients(proxy.address, 2) as load:
        load.wait(20)
        t.check(served() == der(first[0]), "not the first certificate")
        for name, (certificate, key) in {"a pair that does not fit": (second[0], first[1]),
                                         "no certificate": (first[1], first[1]), "no key": (first[0], first[0])}.items():
            install(certificate, key)
            t.equal(proxy.reload().status, 422, f"reload with {name}")
            t.check(served() == der(first[0]), f"after {name}: not the first certificate")
        for i in range(10):
            install(*(second if i % 2 == 0 else first))
            t.equal(proxy.reload().status, 200, "reload with a good pair")
            t.check(served() == der((second if i % 2 == 0 else first)[0]), "not the new certificate")
        load.wait(20)
        outcomes = load.stop()
    t.figure(f"{len(outcomes)} requests")
    t.equal(dict(errors(outcomes)), {}, "errors")
    t.equal(proxy.metric("forebay_tls_handshakes_total") - proxy.metric("forebay_tls_handshakes_total", 'outcome="ok"')
            - proxy.metric("forebay_tls_handshakes_total", 'reason="ok"'), 0, "handshakes that failed")


def client_hello(version):
    """A ClientHello of an old version with what it had of ciphers."""
    ciphers = bytes.fromhex("c014c00a00390038c013c00900330032002f0035000a00050004")
    body = version + random.randbytes(32) + b"\0" + len(ciphers).to_bytes(2, "big") + ciphers + b"\x01\0"
    shake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(shake).to_bytes(2, "big") + shake


@row(45, "TLS downgrade", {"SSL 3": b"\x03\x00", "TLS 1.0": b"\x03\x01", "TLS 1.1": b"\x03\x02", "min_version 1.3": b"\x03\x03"})
def downgrade(t, form):
    """A ClientHello of a version below the minimum -> an alert and the end, counted; honest ones go on."""
    least = 'min_version = "1.3"' if form[0] == b"\x03\x03" else ""
    tls = f'[listener.tls]\ncertificate = "{ROOT}/conf/tls/example.pem"\nkey = "{ROOT}/conf/tls/example.key"\n{least}'
    proxy = Proxy(t, pool([Endpoint(t)]), listener=tls, ready=1)
    failed = lambda: proxy.metric("forebay_tls_handshakes_total") - proxy.metric("forebay_tls_handshakes_total", '"ok"')  # noqa: E731
    before = failed()
    for _ in range(3):
        data, closed = http1.raw(proxy.address, client_hello(form[0]), 5)
        t.check(data[:1] == b"\x15", f"no alert: {data[:8]!r}")
        t.check(closed, "the connection stays open")
    eventually(lambda: failed() - before == 3, 3)
    t.equal(failed() - before, 3, "failed handshakes counted")
    with http1.connect(proxy.address) as s, unverified().wrap_socket(s, server_hostname="x") as encrypted:
        t.figure(f"{encrypted.version()}")
        encrypted.sendall(http1.head("POST", INFER, {"content-length": 2, "connection": "close"}) + b"{}")
        t.check(encrypted.recv(65536).startswith(b"HTTP/1.1 200"), "the probe after")


@row(50, "hardened units", limit=40)
def units(t):
    """The units' exposure, by systemd-analyze -> at most 1.5."""
    if not shutil.which("systemd-analyze"):
        t.skip("no systemd-analyze on this machine")
    for unit in sorted((ROOT / "systemd").glob("*.service")):
        copy = t.folder / unit.name
        copy.write_text(unit.read_text().replace("/usr/local/bin/forebay-worker", "/bin/true").replace("/usr/local/bin/forebay", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(copy)],
                              capture_output=True, text=True, timeout=30)
        t.figure(f"{unit.name}: {done.stdout.strip().splitlines()[-1].split(':')[-1].split()[0] if done.stdout.strip() else '?'}")
        t.equal(done.returncode, 0, f"{unit.name}: {done.stdout.strip()[-100:]}")


@row("P2", "tasks that panic", quick=False)
def panics(t):
    """A panic of the control task, an accept loop, a log writer or a watcher -> restarted with a count, or
    the process drains and exits."""
    t.skip("no panic can be caused from outside; rows 31 and P3 try the known causes, tests in Rust the rest")
