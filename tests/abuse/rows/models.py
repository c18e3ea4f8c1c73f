"""The worker: requests that lie, models that are hostile, paths that lead elsewhere."""

import gzip
import json
import os
import shutil
import struct
import threading
import time

from lab import http1, http2, onnx
from lab.processes import MODELS, ROOT, TEST_MODELS, Proxy, Worker, pool
from lab.row import eventually, row

ARITH = "/v2/models/arith/infer"
HOSTILE = ROOT / "backends" / "worker" / "tests" / "hostile"


def tensor(name, data, shape=None, datatype="FP32"):
    return {"name": name, "shape": shape or [1, 4], "datatype": datatype, "data": data}


def arith(a=None, b=None):
    return json.dumps({"inputs": [a or tensor("a", [1, 2, 3, 4]), b or tensor("b", [1, 2, 3, 4])]}).encode()


GOOD = arith()
PLACES = {"worker": "worker", "through the proxy": "proxy"}


def place(t, where):
    """A worker, and where to ask: straight, or through a proxy."""
    worker = Worker(t)
    if where == "worker":
        return worker, worker.address, None
    proxy = Proxy(t, pool([worker]), ready=1)
    return worker, proxy.address, proxy


def bad_requests(t, form, cases, reasons, what, allowed=(400,), headers=None):
    """Each case gets 400 with one of the reasons and words, and the worker goes on."""
    worker, address, proxy = place(t, form[0])
    t.equal(http1.post(address, ARITH, GOOD).status, 200, "the probe before")
    rss = worker.rss()
    for name, body in cases.items():
        more = (headers or {}).get(name, {})
        try:
            answer = http1.post(address, ARITH, body, {"x-request-id": f"case-{len(name)}", **more}, timeout=20)
        except OSError as error:
            t.check(False, f"{name}: {type(error).__name__}: {error}")
            continue
        t.check(answer.status in allowed, f"{name}: status {answer.status} {answer.reason} {answer.text[:80]!r}")
        t.check(answer.reason in reasons, f"{name}: reason {answer.reason}")
        try:
            t.check(len(answer.json()["error"]) > 5, f"{name}: no words")
        except (ValueError, KeyError):
            t.check(False, f"{name}: not the protocol's error: {answer.text[:80]!r}")
    t.figure(f"{len(cases)} {what}, memory {(worker.rss() - rss) / 2**20:+.1f} MiB")
    t.check(worker.rss() - rss <= 48 << 20, "memory grew")
    t.check("panicked" not in worker.messages(), "a panic")
    t.equal(http1.post(address, ARITH, GOOD).status, 200, "the probe after")
    if proxy:
        counted = lambda: sum(proxy.metric("forebay_requests_total", f'status="{s}"') for s in allowed)  # noqa: E731
        eventually(lambda: counted() == len(cases), 3)
        t.equal(counted(), len(cases), "counted")


DEEP = 10_000
JSON = {
    "nothing": b"", "a brace": b"{", "an array": b"[]", "a number": b"1", "null": b"null", "text": b"hello",
    "no inputs": b"{}", "inputs of the wrong kind": b'{"inputs":1}', "no UTF-8": b'{"inputs":[{"name":"\xff"}]}',
    "10,000 arrays": b"[" * DEEP, "10,000 closed arrays": b"[" * DEEP + b"]" * DEEP,
    "10,000 objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested parameters": b'{"parameters":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b',"inputs":[]}',
    "nested data": b'{"inputs":[{"name":"a","shape":[1,4],"datatype":"FP32","data":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "1,000,000 arrays": b"[" * 1_000_000, "trailing comma": GOOD[:-1] + b",}", "a comment": b"/* */" + GOOD,
    "two documents": GOOD + GOOD, "NUL after it": GOOD + b"\0", "a lone surrogate": b'{"id":"\\ud800","inputs":[]}',
    "a huge number": b'{"inputs":[{"name":"a","shape":[1,4],"datatype":"FP32","data":[1e999,1,1,1]}]}',
    "a key twice": b'{"inputs":[],"inputs":[]}', "a long name": b'{"inputs":[{"name":"' + b"a" * 100_000 + b'"}]}',
}


