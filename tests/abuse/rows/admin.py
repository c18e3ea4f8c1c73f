"""The admin listener: who may reach it, and from where."""

import json

from lab import http1
from lab.around import healthy
from lab.endpoint import Endpoint
from lab.processes import Proxy, pool
from lab.row import row

# Requests that a page of another site makes a browser send.
CROSS = {
    "Origin of another site": {"origin": "https://evil.example"},
    "Origin null": {"origin": "null"},
    "Origin of another port": {"origin": "http://127.0.0.1:1"},
    "Sec-Fetch-Site cross-site": {"sec-fetch-site": "cross-site"},
    "Sec-Fetch-Site same-site": {"sec-fetch-site": "same-site"},
    "a form of another site": {"origin": "https://evil.example", "content-type": "application/x-www-form-urlencoded"},
    "no Host that is known": {"host": "evil.example"},
    "a Host with the right port": {"host": "evil.example:{port}"},
    "a Host that begins as ours": {"host": "127.0.0.1.evil.example:{port}"},
}


@row("P12", "admin asked by another site's page", {name: name for name in CROSS})
def cross_site(t, form):
    """POST /reload and /drain with a foreign Origin, Sec-Fetch-Site or Host -> 403 or 421 (400) and nothing
    happens; GET /status likewise for a foreign Host; curl, browsers' own pages and scrapers go on."""
    endpoints = [Endpoint(t), Endpoint(t)]
    proxy = Proxy(t, pool(endpoints), ready=2)
    healthy(t, proxy, "before")
    _, port = http1.split(proxy.admin)
    headers = {k: v.format(port=port) for k, v in CROSS[form[0]].items()}
    drain = f"/pools/test/endpoints/{endpoints[0].address}/drain"
    found = {}
    for path in ("/reload", drain):
        found[path.split("/")[-1]] = http1.request(proxy.admin, "POST", path, headers, b"").status
    if "host" in headers:
        for path in ("/status", "/metrics", "/"):
            found[path] = http1.get(proxy.admin, path, headers).status
    t.figure(json.dumps(found))
    t.check(all(status in (400, 403, 421) for status in found.values()), f"answered {found}")
    own = {"host": proxy.admin}
    status = json.loads(http1.get(proxy.admin, "/status?format=json", own).text)
    t.equal(status["generation"], 1, "generation")
    t.equal(status["pools"]["test"]["ready"], 2, "ready endpoints")
    for name, more in {"curl": {}, "localhost": {"host": f"localhost:{port}"},
                       "our own page": {"origin": f"http://{proxy.admin}", "sec-fetch-site": "same-origin"},
                       "typed by the user": {"sec-fetch-site": "none"}}.items():
        t.equal(http1.get(proxy.admin, "/metrics", {**own, **more}).status, 200, f"GET as {name}")
        t.equal(http1.request(proxy.admin, "POST", "/reload", {**own, **more}, b"").status, 200, f"POST as {name}")


@row("P12", "admin and many connections", word="many")
def many(t):
    """800 silent connections to the admin listener -> it has a bound and goes on answering."""
    proxy = Proxy(t, pool([Endpoint(t)]), ready=1)
    opened = []
    for _ in range(800):
        try:
            opened.append(http1.connect(proxy.admin, 1))
        except OSError:
            break
    found = []
    for _ in range(5):
        try:
            found.append(http1.get(proxy.admin, "/livez", timeout=3).status)
        except (OSError, ValueError) as error:
            found.append(type(error).__name__)
    held = proxy.fds()
    t.figure(f"{held} descriptors with 800 opened, answers {found}")
    t.equal(found, [200] * 5, "answers")
    t.check(held < 500, f"{held} descriptors are held")
    for s in opened:
        s.close()
    healthy(t, proxy, "after")


@row(46, "listeners off loopback by default")
def exposure(t):
    """A configuration that says nothing of addresses beyond loopback -> no listener elsewhere; without
    `admin` there is none; check warns of an admin address off loopback."""
    import pathlib
    import subprocess

    from lab.processes import program

    proxy = Proxy(t, pool([Endpoint(t)]), ready=1)
    inodes = set()
    for fd in pathlib.Path(f"/proc/{proxy.pid}/fd").iterdir():
        try:
            inodes.add(str(fd.readlink()))
        except OSError:
            pass
    listening, outside = 0, []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{proxy.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening += 1
                # Little-endian: loopback ends in 7F.
                if not (table == "tcp" and fields[1].split(":")[0].endswith("7F")):
                    outside.append(fields[1])
    t.equal(listening, 2, "listening sockets")
    t.equal(outside, [], "sockets off loopback")
    quiet = t.folder / "quiet.toml"
    text = proxy.text.replace('admin = "127.0.0.1:0"', 'admin = "0.0.0.0:9090"')
    quiet.write_text(text)
    done = subprocess.run([program(), "check", str(quiet)], capture_output=True, text=True, timeout=20)
    words = done.stdout + done.stderr
    t.equal(done.returncode, 0, "exit status of check")
    t.check("loopback" in words or "0.0.0.0" in words and "warn" in words.lower(), f"no warning: {words!r}")
    t.figure(f"{listening} listeners, {len(outside)} off loopback")
