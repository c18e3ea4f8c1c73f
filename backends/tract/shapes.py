#!/usr/bin/env python3
"""Serve models whose shapes vary with each request, and see what that takes of time and memory.

    python3 -m venv VENV && VENV/bin/pip install numpy onnx onnxruntime
    cargo build --release --workspace
    VENV/bin/python backends/tract/shapes.py                 # all models
    VENV/bin/python backends/tract/shapes.py encoder ocr     # some of them
    VENV/bin/python backends/tract/shapes.py mine.onnx       # a file of yours

Models are made here, with random weights and open batch and length: they have the sizes and
operators of exported ones. A file of yours is taken as it is; each of its open dimensions but the
first is the length. For each model a worker of its own is started, and requests of random lengths are
sent to it one after the other, each also to ONNX Runtime in this process with one thread, which is
what the worker uses for one request.

Times are those of the client, in milliseconds; "engine" is the mean that the worker's statistics
give. CPU times are of the worker's threads, transport included, and of the one that ONNX Runtime runs in:
on a shared machine they say more. Memory is in MiB: the worker with a model of a few numbers, with the model just
loaded, and after all requests, each once the allocator has given back what it keeps for a while; "stated" is what
the worker says that the model takes, and "growth" what the process has grown by beside the one with the small model,
which holds the part of the program that any model needs. The last column is the largest difference of the answers, relative where numbers are larger
than 1.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20
TYPES = {
    "float32": ("FP32", TensorProto.FLOAT),
    "int64": ("INT64", TensorProto.INT64),
    "int32": ("INT32", TensorProto.INT32),
    "bool": ("BOOL", TensorProto.BOOL),
}
DATATYPES = {name: numpy.dtype(kind) for kind, (name, _) in TYPES.items()}


class Graph:
    """Writes an ONNX graph node by node; each method gives the name of what it makes."""

    def __init__(self, seed=1):
        self.random = numpy.random.default_rng(seed)
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []

    def node(self, operator, *inputs, outputs=1, **attributes):
        place = len(self.nodes)
        names = [f"v{place}_{slot}" for slot in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, inputs, names, name=f"{operator}_{place}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, array):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(numpy.asarray(array), name))
        return name

    def weight(self, *shape):
        """Scaled so that values keep their size from layer to layer."""
        fan = int(numpy.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.constant((self.random.normal(size=shape) / fan**0.5).astype(numpy.float32))

    def bias(self, size):
        return self.constant(0.1 * self.random.normal(size=size).astype(numpy.float32))

    def number(self, value):
        return self.constant(numpy.float32(value))

    def integers(self, *values):
        return self.constant(numpy.array(values, numpy.int64))

    def input(self, name, kind, shape):
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[kind][1], shape))
        return name

    def output(self, value, name, shape):
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def save(self, path):
        graph = helper.make_graph(self.nodes, "model", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 14)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def dense(self, x, size_in, size_out):
        product = self.node("MatMul", x, self.weight(size_in, size_out))
        return self.node("Add", product, self.bias(size_out))

    def norm(self, x, size):
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1], keepdims=1))
        square = self.node("Pow", centred, self.number(2))
        variance = self.node("ReduceMean", square, axes=[-1], keepdims=1)
        spread = self.node("Sqrt", self.node("Add", variance, self.number(1e-5)))
        scaled = self.node("Mul", self.node("Div", centred, spread), self.bias(size))
        return self.node("Add", scaled, self.bias(size))

    def gelu(self, x):
        erf = self.node("Erf", self.node("Div", x, self.number(2**0.5)))
        half = self.node("Mul", x, self.number(0.5))
        return self.node("Mul", half, self.node("Add", erf, self.number(1)))

    def heads(self, x, heads, size):
        shaped = self.node("Reshape", x, self.integers(0, 0, heads, size // heads))
        return self.node("Transpose", shaped, perm=[0, 2, 1, 3])

    def attend(self, query, key, value, mask, size, heads):
        turned = self.node("Transpose", key, perm=[0, 1, 3, 2])
        scores = self.node("MatMul", query, turned)
        scores = self.node("Div", scores, self.number((size // heads) ** 0.5))
        if mask:
            scores = self.node("Add", scores, mask)
        seen = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        joined = self.node("Transpose", seen, perm=[0, 2, 1, 3])
        return self.node("Reshape", joined, self.integers(0, 0, size))

    def feed(self, x, size):
        wide = self.gelu(self.dense(x, size, 4 * size))
        return self.norm(self.node("Add", x, self.dense(wide, 4 * size, size)), size)

    def conv(self, x, size_in, size_out, kernel, **attributes):
        weight = self.weight(size_out, size_in, *kernel)
        return self.node(
            "Conv", x, weight, self.bias(size_out), kernel_shape=kernel, **attributes
        )


def encoder(path, size=384, heads=12, layers=6, words=2000):
    """A sentence encoder, as exported from PyTorch."""
    graph = Graph()
    open_shape = ["batch", "sequence"]
    ids = graph.input("input_ids", "int64", open_shape)
    mask = graph.input("attention_mask", "int64", open_shape)
    length = graph.node("Gather", graph.node("Shape", ids), graph.integers(1), axis=0)
    places = graph.weight(1, 512, size)
    places = graph.node("Slice", places, graph.integers(0), length, graph.integers(1))
    x = graph.node("Gather", graph.weight(words, size), ids, axis=0)
    x = graph.norm(graph.node("Add", x, places), size)
    mask = graph.node("Unsqueeze", mask, graph.integers(1, 2))
    mask = graph.node("Cast", mask, to=TensorProto.FLOAT)
    mask = graph.node("Sub", graph.number(1), mask)
    mask = graph.node("Mul", mask, graph.number(-10000))
    for _ in range(layers):
        query, key, value = (
            graph.heads(graph.dense(x, size, size), heads, size) for _ in range(3)
        )
        seen = graph.attend(query, key, value, mask, size, heads)
        x = graph.norm(graph.node("Add", x, graph.dense(seen, size, size)), size)
        x = graph.feed(x, size)
    graph.output(x, "last_hidden_state", [*open_shape, size])
    graph.save(path)


def transformer(path):
    """The same with 81 MB of weights."""
    encoder(path, size=512, heads=8, words=2200)


def cnn(path, size=256, layers=8):
    """Convolutions over time with growing distances, as for speech."""
    graph = Graph()
    x = graph.conv(graph.input("frames", "float32", ["batch", 40, "time"]), 40, size, [1])
    for layer in range(layers):
        gap = 2 ** (layer % 4)
        inner = graph.conv(x, size, size, [5], dilations=[gap], pads=[2 * gap, 2 * gap])
        x = graph.node("Add", x, graph.node("Relu", inner))
    graph.output(graph.conv(x, size, 64, [1]), "letters", ["batch", 64, "time"])
    graph.save(path)


def ocr(path, letters=4000):
    """A line of text as an image of any width."""
    graph = Graph()
    x = graph.input("image", "float32", ["batch", 3, 32, "width"])
    before = 3
    for size, stride in [(32, [2, 2]), (64, [2, 2]), (128, [2, 1]), (256, [2, 1]), (512, [2, 1])]:
        x = graph.node("Relu", graph.conv(x, before, size, [3, 3], pads=[1] * 4))
        x = graph.node("MaxPool", x, kernel_shape=stride, strides=stride)
        before = size
    x = graph.node("Transpose", graph.node("Squeeze", x, graph.integers(2)), perm=[0, 2, 1])
    x = graph.node("Softmax", graph.dense(x, before, letters), axis=-1)
    graph.output(x, "letters", ["batch", "letter", letters])
    graph.save(path)


def decoder(path, size=384, heads=6, layers=4, words=4000):
    """One step of a decoder that takes and gives what it has seen."""
    graph = Graph()
    cache = ["batch", heads, "past", size // heads]
    x = graph.node(
        "Gather", graph.weight(words, size), graph.input("input_ids", "int64", ["batch", 1]), axis=0
    )
    present = []
    for layer in range(layers):
        query, key, value = (
            graph.heads(graph.dense(x, size, size), heads, size) for _ in range(3)
        )
        past_key = graph.input(f"past_key_{layer}", "float32", cache)
        past_value = graph.input(f"past_value_{layer}", "float32", cache)
        key = graph.node("Concat", past_key, key, axis=2)
        value = graph.node("Concat", past_value, value, axis=2)
        present += [(f"present_key_{layer}", key), (f"present_value_{layer}", value)]
        seen = graph.attend(query, key, value, None, size, heads)
        x = graph.norm(graph.node("Add", x, graph.dense(seen, size, size)), size)
        x = graph.feed(x, size)
    graph.output(graph.dense(x, size, words), "logits", ["batch", 1, words])
    for name, value in present:
        graph.output(value, name, ["batch", heads, "present", size // heads])
    graph.save(path)


def text(random, length):
    ids = random.integers(0, 2000, (1, length))
    return {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}


def noise(random, *shape):
    return random.normal(size=shape).astype(numpy.float32)


def step(random, length):
    past = {
        f"past_{kind}_{layer}": noise(random, 1, 6, length, 64)
        for layer in range(4)
        for kind in ("key", "value")
    }
    return {"input_ids": random.integers(0, 4000, (1, 1)), **past}


# Name: what writes it, and its inputs by length.
MODELS = {
    "encoder": (encoder, text),
    "cnn": (cnn, lambda random, length: {"frames": noise(random, 1, 40, 4 * length)}),
    "ocr": (ocr, lambda random, length: {"image": noise(random, 1, 3, 32, 4 * length)}),
    "decoder": (decoder, step),
    "transformer": (transformer, text),
}


def of_file(path):
    """What makes inputs for a file: zeros and ones where numbers are whole, waves else."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}

    def make(random, length):
        made = {}
        for value in session.get_inputs():
            dims = enumerate(value.shape)
            shape = [dim if isinstance(dim, int) else length if i else 1 for i, dim in dims]
            kind = kinds[value.type]
            draw = noise(random, *shape) if kind == "float32" else random.integers(0, 2, shape)
            made[value.name] = draw.astype(kind)
        return made

    return make