@row(27, "bad JSON", PLACES)
def bad_json(t, form):
    """What is no JSON, or nested 10,000 deep -> 400 in words, no panic, bounded memory."""
    bad_requests(t, form, JSON, {"invalid_request", "invalid_input"}, "bodies")


BIG = 2**63
SHAPES = {
    "overflow of 2^63": arith(tensor("a", [1], [BIG - 1, 4])), "2^64": arith(tensor("a", [1], [2**64, 4])),
    "product beyond 2^64": arith(tensor("a", [1], [2**32, 2**32])), "2^62 x 4": arith(tensor("a", [1], [2**62, 4])),
    "zero and huge": arith(tensor("a", [], [0, BIG - 1])), "negative": arith(tensor("a", [1, 2, 3, 4], [-1, 4])),
    "both negative": arith(tensor("a", [1, 2, 3, 4], [-1, -4])), "a fraction": arith(tensor("a", [1, 2, 3, 4], [1.5, 4])),
    "text": arith(tensor("a", [1, 2, 3, 4], ["1", "4"])), "no dimension": arith(tensor("a", [1], [])) ,
    "too many dimensions": arith(tensor("a", [1, 2, 3, 4], [1] * 1000 + [4])), "another rank": arith(tensor("a", [1, 2, 3, 4], [4])),
    "other than fixed": arith(tensor("a", [1, 2, 3], [1, 3])), "fewer data": arith(tensor("a", [1, 2, 3])),
    "more data": arith(tensor("a", [1, 2, 3, 4, 5])), "rows that differ": arith(tensor("a", [1] * 8, [2, 4])),
    "another datatype": arith(tensor("a", [1, 2, 3, 4], datatype="INT64")), "an unknown datatype": arith(tensor("a", [1, 2, 3, 4], datatype="FP99")),
    "bytes": arith(tensor("a", ["a", "b", "c", "d"], datatype="BYTES")), "text as numbers": arith(tensor("a", ["1", "2", "3", "4"])),
    "booleans": arith(tensor("a", [True, False, True, True])), "null": arith(tensor("a", [None, 1, 2, 3])),
    "an unknown input": arith(tensor("z", [1, 2, 3, 4])), "an input twice": arith(tensor("b", [1, 2, 3, 4])),
    "one missing": json.dumps({"inputs": [tensor("a", [1, 2, 3, 4])]}).encode(),
    "one too many": json.dumps({"inputs": [tensor(n, [1, 2, 3, 4]) for n in "abc"]}).encode(),
    "an unknown output": json.dumps({"inputs": [tensor("a", [1, 2, 3, 4]), tensor("b", [1, 2, 3, 4])], "outputs": [{"name": "z"}]}).encode(),
    "beyond max_batch": arith(tensor("a", [0] * 4 * 10_000, [10_000, 4]), tensor("b", [0] * 4 * 10_000, [10_000, 4])),
    "data beyond FP32": arith(tensor("a", [1e300, 1, 1, 1])), "an empty shape and data": arith(tensor("a", [], [0, 4]), tensor("b", [], [0, 4])),
}


@row(28, "shapes and datatypes that lie", PLACES)
def shapes(t, form):
    """Overflowing, negative, mismatched shapes, other datatypes, names that are none -> 400, 100%; no
    allocation by what is stated."""
    bad_requests(t, form, SHAPES, {"invalid_input", "invalid_request"}, "requests")


def binary(sizes, data, length=None, shape=(1, 4)):
    """A request with binary tensors: body and headers."""
    inputs = [{"name": n, "shape": list(shape), "datatype": "FP32", "parameters": {"binary_data_size": s}}
              for n, s in zip("ab", sizes)]
    head = json.dumps({"inputs": inputs}).encode()
    return head + data, {"inference-header-content-length": str(len(head) if length is None else length)}


