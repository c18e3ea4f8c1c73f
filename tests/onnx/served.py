#!/usr/bin/env python3
"""Models as the worker serves them, beside ONNX Runtime: alone, in batches, and under many clients.

    cargo build --release --workspace
    target/onnx/bin/python tests/onnx/served.py                    the bundled models
    target/onnx/bin/python tests/onnx/served.py FOLDER ...         models of yours
    target/onnx/bin/python tests/onnx/served.py --skip NAME ...    without this one
    target/onnx/bin/python tests/onnx/served.py --onnxruntime LIBRARY ...    in the worker's ONNX Runtime

A folder is a model repository (NAME/1/model.onnx, with model.toml beside the versions), with or without
a cases.json of inputs and right answers, or holds files NAME.onnx, with NAME.expected.json of one input
and its right answer. Inputs are drawn at random; a request's right answer is what ONNX Runtime gives for
that request alone; what the worker says is no request of the model has none. "alone" are requests of one row and those with known answers, "batches" requests of 2
to 9 and of 16 rows, "clients" requests of 1 to 3 rows from 24 clients at once. Of each there is the
number that was asked and the number that was answered wrongly, and of requests and models that are
refused, the reason.

Models with a section [embedding] are asked for the embeddings of texts as well, which are given as tokens:
one at a time, several of different lengths in one request, and by the clients. The right embedding of a text
is the mean of what ONNX Runtime gives for its tokens.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import shutil
import sys
import tempfile
import time
import tomllib

import numpy
import onnx

import live

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "backends/tract"))
import shapes  # noqa: E402

TOLERANCE = 1e-3
CLIENTS, REQUESTS = 24, 4
# Texts are of tokens below this, and of fewer than so many.
TOKENS, LONGEST = 10, 30
ROWS = [2, 3, 4, 5, 6, 7, 8, 9, 16]
# The sizes that open dimensions behind the first are given.
OPEN = 8
KINDS = {"float16": "FP16", "float64": "FP64", "int8": "INT8", "int16": "INT16", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64"}
shapes.TYPES.update({kind: (name, 0) for kind, name in KINDS.items()})
shapes.DATATYPES.update({name: numpy.dtype(kind) for kind, name in KINDS.items()})


class Client(shapes.Worker):
    """A connection to a worker that somebody else has started."""

    def __init__(self, worker):
        self.connection = http.client.HTTPConnection(worker.connection.host, worker.connection.port, timeout=120)

    def close(self):
        self.connection.close()


class Served:
    """A model: its file, the operator's word, and inputs whose answers are known."""

    def __init__(self, name, path, settings=None, known=()):
        self.name, self.path, self.settings, self.known = name, path, settings, list(known)
        self.session = live.session(onnx.load(path))
        self.declared = {}
        self.embedding = tomllib.loads(settings or "").get("embedding")

    def learn(self, worker):
        """The sizes that the worker takes: the operator may have fixed some."""
        metadata = json.loads(worker.ask("GET", f"/v2/models/{self.name}")[1])
        self.declared = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]}

    def shape(self, value, rows):
        given = next((inputs[value.name].shape for inputs, _ in self.known), None)
        open_sizes = given or [OPEN] * len(value.shape)
        sizes = enumerate(self.declared[value.name])
        return [size if size >= 0 else rows if not place else open_sizes[place] for place, size in sizes]

    def draw(self, random, rows):
        """Inputs that ONNX Runtime takes, and its answer; `None` if there are none of so many rows. What is
        no number, or infinite, is no answer: a worker gives it only where it is told to."""
        for most in (256, 40, 2, 2, 2):
            inputs = {}
            for value in self.session.get_inputs():
                shape, kind = self.shape(value, rows), dtype(value)
                if "mask" in value.name:
                    inputs[value.name] = numpy.ones(shape, kind)
                elif kind.kind == "f":
                    inputs[value.name] = (random.normal(size=shape) * random.choice([0.1, 1, 3])).astype(kind)
                else:
                    inputs[value.name] = random.integers(0, 2 if kind == bool else min(most, 100 if kind.itemsize == 1 else most), shape).astype(kind)
            try:
                right = self.right(inputs)
                if all(values.dtype.kind != "f" or numpy.isfinite(values).all() for values in right.values()):
                    return inputs, right
            except Exception:  # noqa: BLE001: not all inputs are such that a model takes them
                continue
        return None

    def right(self, inputs):
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs)))

    def texts(self, random, count):
        """Texts of different lengths, as tokens, and the right embedding of each."""
        texts = [random.integers(0, TOKENS, int(random.integers(1, LONGEST))).tolist() for _ in range(count)]
        return texts, [self.embedded(text) for text in texts]

    def embedded(self, text):
        ids = numpy.array([text], numpy.int64)
        inputs = {value.name: numpy.ones_like(ids) if "mask" in value.name else ids for value in self.session.get_inputs()}
        inputs |= {name: numpy.zeros_like(ids) for name in inputs if "type" in name}
        mean = self.session.run(None, inputs)[0][0].mean(axis=0)
        return mean / numpy.linalg.norm(mean) if self.embedding.get("normalize", True) else mean

    def has_rows(self):
        inputs = self.session.get_inputs()
        return bool(inputs) and all(value.shape and not isinstance(value.shape[0], int) for value in inputs)


