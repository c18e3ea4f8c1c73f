"""Starts proxies and workers on ports of the system's choosing, and ends them by their own ids."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

from . import http1
from .row import Failed, eventually

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODELS = ROOT / "backends" / "models"
TEST_MODELS = ROOT / "backends" / "worker" / "tests" / "models"
# A debug build on a busy machine takes seconds to load models.
START_SECONDS = 60
INFER = "/v2/models/synthetic/infer"


def program(name="forebay"):
    """The program under test."""
    return str(pathlib.Path(os.environ["FOREBAY_BIN"]) / name)


def anywhere():
    """A loopback address of its own, so that a port that is given up is not taken by others."""
    return "127.{}.{}.{}:0".format(*(random.randint(1, 254) for _ in range(3)))


class Process:
    """A child with its standard output and error in files, unless the row wants them elsewhere."""

    def __init__(self, command, folder, name, env=None, stdout=None, stderr=None, fds=(), before=None):
        self.out_path, self.err_path = folder / f"{name}.out", folder / f"{name}.err"
        with open(self.out_path, "ab") as out, open(self.err_path, "ab") as err:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                env={**os.environ, **(env or {})},
                pass_fds=fds,
                preexec_fn=before,
            )
        self.pid = self.child.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Ends it at once."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()

    def signal(self, number):
        self.child.send_signal(number)

    def alive(self):
        return self.child.poll() is None

    def ended(self, seconds):
        """Its exit status if it ends in time."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def messages(self):
        """What it wrote to standard error."""
        return self.err_path.read_text(errors="replace")

    def rss(self):
        """Resident memory in bytes."""
        return self._status("VmRSS") * 1024

    def peak(self):
        """The most resident memory so far, in bytes."""
        return self._status("VmHWM") * 1024

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu(self):
        """Processor time so far, in seconds."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _status(self, key):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
        raise Failed(f"the process has no {key}: it has ended")


class Worker(Process):
    """A worker with models, or without any (`synthetic`); `address` is `host:port`."""

    def __init__(self, t, *arguments, synthetic=False, models=TEST_MODELS, listen=None, ready=True, **kw):
        command = [program(), "worker", "--listen", listen or anywhere()]
        command += ["--synthetic"] if synthetic else ["--models", str(models)]
        super().__init__(command + list(arguments), t.folder, f"worker-{random.getrandbits(40):x}", **kw)
        t.stack.callback(self.kill)
        self.address = None
        eventually(self._listening, START_SECONDS)
        if self.address is None:
            raise Failed(f"the worker does not listen: {self.messages()[-500:]}")
        if ready and not eventually(self.is_ready, START_SECONDS, 0.05):
            raise Failed(f"the worker is not ready: {self.messages()[-500:]}")

    def _listening(self):
        for line in self.out_path.read_text(errors="replace").splitlines():
            if line.startswith("listening on http://"):
                self.address = line.removeprefix("listening on http://").strip()
        return self.address or not self.alive()

    def is_ready(self):
        try:
            return http1.get(self.address, "/v2/health/ready", timeout=5).status == 200
        except OSError:
            return not self.alive()

    def metric(self, name, *labels):
        return total(http1.get(self.address, "/metrics").text, name, labels)


def synthetic(t, slots=4, service="constant:5ms", *more, listen=None):
    """A worker that runs no model, with known service times."""
    arguments = ["--slots", str(slots), "--service", service, *more]
    return Worker(t, *arguments, synthetic=True, listen=listen)


class Proxy(Process):
    """A proxy. `config` is all but [server] and the first listener."""

    def __init__(self, t, config, server="", listener="", limits="", ready=None, sockets=(), text=None,
                 access_log="stdout", threads=2, **kw):
        self.folder = t.folder / f"proxy-{random.getrandbits(40):x}"
        self.folder.mkdir()
        self.config = self.folder / "forebay.toml"
        self.text = text or (
            f'[server]\nadmin = "127.0.0.1:0"\nthreads = {threads}\ndrain_delay = "200ms"\n'
            f'access_log = "{access_log}"\n{server}\n[limits]\n{limits}\n'
            f'[[listener]]\naddress = "127.0.0.1:0"\n{listener}\n{config}'
        )
        self.config.write_text(self.text)
        command = [program(), "--log-format", "json", "serve", "--config", str(self.config)]
        env = {}
        if sockets:
            # Sockets are passed from 3 on, and only the process itself knows its number.
            command = ["sh", "-c", 'export LISTEN_PID=$$; exec "$0" "$@"', *command]
            env["LISTEN_FDS"] = str(len(sockets))
            kw["before"] = _move([s.fileno() for s in sockets], kw.get("before"))
            kw["fds"] = tuple(range(3, 3 + len(sockets)))
        super().__init__(command, self.folder, "proxy", env=env, **kw)
        t.stack.callback(self.kill)
        self.address = self.admin = None
        self.listeners = []
        if kw.get("stderr") is None:
            eventually(self._serving, START_SECONDS)
            if self.address is None:
                raise Failed(f"the proxy does not start: {self.messages()[-600:]}")
            if ready is not None:
                self.wait_ready(ready)

    def _serving(self):
        for line in self.messages().splitlines():
            if '"serving"' in line:
                event = json.loads(line)
                self.listeners = event["listeners"].split(",")
                self.address, self.admin = self.listeners[0], event["admin"]
        return self.address or not self.alive()

    def get(self, path, timeout=10):
        """The admin listener's answer."""
        return http1.get(self.admin, path, timeout=timeout)

    def status(self):
        return json.loads(self.get("/status?format=json").text)

    def endpoints(self):
        pools = self.status()["pools"].values()
        return {e["address"]: e for pool in pools for e in pool["endpoints"]}

    def ready(self):
        return sum(pool["ready"] for pool in self.status()["pools"].values())

    def wait_ready(self, count, seconds=20):
        if not eventually(lambda: self.ready() == count, seconds):
            raise Failed(f"expected {count} ready endpoints, found {self.ready()}: {self.messages()[-300:]}")

    def metric(self, name, *labels):
        """The sum over all series of `name` that have each of these labels (`reason="ok"`)."""
        return total(self.get("/metrics").text, name, labels)

    def reload(self):
        return http1.request(self.admin, "POST", "/reload", timeout=20)

    def lines(self):
        """The access log so far; a line that is no JSON object is a fault."""
        text = self.out_path.read_text(errors="replace")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def lines_of(self, request_id):
        return [line for line in self.lines() if line.get("request_id") == request_id]