LIES = {
    "too small": binary((15, 16), bytes(31)), "too large": binary((17, 16), bytes(33)), "beyond the body": binary((16, 16), bytes(20)),
    "more than stated": binary((16, 16), bytes(40)), "none": binary((16, 16), b""), "huge": binary((2**62, 16), bytes(32)),
    "2^64": binary((2**64, 16), bytes(32)), "negative": binary((-1, 16), bytes(32)), "text": binary(("16", 16), bytes(32)),
    "sum beyond 2^64": binary((2**63, 2**63), bytes(32)), "zero": binary((0, 16), bytes(16)),
    "a huge shape": binary((16, 16), bytes(32), shape=(2**40, 2**30)),
    "header beyond the body": binary((16, 16), bytes(32), 10**6), "header of 2^64": binary((16, 16), bytes(32), 2**64),
    "header negative": binary((16, 16), bytes(32), -1), "header within the JSON": binary((16, 16), bytes(32), 20),
    "header within the data": binary((16, 16), bytes(32), 170), "header 0": binary((16, 16), bytes(32), 0),
    "header text": binary((16, 16), bytes(32), "x"),
}


@row(30, "binary lengths that lie", PLACES)
def lengths(t, form):
    """binary_data_size and inference-header-content-length that do not fit -> 400; nothing beyond the body
    is read."""
    cases = {name: body for name, (body, _) in LIES.items()}
    headers = {name: more for name, (_, more) in LIES.items()}
    bad_requests(t, form, cases, {"invalid_input", "invalid_request"}, "requests", headers=headers)


@row(29, "NaN and infinities", PLACES)
def non_finite(t, form):
    """One policy over JSON and binary: refused with 400 in inputs, with 500 where an output has them."""
    worker, address, _ = place(t, form[0])
    for word in ("NaN", "Infinity", "-Infinity", "nan", "1e999", '"NaN"', "null"):
        body = GOOD.replace(b"[1, 2, 3, 4]", f"[{word}, 2, 3, 4]".encode(), 2).replace(f"[{word}, 2, 3, 4]".encode(), b"[1, 2, 3, 4]", 1)
        t.equal(http1.post(address, ARITH, body).status, 400, f"{word} in JSON")
    for number in (float("nan"), float("inf"), float("-inf")):
        body, headers = binary((16, 16), struct.pack("<4f", number, 1, 2, 3) + bytes(16))
        answer = http1.post(address, ARITH, body, headers)
        t.equal((answer.status, answer.reason), (400, "invalid_input"), f"{number} in binary")
    log = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-1, 0]}]}).encode()
    for headers in ({}, {"accept-encoding": "gzip"}):
        answer = http1.post(address, "/v2/models/log/infer", log, headers)
        t.equal((answer.status, answer.reason), (500, "inference_failed"), "an output that is none")
    t.equal(http1.post(address, ARITH, GOOD).status, 200, "the probe after")


@row(21, "compressed bodies that inflate", PLACES, word="gzip,")
def inflate(t, form):
    """A gzip body of 200 KB that inflates to 200 MB -> 413 body_too_large, bounded memory."""
    worker, address, _ = place(t, form[0])
    bomb = gzip.compress(bytes(200 << 20), 9)
    rss = worker.rss()
    for _ in range(3):
        answer = http1.post(address, ARITH, bomb, {"content-encoding": "gzip"}, timeout=30)
        t.equal((answer.status, answer.reason), (413, "body_too_large"), "answer")
    for name, body in {"cut": gzip.compress(GOOD)[:-9], "none": GOOD, "twice": gzip.compress(gzip.compress(GOOD))}.items():
        answer = http1.post(address, ARITH, body, {"content-encoding": "gzip"})
        t.equal(answer.status, 400, f"{name}: status")
    t.equal(http1.post(address, ARITH, GOOD, {"content-encoding": "br"}).status, 415, "an unknown encoding")
    t.figure(f"{len(bomb)} bytes, memory {(worker.rss() - rss) / 2**20:+.1f} MiB")
    t.check(worker.rss() - rss <= 96 << 20, "memory grew")
    t.equal(http1.post(address, ARITH, GOOD).status, 200, "the probe after")