def dtype(value):
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return numpy.dtype({"float": "float32", "double": "float64", "string": "object"}.get(name, name))


def is_wrong(found, right):
    if set(found) != set(right):
        return True
    return any(differs(found[name], right[name]) for name in right)


def differs(found, right):
    if found.shape != right.shape or found.dtype != right.dtype:
        return True
    if right.dtype.kind != "f":
        return not (found == right).all()
    tolerance = 10 * TOLERANCE if right.dtype == numpy.float16 else TOLERANCE
    with numpy.errstate(all="ignore"):
        off = numpy.abs(found - right) / numpy.maximum(1, numpy.abs(right))
    same = (found == right) | (numpy.isnan(found) & numpy.isnan(right))
    return not (same | (off <= tolerance)).all()


def array(tensor):
    kind = tensor.get("dtype") or tensor.get("datatype")
    data = numpy.array(tensor["data"], dtype=object)
    data = numpy.where(data == None, numpy.nan, data)  # noqa: E711: of each element
    return data.astype(kind).reshape(tensor["shape"])


def models_in(folder):
    """Models of a folder; those whose known inputs are no plain tensors have none."""
    answers = {}
    if (folder / "cases.json").exists():
        for case in json.loads((folder / "cases.json").read_text()):
            inputs = {tensor["name"]: array(tensor) for tensor in case["inputs"]}
            answers.setdefault(case["model"], []).append((inputs, case["right"]))
    for version in sorted(folder.glob("*/1/model.onnx")):
        name, settings = version.parents[1].name, version.parents[1] / "model.toml"
        text = settings.read_text() if settings.exists() else None
        # Labels are files beside the model, and say nothing of numbers.
        text = text and "".join(line for line in text.splitlines(True) if not line.startswith("label_file"))
        yield name, version, text, answers.get(name, [])
    for path in sorted(folder.glob("*.onnx")):
        beside = path.with_suffix(".expected.json")
        known, settings = [], None
        if beside.exists():
            case = json.loads(beside.read_text())
            settings = case.get("model_toml")
            with contextlib.suppress(ValueError, TypeError, KeyError):
                known = [({name: array(tensor) for name, tensor in case["inputs"].items()}, None)]
        yield path.stem, path, settings, known


def ask(client, model, asked):
    """How many of these were answered wrongly, and the first reason."""
    wrong, why = 0, ""
    for inputs, right in asked:
        is_refused = False
        try:
            found, _ = client.infer(model.name, inputs)
            is_bad, reason = is_wrong(found, right), "other numbers"
        except Exception as error:  # noqa: BLE001: no answer is no right one
            reason = str(error)[:100]
            is_refused = reason.startswith(f"{model.name}: 400")
            is_bad = not is_refused
        wrong += is_bad
        why = why or (reason if is_bad or is_refused else "")
    return len(asked), wrong, why


def embed(client, model, asked):
    """The same of texts; each request has one or several."""
    wrong, why = 0, ""
    for texts, right in asked:
        body = json.dumps({"model": model.name, "input": texts}).encode()
        response, answer = client.ask("POST", "/v1/embeddings", body)
        if response.status == 200:
            found = [numpy.array(entry["embedding"]) for entry in json.loads(answer)["data"]]
            is_bad = len(found) != len(right) or any(differs_much(a, b) for a, b in zip(found, right))
        else:
            is_bad, why = True, why or answer.decode()[:100]
        wrong += is_bad
        why = why or ("other embeddings" if is_bad else "")
    return len(asked), wrong, why


def differs_much(found, right):
    return found.shape != right.shape or not (numpy.abs(found - right) <= TOLERANCE * numpy.maximum(1, numpy.abs(right))).all()


