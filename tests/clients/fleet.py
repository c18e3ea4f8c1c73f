"""A proxy with its workers, or a worker alone, on free ports, for as long as a `with` block lasts."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "backends" / "models"

# Three models are loaded and warmed by each worker; a debug build on a busy machine takes seconds.
START_SECONDS = 120
# Above the drain delay and timeout of the configuration below.
STOP_SECONDS = 30
WORKERS = 2

CONFIG = """\
[server]
admin = "127.0.0.1:0"
drain_delay = "100ms"
drain_timeout = "10s"
access_log = "{log}"

[[listener]]
address = "127.0.0.1:0"

[pool.proof]
{source}

[[route]]
name = "proof"
pool = "proof"
deadline = "30s"
expose_endpoint = true
"""


class Fleet:
    """The running proxy: `listener` and `admin` are `host:port`; `exit_status` after the block."""

    def __init__(self, program, folder, endpoints=None):
        """In front of `endpoints`, or else of workers that it starts itself."""
        self.access_log = pathlib.Path(folder) / "access.jsonl"
        self.messages = pathlib.Path(folder) / "messages.jsonl"
        self.listener = self.admin = self.exit_status = self.process = None
        self._program = program
        self._config = pathlib.Path(folder) / "proof.toml"
        source = f'fleet = {{ workers = {WORKERS}, models = "{MODELS}" }}'
        if endpoints is not None:
            # A list of texts is the same in TOML and JSON.
            source = f"endpoints = {json.dumps(endpoints)}"
        self._ready = WORKERS if endpoints is None else len(endpoints)
        self._config.write_text(CONFIG.format(log=self.access_log, source=source))

    def __enter__(self):
        arguments = ["--log-format", "json", "serve", "--config", str(self._config)]
        self.process = subprocess.Popen([self._program, *arguments], stderr=subprocess.PIPE)
        try:
            self._read_addresses()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_):
        self._stop()

    def get(self, path):
        """The admin listener's answer as text."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=10) as answer:
            return answer.read().decode()

    def status(self):
        """What /status says."""
        return json.loads(self.get("/status"))

    def _read_addresses(self):
        """Standard error is read to its end, so that the pipe never fills up."""
        serving = queue.Queue(1)

        def read():
            with open(self.messages, "wb") as copy:
                for line in self.process.stderr:
                    copy.write(line)
                    copy.flush()
                    if b'"serving"' in line and serving.empty():
                        serving.put(json.loads(line))
            if serving.empty():
                serving.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            line = serving.get(timeout=START_SECONDS)
        except queue.Empty:
            line = None
        if line is None:
            raise RuntimeError(f"expected the proxy to serve, found:\n{self.messages.read_text()}")
        self.listener, self.admin = line["listeners"], line["admin"]

    def _wait_until_ready(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.status()["pools"]["proof"]["ready"] == self._ready:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"expected {self._ready} ready workers, found:\n{self.messages.read_text()}")

    def _stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.exit_status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Its workers see its end and leave.
            self.process.kill()
            self.exit_status = self.process.wait()


class Worker:
    """A running worker: `address` is `host:port`."""

    def __init__(self, program, models, *arguments):
        self._command = [program, "worker", "--models", str(models), "--listen", "127.0.0.1:0"]
        self._command += arguments
        self.process = self.address = None

    def __enter__(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.address = line.strip().removeprefix("listening on http://")
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=10).close()
            except urllib.error.HTTPError:
                time.sleep(0.05)
            else:
                return self
        self.__exit__()
        raise RuntimeError("expected a worker that becomes ready, see its messages above")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def program():
    """The forebay to test."""
    return os.environ.get("FOREBAY", str(ROOT / "target" / "debug" / "forebay"))
