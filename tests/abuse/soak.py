"""The soak: see README.md. What is drawn depends on the seed alone, when it happens on the machine."""

import argparse
import os
import pathlib
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lab import http1, http2  # noqa: E402
from lab.http2 import END_HEADERS, Raw, block, frame, settings  # noqa: E402
from lab.kinds import clients  # noqa: E402
from lab.load import BODY, Asking, Clients, quantile  # noqa: E402
from lab.processes import (INFER, SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, Proxy, anywhere, pool,  # noqa: E402
                           synthetic)
from lab.row import Failed, Test, eventually  # noqa: E402

# An error within so many seconds of a kill or stop is explained by it, where a rule says so at all.
NEAR = 12.0
# Growth of memory that is tolerated from the middle to the end.
FLAT_MIB = 12.0


def main():
    parser = argparse.ArgumentParser(prog="tests/abuse/soak.sh")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    parser.add_argument("--profile", default="debug", help="folder of target/ with the programs")
    options = parser.parse_args()
    folder = os.environ.get("FOREBAY_BIN", HERE.parents[1] / "target" / options.profile)
    os.environ["FOREBAY_BIN"] = str(pathlib.Path(folder).resolve())
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    t = Test(False)
    with t.stack:
        try:
            Soak(t, options.minutes * 60, options.seed).run()
        except Failed as reason:
            t.faults.append(str(reason))
    for fault in t.faults:
        print(f"FAILED: {fault}")
    print("soak: FAILED" if t.faults else "soak: ok", flush=True)
    return 1 if t.faults else 0