def of_clients(worker, ask_one, drawn):
    """What all clients at once have found; each has requests of its own."""

    def one(asked):
        with contextlib.closing(Client(worker)) as client:
            return ask_one(client, asked)

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, drawn))
    return sum(f[0] for f in found), sum(f[1] for f in found), next((f[2] for f in found if f[2]), "")


def check_texts(worker, model, random):
    with contextlib.closing(Client(worker)) as client:
        alone = embed(client, model, [model.texts(random, 1) for _ in range(5)])
        batches = embed(client, model, [model.texts(random, count) for count in ROWS])
    drawn = [[model.texts(random, int(random.integers(1, 4))) for _ in range(REQUESTS)] for _ in range(CLIENTS)]
    return alone, batches, of_clients(worker, lambda client, asked: embed(client, model, asked), drawn)


def under_clients(worker, model, random):
    rows = [1, 1, 2, 3] if model.has_rows() else [1]
    drawn = [[model.draw(random, int(random.choice(rows))) for _ in range(REQUESTS)] for _ in range(CLIENTS)]
    drawn = [[pair for pair in requests if pair] for requests in drawn]

    return of_clients(worker, lambda client, asked: ask(client, model, asked), drawn)


def check(worker, model, seed):
    random = numpy.random.default_rng(seed)
    model.learn(worker)
    pairs = lambda rows: [pair for pair in (model.draw(random, n) for n in rows) if pair]  # noqa: E731
    known = [(inputs, model.right(inputs)) for inputs, _ in model.known]
    with contextlib.closing(Client(worker)) as client:
        alone = ask(client, model, known + pairs([1] * 5))
        batches = ask(client, model, pairs(ROWS) if model.has_rows() else [])
    return alone, batches, under_clients(worker, model, random)


def wait_for(worker, names):
    """State and reason of each model once none is being loaded."""
    while True:
        index = json.loads(worker.ask("POST", "/v2/repository/index", b"{}")[1])
        states = {entry["name"]: (entry.get("state"), entry.get("reason", "")) for entry in index}
        under_way = ("", "waiting", "loading")
        is_settled = lambda state, reason: state == "READY" or not reason.startswith(under_way[1:]) and reason  # noqa: E731
        if all(is_settled(*states.get(name, ("", ""))) for name in names):
            return states
        time.sleep(0.2)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folders", nargs="*", type=pathlib.Path, default=[ROOT / "backends/models"])
    arguments.add_argument("--worker", default=str(ROOT / "target/release/forebay-worker"))
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--onnxruntime", help="the library, with which the worker runs all models")
    arguments.add_argument("--skip", action="append", default=[], help="a model that is not asked")
    options = arguments.parse_args()
    failed, total = 0, 0
    print(f"{'model':34} {'alone':>9} {'batches':>9} {'clients':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        models = {}
        repository = pathlib.Path(scratch) / "models"
        for folder in options.folders:
            for name, path, settings, known in models_in(folder):
                if name in options.skip:
                    continue
                try:
                    # Two folders may have models of one name.
                    name += "-2" * (name in models)
                    models[name] = Served(name, path, settings, known)
                except Exception as error:  # noqa: BLE001
                    print(f"{name:34} ONNX Runtime: {str(error)[:90]}")
                    continue
                version = repository / name / "1"
                version.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, version / "model.onnx")
                if options.onnxruntime:
                    settings = f'engine = "onnxruntime"\n{settings or ""}'
                if settings:
                    (version.parent / "model.toml").write_text(settings)
                if (path.parents[1] / "tokenizer.json").exists():
                    shutil.copyfile(path.parents[1] / "tokenizer.json", version.parent / "tokenizer.json")
        flags = ["--onnxruntime", options.onnxruntime] if options.onnxruntime else []
        with contextlib.closing(shapes.Worker(options.worker, repository, flags)) as worker:
            states = wait_for(worker, models)
            for name, model in models.items():
                state, reason = states[name]
                if state != "READY":
                    print(f"{name:34} refused: {reason[:110]}")
                    continue
                lines = [(name, check(worker, model, options.seed))]
                if model.embedding:
                    random = numpy.random.default_rng(options.seed)
                    lines.append((f"{name} (texts)", check_texts(worker, model, random)))
                for line, found in lines:
                    failed += sum(wrong for _, wrong, _ in found)
                    total += sum(asked for asked, _, _ in found)
                    cells = [f"{wrong}/{asked}" for asked, wrong, _ in found]
                    why = next((why for _, _, why in found if why), "")
                    print(f"{line:34} {cells[0]:>9} {cells[1]:>9} {cells[2]:>9}  {why}", flush=True)
    print(f"{failed} of {total} answers are wrong")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
