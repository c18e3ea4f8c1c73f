#!/usr/bin/env python3
"""What a connection costs the proxy in memory, and whether it is given back.

    loadtest/connections.py target/release/forebay [--count 2000] [--only silent,h2_idle]

Starts a proxy without endpoints on loopback, opens connections of one kind at a time, and reads the
proxy's resident memory before, while they are open, and after they are closed. One process, one kind
after the other, at most `count` sockets; the soft limit of open files must allow for twice as many.
"""

import argparse
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
GET = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
# GET /v2/health/live as HPACK literals, on stream 1.
FIELDS = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/v2/health/live"), (b":authority", b"x")]
BLOCK = b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in FIELDS)
H2_GET = len(BLOCK).to_bytes(3, "big") + b"\1\5\0\0\0\1" + BLOCK
SLOW_BODY = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx"


def plain(address, count, send, answered):
    """Opens `count` connections that send this; waits for an answer on each if one is due."""
    connections = []
    for _ in range(count):
        connection = socket.create_connection(address)
        if send:
            connection.sendall(send)
        if answered:
            wait(connection, answered)
        connections.append(connection)
    return connections


def wait(connection, text):
    got = b""
    while text not in got:
        more = connection.recv(65536)
        if not more:
            sys.exit(f"the proxy closed the connection after {got!r}")
        got += more


def encrypted(address, count, protocol, send, answered):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    connections = []
    for _ in range(count):
        connection = context.wrap_socket(socket.create_connection(address))
        if send:
            connection.sendall(send)
            wait(connection, answered)
        connections.append(connection)
    return connections


KINDS = {
    "silent": lambda at, tls, n: plain(at, n, b"", None),
    "half_header": lambda at, tls, n: plain(at, n, b"GET /v2 HTTP/1.1\r\nhost: ", None),
    "idle": lambda at, tls, n: plain(at, n, GET, b"live"),
    "slow_body": lambda at, tls, n: plain(at, n, SLOW_BODY, None),
    "h2_preface": lambda at, tls, n: plain(at, n, PREFACE, None),
    "h2_idle": lambda at, tls, n: plain(at, n, PREFACE + H2_GET, b"live"),
    "tls_silent": lambda at, tls, n: plain(tls, n, b"", None),
    "tls_handshake": lambda at, tls, n: encrypted(tls, n, "http/1.1", b"", None),
    "tls_idle": lambda at, tls, n: encrypted(tls, n, "http/1.1", GET, b"live"),
    "tls_h2_idle": lambda at, tls, n: encrypted(tls, n, "h2", PREFACE + H2_GET, b"live"),
}


def resident(pid):
    """Resident memory of the process in KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def settled(pid, patience):
    """Resident memory once it has not fallen for a second, or after `patience` seconds."""
    lowest, since, end = resident(pid), time.monotonic(), time.monotonic() + patience
    while time.monotonic() < min(since + 1.5, end):
        time.sleep(0.1)
        now = resident(pid)
        if now < lowest:
            lowest, since = now, time.monotonic()
    return lowest


def start(program, folder):
    """Starts a proxy; returns it, and its listeners without and with TLS."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem",
         "-out", f"{folder}/cert.pem"], check=True, capture_output=True)
    config = os.path.join(folder, "forebay.toml")
    with open(config, "w", encoding="ascii") as file:
        file.write('[server]\nadmin = "127.0.0.1:0"\naccess_log = "off"\ndrain_delay = "0s"\n'
                   '[limits]\nheader_timeout = "60s"\n'
                   '[[listener]]\naddress = "127.0.0.1:0"\n'
                   '[[listener]]\naddress = "127.0.0.1:0"\n'
                   'tls = { certificate = "cert.pem", key = "key.pem" }\n'
                   '[pool.none]\nendpoints = ["127.0.0.1:9"]\n'
                   '[[route]]\nname = "none"\npool = "none"\n')
    proxy = subprocess.Popen([program, "--log-format", "json", "serve", "--config", config],
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in proxy.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("message") == "serving":
            break
    else:
        sys.exit("the proxy did not start")
    addresses = [address.rsplit(":", 1) for address in event["listeners"].split(",")]
    return proxy, *[(host, int(port)) for host, port in addresses]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", default=",".join(KINDS))
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < options.count + 100:
        sys.exit(f"expected a limit of {options.count + 100} open files, found {soft}")
    print(f"{'kind':<14} {'KiB each':>9} {'before':>9} {'open':>9} {'closed':>9}   (KiB resident)")
    for kind in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            proxy, address, tls = start(options.program, folder)
            try:
                # Pools of memory that the first requests fill are not the connections'.
                for warm in KINDS[kind](address, tls, 50):
                    warm.close()
                before = settled(proxy.pid, 5)
                connections = KINDS[kind](address, tls, options.count)
                time.sleep(1)
                opened = resident(proxy.pid)
                for connection in connections:
                    connection.close()
                closed = settled(proxy.pid, 15)
            finally:
                proxy.send_signal(signal.SIGKILL)
                proxy.wait()
        each = (opened - before) / options.count
        print(f"{kind:<14} {each:9.1f} {before:9} {opened:9} {closed:9}", flush=True)


if __name__ == "__main__":
    main()