class Soak:
    def __init__(self, t, seconds, seed):
        self.t, self.seconds, self.random = t, seconds, random.Random(seed)
        self.done, self.cuts, self.curve = Counter(), [], []
        self.busy = threading.Lock()
        self.workers = [synthetic(t, 8, "exponential:5ms") for _ in range(3)]
        self.sockets = [socket.create_server((http1.split(anywhere())[0], 0), backlog=4096) for _ in range(2)]
        for s in self.sockets:
            t.stack.callback(s.close)
        self.http, self.tcp = ("{}:{}".format(*s.getsockname()) for s in self.sockets)
        self.proxy = self.start()

    def start(self):
        """A proxy on the sockets that outlive it."""
        more = 'retry = { attempts = 3, attempt_timeout = "1s", budget = "50%" }\nhedge = {}'
        text = (
            '[server]\nadmin = "127.0.0.1:0"\nthreads = 2\ndrain_delay = "200ms"\naccess_log = "stdout"\n'
            '[limits]\nbody = "8MiB"\nbody_timeout = "10s"\n'
            f'[[listener]]\naddress = "{self.http}"\n'
            f'[[listener]]\naddress = "{self.tcp}"\nprotocol = "tcp"\npool = "test"\n' + pool(self.workers, more)
        )
        return Proxy(self.t, "", text=text, sockets=self.sockets)

    def run(self):
        eventually(lambda: self.proxy.ready() == 3, 20)
        honest = {
            "HTTP/1": Clients(self.http, 3, pause=0.03, timeout=40),
            "HTTP/2": clients(self.http, "h2", 1, pause=0.03, timeout=40),
            "gRPC": clients(self.http, "grpc", 1, pause=0.03, timeout=40),
            "streamed": Clients(self.http, 1, "/v2/models/synthetic", None, pause=0.05, timeout=40, method="GET"),
            "Layer 4": Asking(lambda: self.over_tcp, 1, pause=0.05),
        }
        for load in honest.values():
            load.__enter__()
        began = time.monotonic()
        sampler = threading.Thread(target=self.sample, args=(began,), daemon=True)
        sampler.start()
        while (now := time.monotonic() - began) < self.seconds:
            if not self.proxy.alive():
                self.t.check(False, f"the proxy ended with {self.proxy.child.poll()}")
                self.t.require(False, self.proxy.messages()[-500:])
            # A new process starts with fresh memory, so no process is exchanged in the second half.
            self.one_fault(upgrades=now < self.seconds / 2)
            time.sleep(self.random.uniform(0.2, 1.5))
        self.seconds = 0
        time.sleep(2)
        outcomes = {name: load.stop() for name, load in honest.items()}
        sampler.join()
        self.judge(outcomes)

    def over_tcp(self):
        answer = http1.post(self.tcp, INFER, BODY, timeout=20)
        return answer.status == 200, f"{answer.status} {answer.reason}"

    # --- what is drawn

    def one_fault(self, upgrades):
        choices = [self.kill, self.stop, self.slow, self.drops, self.slow_readers, self.slow_writers, self.reload,
                   self.broken_reload, self.flood, self.malformed, self.silent, self.large, self.unread]
        if upgrades:
            choices.append(self.upgrade)
        fault = self.random.choice(choices)
        self.done[fault.__name__] += 1
        try:
            fault()
        except OSError as error:
            # An attacker's connection may be refused or cut: that is right.
            self.done[f"{fault.__name__} cut short"] += 1
            del error

    def victim(self):
        """One worker at a time suffers, so that the others can do the work."""
        if not self.busy.acquire(blocking=False):
            return None
        index = self.random.randrange(3)
        self.cuts.append(time.monotonic())
        return index

    def later(self, seconds, what):
        def run():
            time.sleep(seconds)
            try:
                what()
            finally:
                self.cuts.append(time.monotonic())
                # Back in rotation before the next one goes.
                eventually(lambda: self.all_ready(), 15, 0.1)
                self.busy.release()

        threading.Thread(target=run, daemon=True).start()

    def all_ready(self):
        try:
            return self.proxy.ready() == 3
        except (OSError, ValueError):
            return False

    def kill(self):
        if (index := self.victim()) is None:
            return
        worker = self.workers[index]
        worker.signal(SIGKILL)
        worker.child.wait()

        def again():
            self.workers[index] = synthetic(self.t, 8, "exponential:5ms", listen=worker.address)

        self.later(self.random.uniform(0.5, 2), again)

    def stop(self):
        if (index := self.victim()) is None:
            return
        worker = self.workers[index]
        worker.signal(SIGSTOP)
        self.later(self.random.uniform(0.5, 3), lambda: worker.signal(SIGCONT))

    def slow(self):
        if (index := self.victim()) is None:
            return
        worker = self.workers[index]
        http1.post(worker.address, "/slow", b"10")
        self.later(self.random.uniform(1, 3), lambda: http1.post(worker.address, "/slow", b"1"))

    def drops(self):
        """Requests that are cut at any byte, in order or by a reset."""
        data = http1.head("POST", INFER, {"content-length": len(BODY)}) + BODY
        for _ in range(30):
            s = http1.connect(self.http, 2)
            s.sendall(data[:self.random.randrange(1, len(data) + 1)])
            if self.random.random() < 0.5:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()

    def slow_readers(self):
        for _ in range(10):
            s = http1.connect(self.http, 2, receive_buffer=2048)
            s.sendall(http1.head("GET", "/v2/models/synthetic") * 40)
            self.hold(s)

    def slow_writers(self):
        for i in range(10):
            s = http1.connect(self.http, 2)
            s.sendall(http1.head("POST", INFER, {"content-length": 5000} if i % 2 else {"transfer-encoding": "chunked"}))
            self.hold(s, b"1\r\nx\r\n")

    def hold(self, s, drip=b""):
        """Keeps a connection for a while."""

        def run(seconds):
            try:
                for _ in range(int(seconds)):
                    time.sleep(1)
                    s.sendall(drip)
            except OSError:
                pass
            s.close()

        threading.Thread(target=run, args=(self.random.uniform(1, 8),), daemon=True).start()

    def reload(self):
        text = self.proxy.text.replace('attempts = 3', f'attempts = {self.random.choice((3, 4))}')
        self.proxy.config.write_text(text)
        self.t.equal(self.proxy.reload().status, 200, "a good reload")

    def broken_reload(self):
        bad = self.random.choice(["nonsense", "a=" + "[" * 70_000, self.proxy.text + "\nodd = 1\n", "x" * 200_000])
        self.proxy.config.write_text(bad)
        if self.random.random() < 0.5:
            self.t.equal(self.proxy.reload().status, 422, "a broken reload")
        else:
            self.proxy.signal(SIGHUP)
        time.sleep(0.1)

    def upgrade(self):
        new = self.start()
        eventually(lambda: new.ready() >= 2, 20)
        old, self.proxy = self.proxy, new
        old.signal(SIGTERM)
        self.t.equal(old.ended(45), 0, "exit status of a proxy that was replaced")
        self.t.check("panicked" not in old.messages(), "a panic")

    def flood(self):
        """Up to a second of cheap frames on one connection."""
        kind = self.random.choice(["ping", "settings", "window", "reset", "unknown", "priority"])
        with Raw(self.http, 2) as connection:
            connection.socket.settimeout(0.2)
            connection.send(frame(http2.SETTINGS, 1))
            end, i = time.monotonic() + 0.5, 0
            while time.monotonic() < end:
                batch = b""
                for _ in range(50):
                    i += 1
                    batch += {
                        "ping": lambda: frame(http2.PING, 0, 0, bytes(8)),
                        "settings": lambda: settings(),
                        "window": lambda: frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
                        "reset": lambda: frame(http2.HEADERS, END_HEADERS, 2 * i + 1, block("POST", INFER))
                        + frame(http2.RST_STREAM, 0, 2 * i + 1, struct.pack(">I", 8)),
                        "unknown": lambda: frame(0x77, 0, 0, b"x"),
                        "priority": lambda: frame(http2.PRIORITY, 0, 3, bytes(5)),
                    }[kind]()
                if not connection.send(batch) or connection.frames(0.01, (http2.GOAWAY,)) and connection.closed:
                    break

    def malformed(self):
        from rows.http1 import DESYNC
        for name in self.random.sample(sorted(DESYNC), 8):
            answer, _ = http1.raw(self.http, DESYNC[name], 2)
            self.t.equal(http1.answers(answer), [400], f"{name}: statuses")

    def silent(self):
        for i in range(100):
            s = http1.connect(self.http, 2)
            if i % 2:
                s.sendall(b"POST /v2")
            self.hold(s)

    def large(self):
        answer, _ = http1.raw(self.http, http1.head("POST", INFER, {"content-length": 9 << 20}), 5)
        self.t.equal(http1.answers(answer), [413], "a body beyond the limit")

    def unread(self):
        """Streams whose answers are not read."""
        connection = Raw(self.http, 2, first=settings(initial_window_size=0) + frame(http2.SETTINGS, 1))
        connection.send(b"".join(
            frame(http2.HEADERS, END_HEADERS | 1, 2 * i + 1, block("GET", "/v2/models/synthetic")) for i in range(60)))
        self.hold(connection.socket)

    # --- what is found

    def sample(self, began):
        while self.seconds:
            try:
                self.curve.append((time.monotonic() - began, self.proxy.pid, self.proxy.rss() / 2**20))
            except (OSError, Failed):
                # It is being replaced.
                pass
            for _ in range(50):
                if self.seconds:
                    time.sleep(0.1)

    def judge(self, outcomes):
        t, proxy = self.t, self.proxy
        print("drawn:", ", ".join(f"{name} {count}" for name, count in sorted(self.done.items())))
        for name, found in outcomes.items():
            bad = [o for o in found if o.status != 200]
            rest = [o for o in bad if not self.explained(name, o)]
            print(f"{name}: {len(found)} requests, p50 {quantile([o.seconds for o in found], 0.5):.0f} ms, "
                  f"p99 {quantile([o.seconds for o in found], 0.99):.0f} ms, {len(bad)} errors, {len(rest)} unexplained")
            words = Counter((o.status, o.reason) for o in rest)
            t.equal(dict(words), {}, f"errors of {name} that no rule explains")
        self.judge_memory()
        rest = lambda: proxy.status()["in_flight"] == 0 and all(  # noqa: E731
            e["in_flight"] == 0 for e in proxy.endpoints().values())
        t.check(eventually(rest, 15), f"in flight at the end: {proxy.status()['in_flight']}")
        # Connections that the attackers left are gone by then.
        time.sleep(2)
        counted = proxy.metric("forebay_requests_total") - proxy.metric("forebay_requests_total", 'reason="connection_limit"')
        lines = lambda: sum(line.get("protocol") != "tcp" for line in proxy.lines())  # noqa: E731
        eventually(lambda: lines() == counted, 5)
        connections = sum(line.get("protocol") == "tcp" for line in proxy.lines())
        print(f"the last process: {counted:.0f} requests counted, {lines()} lines, {connections} lines of Layer 4, "
              f"{proxy.fds()} descriptors, {proxy.cpu():.0f} s of processor time")
        t.equal(lines(), int(counted), "lines in the access log beside requests counted")
        t.equal(proxy.metric("forebay_access_log_dropped_total"), 0, "lines dropped")
        t.equal(proxy.metric("forebay_queued_requests"), 0, "requests that wait at the end")
        t.check("panicked" not in proxy.messages(), "a panic")
        # The last one that suffered may still be on its way back.
        t.check(eventually(lambda: proxy.ready() == 3, 20),
                f"{proxy.ready()} of 3 endpoints are ready at the end: {proxy.endpoints()}")
        proxy.signal(SIGTERM)
        t.equal(proxy.ended(45), 0, "exit status")

    def explained(self, name, outcome):
        """The rules: what is held is tried elsewhere, so nothing explains an error of it. A streamed answer
        and a connection at Layer 4 have one attempt once their first byte has been sent: they may be cut if
        their worker was killed, stopped or continued meanwhile."""
        if name not in ("streamed", "Layer 4"):
            return False
        ended = outcome.at + outcome.seconds
        return any(outcome.at - NEAR <= cut <= ended + 0.5 for cut in self.cuts)

    def judge_memory(self):
        last = [(at, mib) for at, pid, mib in self.curve if pid == self.proxy.pid]
        step = max(1, len(self.curve) // 12)
        print("RSS:", ", ".join(f"{at:.0f} s {mib:.0f} MiB" for at, _, mib in self.curve[::step]))
        end = self.curve[-1][0]
        half = [(at, mib) for at, mib in last if at >= end / 2]
        # The least of each half minute: what a flood takes for a moment is no growth.
        half = [min(half[i:i + 6], key=lambda sample: sample[1]) for i in range(0, len(half), 6)]
        if len(half) < 4:
            print("RSS: too few samples for a slope")
            return
        mean_x, mean_y = (sum(v[i] for v in half) / len(half) for i in (0, 1))
        over = sum((x - mean_x) ** 2 for x, _ in half)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in half) / over
        gained = slope * (half[-1][0] - half[0][0])
        print(f"RSS over the second half: {slope * 60:+.2f} MiB/min, {gained:+.1f} MiB in all, "
              f"{min(y for _, y in half):.0f} to {max(y for _, y in half):.0f} MiB")
        self.t.check(gained <= max(FLAT_MIB, 0.1 * mean_y), f"memory grows: {gained:+.1f} MiB over the second half")


sys.exit(main())
