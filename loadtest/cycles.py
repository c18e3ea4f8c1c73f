#!/usr/bin/env python3
"""Loads and unloads models under traffic, a thousand times: does a request fail, does memory grow?

  loadtest/cycles.py [--worker "target/release/forebay worker"] [--cycles 1000] [--clients 2]

Clients send one inference after the other to the model `steady` while a version of it is replaced by
another in each cycle, and while the model `other` is unloaded and loaded. Every answer is checked. Ends
with 1 if one of them was not an answer, or if the worker holds more memory at the end than after the
first quarter, but for what an allocator may keep. Needs nothing but Python.
"""

import argparse
import http.client
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "backends" / "worker" / "tests" / "models"
# Growth that is not taken for a leak, in MiB: what an allocator keeps differs from look to look.
SLACK = 24
INPUT = [1.0, 2.0, 3.0, 4.0]


def body():
    tensor = {"datatype": "FP32", "shape": [1, 4], "data": INPUT}
    return json.dumps({"inputs": [{"name": name, **tensor} for name in "ab"]})


class Worker:
    """A running worker: `address` as host and port."""

    def __init__(self, command, models):
        arguments = ["--models", str(models), "--listen", "127.0.0.1:0", "--models-control"]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*command.split(), *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.process.stdout.readline().strip()
        host, port = line.removeprefix("listening on http://").rsplit(":", 1)
        self.address = host, int(port)

    def call(self, method, path, sent=None):
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request(method, path, sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def done(self, path):
        status, text = self.call("POST", path)
        if status != 200:
            sys.exit(f"{path}: expected 200, found {status} {text}")

    def resident(self):
        """Memory in MiB."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the worker has ended")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client(threading.Thread):
    """Sends one request after the other; `answers` counts, `failures` tell."""

    def __init__(self, address, stop):
        super().__init__()
        self.address, self.stop = address, stop
        self.answers, self.failures, self.versions = 0, [], set()

    def run(self):
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        sent = body()
        while not self.stop.is_set():
            try:
                connection.request("POST", "/v2/models/steady/infer", sent)
                answer = connection.getresponse()
                status, text = answer.status, answer.read()
                found = json.loads(text)
                if status == 200 and found["outputs"][0]["data"] == [2 * x for x in INPUT]:
                    self.answers += 1
                    self.versions.add(found["model_version"])
                else:
                    self.failures.append(f"{status} {text}")
            except OSError as error:
                self.failures.append(repr(error))
                connection.close()


def put(folder, version):
    (folder / str(version)).mkdir(parents=True)
    shutil.copy(FIXTURES / "arith" / "1" / "model.onnx", folder / str(version) / "model.onnx")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", default=str(ROOT / "target" / "release" / "forebay") + " worker")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forebay-cycles-") as work:
        models = pathlib.Path(work)
        put(models / "steady", 1)
        shutil.copytree(ROOT / "backends" / "models" / "silero-vad", models / "other")
        worker = Worker(options.worker, models)
        while worker.call("GET", "/v2/health/ready")[0] != 200:
            time.sleep(0.05)
        stop = threading.Event()
        clients = [Client(worker.address, stop) for _ in range(options.clients)]
        for client in clients:
            client.start()
        memory, started = [], time.monotonic()
        for cycle in range(1, options.cycles + 1):
            put(models / "steady", cycle + 1)
            shutil.rmtree(models / "steady" / str(cycle))
            worker.done("/v2/repository/models/steady/load")
            worker.done("/v2/repository/models/other/unload")
            worker.done("/v2/repository/models/other/load")
            memory.append(worker.resident())
            if cycle % 100 == 0:
                print(f"{cycle} cycles: {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
        took = time.monotonic() - started
        stop.set()
        for client in clients:
            client.join()
        exit_status = worker.end()
    answers = sum(client.answers for client in clients)
    failures = [failure for client in clients for failure in client.failures]
    versions = len(set.union(*(client.versions for client in clients)))
    quarter = len(memory) // 4
    settled = sorted(memory[quarter : 2 * quarter])[quarter // 2]
    last = sorted(memory[-quarter:])[quarter // 2]
    print(
        f"{options.cycles} cycles in {took:.0f} s, {3 * options.cycles} loads and unloads: "
        f"{answers} answers of {versions} versions, {len(failures)} failures; "
        f"memory {settled:.1f} MiB (median of the second quarter), {last:.1f} MiB (of the last)"
    )
    for failure in failures[:5]:
        print(f"failure: {failure}")
    return 1 if failures or exit_status or last > settled + SLACK or not answers else 0


if __name__ == "__main__":
    sys.exit(main())
