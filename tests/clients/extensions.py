#!/usr/bin/env python3
"""Checks what clients use beyond inference itself, with tritonclient over HTTP and gRPC: statistics,
configuration, classification, binary tensors, compression, streams and the repository calls.

Each check runs straight against a worker and through a proxy in front of it. Run it with run.sh.
"""

import gzip
import json
import queue
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
import zlib

import numpy
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from common import PATIENCE, TOLERANCE, Checks, Model, compare, differs
from fleet import MODELS, Fleet, Worker, program
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# The model that most checks use: it has labels, batches, and one input.
NAME = "magika"
# Requests of the statistics check and of a stream.
REQUESTS = 5


class Client:
    """One of tritonclient's two clients, with what differs between them."""

    def __init__(self, kind, address):
        self.kind, self.address = kind, address
        self.module = over_http if kind == "http" else over_grpc
        if kind == "http":
            patience = {"connection_timeout": PATIENCE, "network_timeout": PATIENCE}
            self.calls = over_http.InferenceServerClient(address, **patience)
        else:
            self.calls = over_grpc.InferenceServerClient(address)

    def inputs(self, inputs, binary=True):
        made = []
        for name, array in inputs.items():
            made.append(self.module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            form = {"binary_data": binary} if self.kind == "http" else {}
            made[-1].set_data_from_numpy(array, **form)
        return made

    def output(self, name, binary=True, **options):
        form = {"binary_data": binary} if self.kind == "http" else {}
        return self.module.InferRequestedOutput(name, **form, **options)

    def infer(self, model, inputs, **options):
        return self.calls.infer(model.name, self.inputs(inputs), **options)

    def statistics(self, name="", version=""):
        return self.calls.get_inference_statistics(name, version, **self.as_json())

    def config(self, name):
        config = self.calls.get_model_config(name, **self.as_json())
        return config.get("config", config)

    def as_json(self):
        """gRPC's JSON writes 64-bit numbers as text and leaves out what is 0."""
        return {} if self.kind == "http" else {"as_json": True}


def whole(found, name):
    return int(found.get(name, 0))


def refused(call, word):
    """`call` must be refused in words that name `word`."""
    try:
        call()
    except InferenceServerException as error:
        assert word in str(error), f"expected {word} to be named, found {error}"
        return str(error).split("] ")[-1]
    raise AssertionError("expected a refusal, found an answer")


def outputs_of(model, result):
    return {name: result.as_numpy(name) for name in model.outputs}


# --- checks -------------------------------------------------------------------------------------


def check_calls(client, model):
    """What the service says of itself is there over both protocols."""
    calls = client.calls
    assert calls.is_server_live() and calls.is_server_ready() and calls.is_model_ready(model.name)
    metadata = calls.get_server_metadata(**client.as_json())
    for extension in ("statistics", "classification", "model_configuration", "model_repository"):
        assert extension in metadata["extensions"], metadata
    metadata = calls.get_model_metadata(model.name, **client.as_json())
    assert metadata["inputs"][0]["datatype"] == "INT32", metadata


def check_config(client, model):
    config = client.config(model.name)
    assert config["name"] == model.name and whole(config, "max_batch_size") == 32, config
    assert config["input"][0]["data_type"] == "TYPE_INT32", config
    assert [int(dim) for dim in config["input"][0]["dims"]] == [2048], config
    assert config["output"][0]["label_filename"] == "labels.txt", config


def check_statistics(client, model):
    """Every request of ours, and nothing but those, is counted: one endpoint, nobody else."""
    inputs = next(iter(model.examples.values()))

    def numbers():
        found = client.statistics(model.name)["model_stats"][0]
        times = found["inference_stats"]
        success = times["success"]
        parts = [times[part] for part in ("queue", "compute_input", "compute_infer", "compute_output")]
        ran = [whole(success, "ns"), *(whole(part, "ns") for part in parts)]
        return (
            [whole(found, "inference_count"), whole(found, "execution_count")]
            + [whole(success, "count"), whole(times.get("fail", {}), "count")],
            ran,
        )

    counts, times = numbers()
    for _ in range(REQUESTS):
        client.infer(model, inputs)
    refused(lambda: client.infer(model, {"nonesuch": inputs["bytes"]}), "nonesuch")
    after, times_after = numbers()
    grown = [b - a for a, b in zip(counts, after, strict=True)]
    assert grown == [REQUESTS, REQUESTS, REQUESTS, 1], grown
    whole_time, *parts = (b - a for a, b in zip(times, times_after, strict=True))
    assert all(part > 0 for part in parts) and sum(parts) <= whole_time, (whole_time, parts)
    everything = client.statistics()["model_stats"]
    assert model.name in {entry["name"] for entry in everything}, everything
    refused(lambda: client.statistics("nonesuch"), "nonesuch")
    return f"{parts[2] / REQUESTS / 1e6:.1f} ms in the engine of {whole_time / REQUESTS / 1e6:.1f}"


def check_classification(client, model):
    """The three likeliest of each row must be ONNX Runtime's, with their names."""
    labels = (MODELS / model.name / "labels.txt").read_text().split()
    examples = [next(iter(inputs.values())) for inputs in model.examples.values()]
    inputs = {"bytes": numpy.concatenate(examples)}
    expected = model.expected(inputs)["target_label"]
    for binary in (True, False):
        output = client.output("target_label", binary=binary, class_count=3)
        found = client.infer(model, inputs, outputs=[output]).as_numpy("target_label")
        assert found.shape == (len(examples), 3), found.shape
        for row, numbers in zip(found, expected, strict=True):
            # JSON gives texts, the binary form bytes.
            texts = [text if isinstance(text, str) else text.decode() for text in row]
            parts = [text.split(":") for text in texts]
            assert int(parts[0][1]) == int(numbers.argmax()), (texts, numbers.argmax())
            for value, index, label in parts:
                assert abs(float(value) - numbers[int(index)]) <= TOLERANCE[model.name], texts
                assert label == labels[int(index)], texts
    return texts[0]


def check_forms(client, model):
    """Every way in and out gives the same bits: by input, by output, and where nothing is said."""
    inputs = next(iter(model.examples.values()))
    seen = []
    for in_binary in (True, False):
        for outputs in (None, [True], [False]):
            given = client.inputs(inputs, in_binary)
            if outputs is not None:
                outputs = [client.output(name, outputs[0]) for name in model.outputs]
            result = client.calls.infer(model.name, given, outputs=outputs)
            seen.append(outputs_of(model, result))
    for other in seen[1:]:
        for name in model.outputs:
            assert numpy.array_equal(seen[0][name], other[name]), name
    return f"{len(seen)} forms, {differs(compare(model, inputs, seen[0]))}"


def check_compression(client, model):
    """Requests and answers in both compressions; the client undoes what comes back."""
    example = next(iter(model.examples.values()))
    inputs = {name: numpy.repeat(array, 8, axis=0) for name, array in example.items()}
    for algorithm in ("gzip", "deflate"):
        if client.kind == "http":
            options = {
                "request_compression_algorithm": algorithm,
                "response_compression_algorithm": algorithm,
            }
        else:
            options = {"compression_algorithm": algorithm}
        found = client.infer(model, inputs, **options)
        compare(model, inputs, outputs_of(model, found))


def check_raw(address, model):
    """No JSON at all: the body is the one input, the answer is asked for by nothing."""
    inputs = next(iter(model.examples.values()))
    url = f"http://{address}/v2/models/{model.name}/infer"
    headers = {
        "Inference-Header-Content-Length": "0",
        "Content-Type": "application/octet-stream",
        "Accept-Encoding": "gzip",
    }
    request = urllib.request.Request(url, inputs["bytes"].tobytes(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        body, encoding = answer.read(), answer.headers.get("Content-Encoding")
    assert encoding == "gzip", encoding
    found = json.loads(gzip.decompress(body))["outputs"][0]
    array = numpy.array(found["data"], numpy.float32).reshape(found["shape"])
    return differs(compare(model, inputs, {found["name"]: array}))


def check_stream(client, model):
    """Answers of a stream come in the order of its requests; a refusal does not end it."""
    examples = list(model.examples.values())
    answers = queue.Queue()
    client.calls.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(REQUESTS):
        inputs = client.inputs(examples[number % len(examples)])
        client.calls.async_stream_infer(model.name, inputs, request_id=str(number))
    client.calls.async_stream_infer("nonesuch", client.inputs(examples[0]), request_id="bad")
    client.calls.async_stream_infer(model.name, client.inputs(examples[0]), request_id="last")
    largest = 0.0
    for number in range(REQUESTS):
        result, error = answers.get(timeout=PATIENCE)
        assert error is None and result.get_response().id == str(number), (error, number)
        inputs = examples[number % len(examples)]
        largest = max(largest, compare(model, inputs, outputs_of(model, result)))
    _, error = answers.get(timeout=PATIENCE)
    assert error is not None and "nonesuch" in str(error), error
    result, error = answers.get(timeout=PATIENCE)
    assert error is None and result.get_response().id == "last", error
    client.calls.stop_stream()
    return differs(largest)


def check_repository(client):
    """Unloaded, a model is refused; loaded, it answers again."""
    calls = client.calls
    other = "silero-vad"
    calls.unload_model(other)
    assert not calls.is_model_ready(other)
    index = calls.get_model_repository_index(**client.as_json())
    entries = index if client.kind == "http" else index["models"]
    state = {entry["name"]: entry.get("state") for entry in entries}
    assert state[other] == "UNAVAILABLE" and state[NAME] == "READY", state
    calls.load_model(other)
    assert calls.is_model_ready(other)
    return refused(lambda: calls.load_model("nonesuch"), "nonesuch")


def check_deflated_body(address, model):
    """A body that inflates beyond the limit is refused, not believed."""
    bomb = zlib.compress(b" " * (65 << 20))
    url = f"http://{address}/v2/models/{model.name}/infer"
    request = urllib.request.Request(url, bomb, {"Content-Encoding": "deflate"})
    try:
        urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        assert error.code == 413, error
        return json.loads(error.read())["error"]
    raise AssertionError("expected a refusal, found an answer")


# --- all of them --------------------------------------------------------------------------------


def check_all(checks, address, way, model):
    for kind in ("http", "grpc"):
        client = Client(kind, address)

        def run(what, check, *arguments, kind=kind, client=client):
            checks.run(f"{way}, {kind}: {what}", check, client, *arguments)

        run("calls", check_calls, model)
        run("configuration", check_config, model)
        run("statistics", check_statistics, model)
        run("classification", check_classification, model)
        run("forms of tensors", check_forms, model)
        run("compression both ways", check_compression, model)
        run("repository", check_repository)
        if kind == "grpc":
            run("stream", check_stream, model)
        client.calls.close()
    checks.run(f"{way}: raw request, compressed answer", check_raw, address, model)
    checks.run(f"{way}: body that inflates beyond the limit", check_deflated_body, address, model)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("extensions: out of time"))
    checks, model = Checks(), Model(NAME)
    with tempfile.TemporaryDirectory(prefix="forebay-extensions-") as folder:
        models = f"{folder}/models"
        shutil.copytree(MODELS, models)
        with Worker(program(), models, "--models-control") as worker:
            check_all(checks, worker.address, "straight", model)
            with Fleet(program(), folder, [worker.address]) as fleet:
                check_all(checks, fleet.listener, "proxy", model)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