def repository(t, **models):
    """A repository of arith and these models: bytes of a file, or a function that fills the folder."""
    folder = t.folder / "repository"
    shutil.copytree(TEST_MODELS / "arith", folder / "arith")
    for name, content in models.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        if callable(content):
            content(version)
        else:
            (version / "model.onnx").write_bytes(content)
    return folder


def index(address):
    return {m["name"]: m for m in json.loads(http1.request(address, "POST", "/v2/repository/index", body=b"{}").text)}


def arith_ready(worker):
    try:
        return http1.get(worker.address, "/v2/models/arith/ready", timeout=5).status == 200
    except (OSError, ValueError):
        return False


@row(48, "hostile models", limit=150)
def hostile(t):
    """Cycles, 2^63 dimensions, weights outside, unknown operators, endless loops, gigabytes asked for -> each
    refused in words, the others served, the worker and the proxy go on without an error."""
    folder = repository(t)
    for model in HOSTILE.iterdir():
        if model.is_dir():
            shutil.copytree(model, folder / f"bad-{model.name}")
    (folder / "bad-noise" / "1").mkdir(parents=True)
    (folder / "bad-noise" / "1" / "model.onnx").write_bytes(os.urandom(100_000))
    worker = Worker(t, "--load-timeout", "6s", "--load-memory", "1GiB", models=folder, ready=False)
    t.eventually("arith", lambda: arith_ready(worker), 30)
    proxy = Proxy(t, pool([worker], probe='interval = "300ms", path = "/v2/models/arith/ready"'), ready=1)
    began, bad = time.monotonic(), []

    def settled():
        answer = http1.post(proxy.address, ARITH, GOOD)
        if answer.status != 200:
            bad.append((answer.status, answer.reason))
        return all(m["state"] not in ("LOADING", "UNKNOWN") and (m["state"] == "READY" or m.get("reason"))
                   for m in index(worker.address).values())

    t.eventually("the end of all loads", settled, 120, 0.2)
    found = index(worker.address)
    good = {name for name, m in found.items() if m["state"] == "READY"}
    t.equal(good, {"arith"}, "models that are ready")
    wordless = [name for name, m in found.items() if name != "arith" and len(m.get("reason", "")) < 10]
    t.equal(wordless, [], "refused without words")
    t.equal(bad, [], "errors of requests meanwhile")
    t.figure(f"{len(found) - 1} models refused in {time.monotonic() - began:.0f} s, peak {worker.peak() >> 20} MiB")
    t.check(worker.peak() <= 512 << 20, "the worker's own memory grew")


@row("P16", "an oversized model file", word="oversized", limit=90)
def oversized(t):
    """A sparse file of 8 GiB, a link to /dev/zero, a fifo -> refused by its size or kind without being read;
    the others are not held up."""
    def sparse(version):
        with open(version / "model.onnx", "wb") as f:
            f.truncate(8 << 30)

    folder = repository(t, sparse=sparse, zero=lambda v: (v / "model.onnx").symlink_to("/dev/zero"),
                        fifo=lambda v: os.mkfifo(v / "model.onnx"))
    worker = Worker(t, models=folder, ready=False)
    took = time.monotonic()
    t.eventually("arith", lambda: arith_ready(worker), 20)
    took = time.monotonic() - took
    t.eventually("the refusals", lambda: all(index(worker.address)[n].get("reason") for n in ("sparse", "zero", "fifo")), 20, 0.1)
    t.figure(f"peak {worker.peak() >> 20} MiB, arith ready after {took:.1f} s")
    t.check(worker.peak() <= 256 << 20, f"peak {worker.peak() >> 20} MiB")
    t.equal(http1.post(worker.address, ARITH, GOOD).status, 200, "the probe after")


@row("P16", "a model that takes long to load", word="long load", limit=60)
def long_load(t):
    """A model whose load lasts until its time is over -> the others are served meanwhile, also one that is
    named after it."""
    folder = repository(t)
    shutil.copytree(HOSTILE / "loop-endless", folder / "aaa-endless")
    shutil.copytree(TEST_MODELS / "log", folder / "zzz-log")
    worker = Worker(t, "--load-timeout", "20s", models=folder, ready=False)
    began = time.monotonic()

    def there(name):
        return lambda: http1.get(worker.address, f"/v2/models/{name}/ready", timeout=5).status == 200

    both = eventually(lambda: there("arith")() and there("zzz-log")(), 12, 0.1)
    took = time.monotonic() - began
    t.figure(f"the others ready after {took:.1f} s")
    t.check(both, "a model waits for one that takes long")
    t.check(took <= 10, f"ready only after {took:.1f} s")