def _move(numbers, before):
    """Puts descriptors in their places in the child, by copies out of the way first."""

    def run():
        copies = [os.dup2(n, 200 + i) for i, n in enumerate(numbers)]
        for i, copy in enumerate(copies):
            os.dup2(copy, 3 + i)
            os.close(copy)
        if before:
            before()

    return run


def total(text, name, labels):
    found = 0.0
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(label in line for label in labels):
            found += float(line.rsplit(" ", 1)[1])
    return found


def pool(endpoints, more="", route="", name="test", probe='interval = "300ms", fast_interval = "30ms"'):
    """`[pool.test]` and a route to it, with quick probes."""
    addresses = [e if isinstance(e, str) else e.address for e in endpoints]
    return (
        f"[pool.{name}]\nendpoints = {json.dumps(addresses)}\nprobe = {{ {probe} }}\n{more}\n"
        f'[[route]]\nname = "{name}"\npool = "{name}"\nexpose_endpoint = true\n{route}\n'
    )


class Relay:
    """A TCP relay to `target` that can be stalled: nothing passes, nothing is refused or closed, as if the
    way between two machines were cut. `delay` seconds are added in each direction."""

    def __init__(self, t, target, delay=0.0):
        self.target, self.delay = http1.split(target), delay
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = "{}:{}".format(*self.listener.getsockname())
        t.stack.callback(self.listener.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near):
        self.open.wait()
        try:
            far = socket.create_connection(self.target)
        except OSError:
            near.close()
            return
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                self.open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()


SIGKILL, SIGSTOP, SIGCONT, SIGTERM, SIGHUP = (
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM, signal.SIGHUP,
)
