#!/usr/bin/env python3
"""Rollouts of canaries that are slower, fail, answer something else, or are equal, through a real proxy.

The statistics of rollouts are tried on a virtual clock by `forebay-load sim --rollouts`. This script shows that the
proxy does the same with real requests: for each kind of canary and each seed it starts two servers with random service
times (lognormal, median 20 ms) and a proxy with `[route.rollout]`, sends requests at random times, and waits for the
outcome. It prints one line a run, and ends with status 1 if an outcome is not the expected one (one run in twenty
of an equal canary may be).

    python3 loadtest/rollouts.py --program target/release/forebay --runs 20 --parallel 2
"""

import argparse
import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()
# Factor of the service time, share of failures, what is added to the outputs, the expected outcome.
CANARIES = {
    "slow": (2.0, 0.0, 0.0, "rolled_back"),
    "failing": (1.0, 0.05, 0.0, "rolled_back"),
    "other": (1.0, 0.0, 0.1, "rolled_back"),
    "equal": (1.0, 0.0, 0.0, "promoted"),
}
CONFIG = """
[server]
admin = "127.0.0.1:{admin}"
[[listener]]
address = "127.0.0.1:{listen}"
[pool.stable]
endpoints = ["127.0.0.1:{stable}"]
slots = 64
[pool.canary]
endpoints = ["127.0.0.1:{canary}"]
slots = 64
[[route]]
name = "models"
{shadow}
[[route.variant]]
name = "stable"
pool = "stable"
weight = 1000
[[route.variant]]
name = "canary"
pool = "canary"
weight = 0
[route.rollout]
stable = "stable"
canary = "canary"
steps = ["10%", "50%"]
step_min = "5s"
watch = "5s"
state = "state.json"
"""
SHADOW = '[route.shadow]\nvariant = "canary"\nshare = "100%"\n'
CLIENTS = 40
LONGEST = 600


async def read(reader):
    """The head and the body of a message of HTTP/1.1 with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


async def serve(rng, slowdown, failures, added):
    """A server with these properties, and its port."""
    outputs = [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25 + added, 0.75 - added]}]
    good = json.dumps({"model_name": "m", "outputs": outputs}).encode()

    async def connection(reader, writer):
        try:
            while True:
                head, _ = await read(reader)
                status, answer = b"200 OK", b""
                if head.startswith(b"POST"):
                    await asyncio.sleep(rng.lognormvariate(-3.9, 0.6) * slowdown)
                    status, answer = (b"500 Failed", b"{}") if rng.random() < failures else (status, good)
                fields = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
                writer.write(b"HTTP/1.1 " + status + b"\r\n" + fields + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def client(port, pause, rng, statuses):
    reader = writer = None
    while True:
        await asyncio.sleep(rng.expovariate(1 / pause))
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            writer.write(head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            status = (await read(reader))[0].split()[1].decode()
        except (OSError, asyncio.IncompleteReadError):
            status, writer = "broken", None
        statuses[status] = statuses.get(status, 0) + 1


async def get(port, path):
    url = f"http://127.0.0.1:{port}{path}"

    def ask():
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)

    try:
        return await asyncio.get_running_loop().run_in_executor(None, ask)
    except (OSError, ValueError):
        return {}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def run(program, kind, seed, rate):
    rng = random.Random(f"{kind} {seed}")
    slowdown, failures, added, _ = CANARIES[kind]
    servers = [await serve(rng, 1.0, 0.0, 0.0), await serve(rng, slowdown, failures, added)]
    folder = Path(tempfile.mkdtemp())
    listen, admin = free_port(), free_port()
    shadow = SHADOW if kind == "other" else ""
    text = CONFIG.format(
        admin=admin, listen=listen, stable=servers[0][1], canary=servers[1][1], shadow=shadow
    )
    (folder / "forebay.toml").write_text(text)
    process = subprocess.Popen(
        [program, "serve", "--config", folder / "forebay.toml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    statuses, said, started = {}, {}, time.monotonic()
    clients = []
    try:
        while not (await get(admin, "/status?format=json")).get("ready"):
            if time.monotonic() - started > 60:
                break
            await asyncio.sleep(0.1)
        clients = [
            asyncio.create_task(client(listen, CLIENTS / rate, random.Random(f"{kind} {seed} {number}"), statuses))
            for number in range(CLIENTS)
        ]
        while time.monotonic() - started < LONGEST:
            await asyncio.sleep(1)
            said = await get(admin, "/routes/models/rollout") or said
            if said.get("state") not in (None, "advancing", "watching"):
                break
    finally:
        for task in clients:
            task.cancel()
        process.terminate()
        process.wait()
        for server, _ in servers:
            server.close()
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - started)
    return said.get("state", "none"), said.get("last", ""), seconds, statuses


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--program", default="target/release/forebay")
    arguments.add_argument("--runs", type=int, default=20, help="runs of each kind")
    arguments.add_argument("--rate", type=float, default=100, help="requests a second")
    arguments.add_argument("--parallel", type=int, default=1, help="runs at once")
    arguments.add_argument("--kinds", nargs="*", default=list(CANARIES), choices=list(CANARIES))
    given = arguments.parse_args()

    async def all_runs():
        turns = asyncio.Semaphore(given.parallel)
        wrong = {kind: 0 for kind in given.kinds}

        async def one(kind, seed):
            async with turns:
                outcome, last, seconds, statuses = await run(given.program, kind, seed, given.rate)
            is_expected = outcome == CANARIES[kind][3]
            wrong[kind] += not is_expected
            mark = "" if is_expected else "  UNEXPECTED"
            print(f"{kind:<8} seed {seed:<3} {outcome:<12} after {seconds:>3} s  {statuses}  {last}{mark}", flush=True)

        await asyncio.gather(*(one(kind, seed) for kind in given.kinds for seed in range(1, given.runs + 1)))
        return wrong

    wrong = asyncio.run(all_runs())
    print("unexpected outcomes:", wrong)
    allowed = {kind: given.runs // 20 if kind == "equal" else 0 for kind in wrong}
    return 1 if any(count > allowed[kind] for kind, count in wrong.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