@row("P16", "shapes after the first", {"magika": "magika", "ppocr-cls": "ppocr-cls"}, quick=False, limit=120)
def later_shapes(t, form):
    """Rows of 1 to 33, in any order, to a model that was compiled for one shape -> 200 for all that its
    metadata allow (up to max_batch), the same answer for the same row; 400 beyond."""
    folder = t.folder / "repository"
    shutil.copytree(MODELS / form[0], folder / form[0])
    worker = Worker(t, "--executors", "1", models=folder)
    about = json.loads(http1.get(worker.address, f"/v2/models/{form[0]}").text)
    one = about["inputs"][0]
    rest = one["shape"][1:]
    size = 1
    for d in rest:
        size *= d
    first = None
    for n in (1, 3, 2, 17, 1, 32, 5, 8):
        width = {"INT32": 4, "FP32": 4}[one["datatype"]]
        head = json.dumps({"inputs": [{"name": one["name"], "shape": [n, *rest], "datatype": one["datatype"],
                                       "parameters": {"binary_data_size": n * size * width}}]}).encode()
        answer = http1.post(worker.address, f"/v2/models/{form[0]}/infer", head + bytes(n * size * width),
                            {"inference-header-content-length": str(len(head))}, timeout=60)
        if t.equal(answer.status, 200, f"{n} rows: {answer.text[:100] if answer.status != 200 else ''}"):
            data = answer.json()["outputs"][0]["data"]
            row_of = data[:len(data) // n]
            first = first or row_of
            worst = max(abs(a - b) for a, b in zip(first, row_of))
            t.check(worst < 1e-3, f"{n} rows: differs by {worst}")
    t.check("no place for a kernel" not in worker.messages(), "a kernel is missing")


OUTSIDE = onnx.identity()


def link_file(version):
    (version.parents[2] / "outside.onnx").write_bytes(OUTSIDE)
    (version / "model.onnx").symlink_to(version.parents[2] / "outside.onnx")


def hard_link(version):
    (version.parents[2] / "outside2.onnx").write_bytes(OUTSIDE)
    os.link(version.parents[2] / "outside2.onnx", version / "model.onnx")


def external(location):
    weight = onnx.external("w", [1, 2], location)
    return onnx.model([onnx.node("Add", ["x", "w"], ["y"])], [onnx.value_info("x", [1, 2])], [onnx.value_info("y", [1, 2])], [weight])


def link_folder(version):
    other = version.parents[2] / "elsewhere"
    other.mkdir()
    (other / "model.onnx").write_bytes(OUTSIDE)
    version.rmdir()
    version.symlink_to(other)


def label_outside(version):
    (version / "model.onnx").write_bytes(OUTSIDE)
    (version.parent / "model.toml").write_text('[[output]]\nname = "y"\nlabel_file = "../../secret.txt"\n')


@row(47, "models that lead out of the repository", limit=90)
def outside(t):
    """Links, hard links, external data, label files that lead out, names with .. -> nothing outside is read:
    none of them is served; a plain one is."""
    (t.folder / "secret.txt").write_text("a\nb\n")
    (t.folder / "secret.bin").write_bytes(bytes(8))
    cases = {"link": link_file, "hard": hard_link, "folder": link_folder, "labels": label_outside,
             "ext-up": external("../../../secret.bin"), "ext-root": external(str(t.folder / "secret.bin")),
             "ext-passwd": external("/etc/passwd")}
    folder = repository(t, plain=onnx.identity(), **{f"bad-{k}": v for k, v in cases.items()})
    worker = Worker(t, "--models-control", models=folder, ready=False)
    t.eventually("arith", lambda: arith_ready(worker), 30)
    t.eventually("the end of all loads", lambda: all(m["state"] not in ("LOADING", "UNKNOWN") for m in index(worker.address).values()), 30, 0.1)
    good = {name for name, m in index(worker.address).items() if m["state"] == "READY"}
    t.equal(good, {"arith", "plain"}, f"models that are ready ({index(worker.address)['plain'].get('reason')})")
    paths = ["..%2f..%2fetc%2fpasswd", "%2e%2e", "..", "arith%2f..%2fplain", "arith%00", "%2fetc", "arith/versions/..%2f1",
             "arith/versions/%2e%2e"]
    for path in paths:
        for call in ("", "/ready", "/config", "/infer"):
            answer = http1.request(worker.address, "POST" if call == "/infer" else "GET", f"/v2/models/{path}{call}", body=GOOD if call == "/infer" else None)
            t.check(400 <= answer.status < 500, f"{path}{call}: {answer.status}")
            t.check("root:" not in answer.text and str(folder) not in answer.text, f"{path}{call}: names what is outside")
        answer = http1.request(worker.address, "POST", f"/v2/repository/models/{path}/load", body=b"{}")
        t.check(400 <= answer.status < 500, f"load of {path}: {answer.status}")
    t.figure(f"{len(cases)} models, {len(paths)} names")


@row(27, "noise over gRPC", PLACES, word="gRPC,")
def noise(t, form):
    """Messages that are no protobuf, lengths that lie, compressed flags -> a gRPC error (3, 8, 12, 13), no
    panic, and calls go on."""
    worker, address, _ = place(t, form[0])
    bodies = {"random": http2.grpc_message(os.urandom(1000)), "length beyond": b"\0\0\0\xff\xff" + bytes(10),
              "length of 4 GiB": b"\0\xff\xff\xff\xff" + bytes(10), "compressed": b"\x01\0\0\0\x04abcd", "flag 7": b"\x07\0\0\0\0",
              "nothing": b"", "half a prefix": b"\0\0", "two messages": http2.infer_message(b"arith") * 2,
              "deep groups": http2.grpc_message(b"\x0b" * 20_000), "huge varint": http2.grpc_message(b"\x0a" + b"\xff" * 20),
              "lying field": http2.grpc_message(b"\x0a\xff\xff\xff\xff\x07abc")}
    for name, body in bodies.items():
        found = http2.request(address, "POST", http2.GRPC_INFER, http2.GRPC, body)
        t.check(found.grpc_status not in (None, 0), f"{name}: {found}")
    live = http2.request(address, "POST", http2.GRPC_LIVE, http2.GRPC, http2.grpc_message())
    t.equal(live.grpc_status, 0, "ServerLive after")
    t.check("panicked" not in worker.messages(), "a panic")
    t.figure(f"{len(bodies)} messages")


@row(5, "a worker's answers under aborts", word="aborts", quick=False, limit=60)
def mixed_up(t):
    """Clients that abort at any time beside honest ones -> no answer belongs to another request."""
    worker, address, proxy = place(t, "proxy")
    wrong, stop = [], threading.Event()

    def abort():
        import random
        while not stop.is_set():
            with http1.connect(address) as s:
                s.sendall((http1.head("POST", ARITH, {"content-length": len(GOOD)}) + GOOD)[:random.randint(1, 300)])
                time.sleep(random.random() * 0.01)

    def honest(number):
        with http1.Connection(address) as connection:
            for i in range(400):
                body = arith(tensor("a", [number, i, 0, 0]), tensor("b", [0, 0, 0, 0]))
                data = connection.request("POST", ARITH, {}, body).json()["outputs"][0]["data"]
                if data[:2] != [number, i]:
                    wrong.append((number, i, data))

    aborts = [threading.Thread(target=abort) for _ in range(2)]
    others = [threading.Thread(target=honest, args=(n,)) for n in range(4)]
    for thread in aborts + others:
        thread.start()
    for thread in others:
        thread.join()
    stop.set()
    for thread in aborts:
        thread.join()
    t.equal(wrong, [], "answers to other requests")
    t.figure("1600 answers")