class Worker:
    """A worker that serves one directory, and a connection to it."""

    def __init__(self, binary, models, flags=()):
        command = [binary, "--models", models, "--listen", "127.0.0.1:0", *flags]
        errors = open(models.parent / "worker.log", "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        line = self.process.stdout.readline()
        address = re.search(r"http://([^\s]+)", line)
        if not address:
            raise RuntimeError(f"{command}: ended with {self.process.wait()}")
        self.connection = http.client.HTTPConnection(address[1], timeout=600)

    def ask(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        return response, response.read()

    def wait_for(self, name):
        """Until the model can be used; says why it can't be, where it can't."""
        while True:
            index = json.loads(self.ask("POST", "/v2/repository/index", b"{}")[1])
            entry = next((entry for entry in index if entry["name"] == name), {})
            if entry.get("state") == "READY":
                return
            if entry.get("state") == "UNAVAILABLE" and entry.get("reason"):
                raise RuntimeError(f"{name}: {entry['reason']}")
            time.sleep(0.05)

    def infer(self, model, inputs):
        """Outputs by name, and the seconds that they took."""
        blobs = [array.tobytes() for array in inputs.values()]
        described = [
            {
                "name": name,
                "datatype": TYPES[str(array.dtype)][0],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(blob)},
            }
            for (name, array), blob in zip(inputs.items(), blobs)
        ]
        words = {"inputs": described, "parameters": {"binary_data_output": True}}
        header = json.dumps(words).encode()
        headers = {
            "Inference-Header-Content-Length": str(len(header)),
            "Content-Type": "application/octet-stream",
        }
        body = b"".join([header, *blobs])
        started = time.perf_counter()
        response, answer = self.ask("POST", f"/v2/models/{model}/infer", body, headers)
        took = time.perf_counter() - started
        if response.status != 200:
            raise RuntimeError(f"{model}: {response.status} {answer[:500]}")
        length = int(response.headers.get("Inference-Header-Content-Length", len(answer)))
        outputs, place = {}, length
        for output in json.loads(answer[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            values = numpy.frombuffer(answer[place : place + size], DATATYPES[output["datatype"]])
            outputs[output["name"]] = values.reshape(output["shape"])
            place += size
        return outputs, took

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024

    def cpu_seconds(self):
        """Of all threads that there are."""
        spent = 0
        for thread in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                spent += int((thread / "schedstat").read_text().split()[0])
        return spent / 1e9

    def settled_memory(self, within=10):
        """Once the allocator has given back what it keeps for a while."""
        until, before = time.monotonic() + within, self.memory()
        while time.monotonic() < until:
            # Something has to happen for the allocator to look at its clock.
            self.ask("GET", "/v2/health/live")
            time.sleep(1.5)
            now = self.memory()
            if before - now < MIB:
                return now
            before = now
        return before

    def statistics(self, model):
        stats = json.loads(self.ask("GET", f"/v2/models/{model}/stats")[1])
        return stats["model_stats"][0]

    def metric(self, name):
        text = self.ask("GET", "/metrics")[1].decode()
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE)
        return sum(map(float, found))

    def close(self):
        self.connection.close()
        self.process.terminate()
        self.process.wait()


def difference(found, expected):
    if found.shape != expected.shape:
        return float("inf")
    off = numpy.abs(found - expected) / numpy.maximum(1, numpy.abs(expected))
    return float(off.max(initial=0))


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def lengths(options):
    random = numpy.random.default_rng(options.seed)
    return [int(x) for x in random.integers(options.least, options.most + 1, options.requests)]


def small(options, place):
    """Memory of a worker with a model of a few numbers."""
    models = place / "least"
    version = models / "least" / "1"
    version.mkdir(parents=True)
    graph = Graph()
    x = graph.dense(graph.input("x", "float32", ["batch", 8]), 8, 4)
    graph.output(x, "y", ["batch", 4])
    graph.save(version / "model.onnx")
    with contextlib.closing(Worker(options.binary, models)) as worker:
        worker.wait_for("least")
        worker.infer("least", {"x": numpy.ones((1, 8), numpy.float32)})
        return worker.settled_memory()


def serve(options, place, name, path, make):
    """Loads and asks; gives what there is to say, in the order of the columns."""
    models = place / name
    version = models / name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(path, version / "model.onnx")
    if options.config:
        shutil.copyfile(options.config, models / name / "model.toml")
    runtime = session(path)
    random = numpy.random.default_rng(options.seed)
    runtime.run(None, make(random, options.most))
    ours, theirs, cpu, off = [], [], [], 0
    with contextlib.closing(Worker(options.binary, models)) as worker:
        worker.wait_for(name)
        loaded = worker.settled_memory()
        for length in lengths(options):
            inputs = make(random, length)
            before = worker.cpu_seconds()
            outputs, took = worker.infer(name, inputs)
            ours.append(1e3 * took)
            spent = worker.cpu_seconds() - before
            started, before = time.perf_counter(), time.thread_time()
            expected = runtime.run(None, inputs)
            theirs.append(1e3 * (time.perf_counter() - started))
            cpu.append((spent, time.thread_time() - before))
            for value, right in zip(runtime.get_outputs(), expected):
                off = max(off, difference(outputs[value.name], right))
        stats = worker.statistics(name)
        after = worker.settled_memory()
        stated = sum(usage["byte_size"] for usage in stats.get("memory_usage", []))
        compiled = worker.metric("forebay_worker_model_compilations_total")
    engine = stats["inference_stats"]["compute_infer"]
    return {
        "ours": ours,
        "theirs": theirs,
        "cpu": cpu,
        "engine": engine["ns"] / max(1, engine["count"]) / 1e6,
        "loaded": loaded,
        "after": after,
        "stated": stated,
        "file": path.stat().st_size,
        "compiled": int(compiled),
        "off": off,
    }


COLUMNS = (
    "model",
    "mean ms",
    "median",
    "max / median",
    "engine",
    "ORT mean",
    "ORT median",
    "mean / ORT",
    "CPU / ORT",
    "file MiB",
    "RSS small",
    "RSS loaded",
    "RSS after",
    "after / file",
    "growth",
    "stated",
    "compiled",
    "off by",
)


def row(name, without, found):
    ours, theirs = found["ours"], found["theirs"]
    mean, median = statistics.mean(ours), statistics.median(ours)
    ort = statistics.mean(theirs)
    return (
        name,
        f"{mean:.2f}",
        f"{median:.2f}",
        f"{max(ours) / median:.1f}",
        f"{found['engine']:.2f}",
        f"{ort:.2f}",
        f"{statistics.median(theirs):.2f}",
        f"{mean / ort:.2f}",
        f"{sum(a for a, _ in found['cpu']) / sum(b for _, b in found['cpu']):.2f}",
        f"{found['file'] / MIB:.1f}",
        f"{without / MIB:.0f}",
        f"{found['loaded'] / MIB:.0f}",
        f"{found['after'] / MIB:.0f}",
        f"{found['after'] / found['file']:.2f}",
        f"{(found['after'] - without) / MIB:.0f}",
        f"{found['stated'] / MIB:.0f}",
        str(found["compiled"]),
        f"{found['off']:.0e}",
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=ROOT / "target/release/forebay-worker")
    arguments.add_argument("--requests", type=int, default=100)
    arguments.add_argument("--least", type=int, default=8, help="shortest length")
    arguments.add_argument("--most", type=int, default=128, help="greatest length")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--config", type=pathlib.Path, help="a model.toml for each model")
    arguments.add_argument("models", nargs="*", default=list(MODELS))
    options = arguments.parse_args()
    print(
        f"onnxruntime {onnxruntime.__version__}; {options.requests} requests of lengths "
        f"{options.least} to {options.most}, seed {options.seed}"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="forebay-shapes-") as directory:
        place = pathlib.Path(directory)
        without = small(options, place)
        for wanted in options.models:
            name, path = wanted, place / f"{wanted}.onnx"
            if wanted in MODELS:
                write, make = MODELS[wanted]
                write(path)
            else:
                path = pathlib.Path(wanted)
                name, make = path.stem, of_file(path)
            try:
                found = serve(options, place, name, path, make)
                print("| " + " | ".join(row(name, without, found)) + " |", flush=True)
            except RuntimeError as error:
                failed = True
                print(f"{name}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
