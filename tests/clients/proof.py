#!/usr/bin/env python3
"""Checks the proxy with NVIDIA's tritonclient and compares what the models answer with ONNX Runtime.

Run it with run.sh. One line a check; the last line counts them; exit status 1 if one failed.
"""

import json
import os
import random
import signal
import socket
import sys
import tempfile

import numpy
import tritonclient.http as triton
from common import PATIENCE, TOLERANCE, Checks, Model, compare, differs, refused
from fleet import MODELS, WORKERS, Fleet, program
from tritonclient.utils import np_to_triton_dtype

# Rows of one request, for models whose first dimension is open.
BATCHES = (2, 3, 8)
# Random requests a model, each with another input.
RANDOM_REQUESTS = 4
# Requests under way at once, and in all, for the asynchronous client.
CONCURRENCY, ASYNC_REQUESTS = 4, 16
# Identities of one request, looked up in the access log.
REQUEST_ID, TRACE_ID = "proof-1", "ab" * 16


def tensors(inputs, binary):
    made = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


def wanted(model, binary):
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in model.outputs]


def infer(client, model, inputs, binary, **options):
    """Infers and returns the outputs as arrays."""
    given = tensors(inputs, binary)
    result = client.infer(model.name, given, outputs=wanted(model, binary), **options)
    return outputs_of(model, result)


def outputs_of(model, result):
    return {name: result.as_numpy(name) for name in model.outputs}


# --- checks of the whole ------------------------------------------------------------------------


def check_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()


def check_server(client):
    metadata = client.get_server_metadata()
    assert metadata["name"] == "forebay-worker", metadata
    assert "binary_tensor_data" in metadata["extensions"], metadata
    return f"{metadata['name']} {metadata['version']}"


def check_index(client, models):
    index = client.get_model_repository_index()
    ready = {entry["name"] for entry in index if entry["state"] == "READY"}
    assert ready == {model.name for model in models}, index


def check_unknown_model(client, model):
    inputs = tensors(next(iter(model.examples.values())), True)
    assert not client.is_model_ready("nonesuch")
    assert not client.is_model_ready(model.name, "9")
    refused(lambda: client.get_model_metadata("nonesuch"), 404, "nonesuch")
    refused(lambda: client.infer(model.name, inputs, model_version="9"), 404, "9")
    return refused(lambda: client.infer("nonesuch", inputs), 404, "nonesuch")


def check_workers_shared(fleet):
    """Both workers must have answered."""
    busy = []
    for line in fleet.get("/metrics").splitlines():
        if line.startswith("forebay_attempts_total{") and 'outcome="answered"' in line:
            busy.append(float(line.split()[-1]))
    assert len(busy) == WORKERS and min(busy) > 0, f"expected {WORKERS} busy workers, found {busy}"
    return " and ".join(f"{count:.0f}" for count in sorted(busy)) + " requests"


# --- checks of one model ------------------------------------------------------------------------


def check_metadata(client, model):
    """The metadata must say what ONNX Runtime reads in the file."""
    assert client.is_model_ready(model.name)
    assert client.is_model_ready(model.name, "1")
    metadata = client.get_model_metadata(model.name)
    types = {"tensor(float)": "FP32", "tensor(int32)": "INT32"}
    pairs = [("inputs", model.session.get_inputs()), ("outputs", model.session.get_outputs())]
    for key, described in pairs:
        for found, expected in zip(metadata[key], described, strict=True):
            assert found["name"] == expected.name, found
            assert found["datatype"] == types[expected.type], found
            for dimension, known in zip(found["shape"], expected.shape, strict=True):
                # A dimension that the file leaves open may be stated here, not the other way round.
                assert dimension == known or not isinstance(known, int), (found, expected.shape)
    return f"{metadata['platform']}, versions {metadata['versions']}"


def check_example(client, model, inputs):
    """JSON and binary tensors are the same numbers, so the answers must be the same bits."""
    as_json = infer(client, model, inputs, binary=False)
    as_binary = infer(client, model, inputs, binary=True, model_version="1")
    for name in model.outputs:
        assert numpy.array_equal(as_json[name], as_binary[name]), f"{name}: JSON and binary differ"
    return differs(compare(model, inputs, as_binary))


def check_random(client, model, rng):
    largest = 0.0
    for number in range(RANDOM_REQUESTS):
        inputs = model.random_inputs(rng, 1)
        found = infer(client, model, inputs, binary=number % 2 == 0)
        largest = max(largest, compare(model, inputs, found))
    return differs(largest)


def check_batch(client, model, rng, rows):
    """Realistic rows and noise in turn: a mixed-up order would show."""
    examples = list(model.examples.values())
    noise = model.random_inputs(rng, rows)
    inputs = {}
    for name, array in noise.items():
        inputs[name] = array.copy()
        for row in range(0, rows, 2):
            inputs[name][row] = examples[row // 2 % len(examples)][name][0]
    found = infer(client, model, inputs, binary=True)
    compare(model, inputs, infer(client, model, inputs, binary=False))
    return differs(compare(model, inputs, found))


def check_compressed(client, model, inputs, algorithm):
    found = infer(client, model, inputs, True, request_compression_algorithm=algorithm)
    return differs(compare(model, inputs, found))


def check_async(client, model, rng):
    requests = [model.random_inputs(rng, 1) for _ in range(ASYNC_REQUESTS)]
    under_way = [
        client.async_infer(model.name, tensors(i, True), outputs=wanted(model, True), request_id=str(n))
        for n, i in enumerate(requests)
    ]
    largest = 0.0
    for number, (inputs, waiting) in enumerate(zip(requests, under_way, strict=True)):
        result = waiting.get_result(timeout=PATIENCE)
        assert result.get_response()["id"] == str(number), result.get_response()
        largest = max(largest, compare(model, inputs, outputs_of(model, result)))
    return f"{ASYNC_REQUESTS} requests, {differs(largest)}"


def check_one_output(client, model, inputs):
    name = model.outputs[-1]
    output = triton.InferRequestedOutput(name, binary_data=True)
    result = client.infer(model.name, tensors(inputs, True), outputs=[output])
    found = [output["name"] for output in result.get_response()["outputs"]]
    assert found == [name], f"expected {[name]}, found {found}"


def check_bad_inputs(client, model, inputs):
    """Mistakes of the caller: each is refused with 400 and names the input."""
    name = next(iter(inputs))
    right = inputs[name]
    other = numpy.float32 if right.dtype == numpy.int32 else numpy.int32
    bad = {
        "datatype": {**inputs, name: numpy.zeros(right.shape, other)},
        "shape": {**inputs, name: numpy.zeros((*right.shape, 1), right.dtype)},
        "missing": {"nonesuch": right},
    }
    if right.dtype == numpy.float32:
        bad["NaN"] = {**inputs, name: numpy.full(right.shape, numpy.nan, numpy.float32)}
    for wrong in bad.values():
        word = name if name in wrong else "nonesuch"
        refused(lambda wrong=wrong: client.infer(model.name, tensors(wrong, True)), 400, word)
    return ", ".join(bad)


def check_recurrent(client, model, rng):
    """The state goes with the request: four chunks in a row, as a caller would send them."""
    state = expected_state = numpy.zeros((2, 1, 128), numpy.float32)
    largest = 0.0
    for _ in range(4):
        chunk = rng.uniform(-0.5, 0.5, (1, 576)).astype(numpy.float32)
        found = infer(client, model, {"input": chunk, "state": state}, binary=True)
        expected = model.expected({"input": chunk, "state": expected_state})
        state, expected_state = found["stateN"], expected["stateN"]
        largest = max(largest, *(float(numpy.abs(found[n] - expected[n]).max()) for n in expected))
    # Four steps may add up four roundings.
    assert largest <= 4 * TOLERANCE[model.name], largest
    return differs(largest)


def check_identity(client, model):
    """A request with identities of its own; the log is read when the proxy has ended."""
    inputs = next(iter(model.examples.values()))
    given = {"x-request-id": REQUEST_ID, "traceparent": f"00-{TRACE_ID}-{'cd' * 8}-01"}
    compare(model, inputs, infer(client, model, inputs, binary=True, headers=given))


def check_log(fleet, model):
    """The access log must tell of that request what its caller knows."""
    lines = [json.loads(line) for line in fleet.access_log.read_text().splitlines()]
    found = [line for line in lines if line["request_id"] == REQUEST_ID]
    assert len(found) == 1, f"expected one line, found {found}"
    line = found[0]
    assert (line["status"], line["reason"], line["model"]) == (200, "ok", model.name), line
    assert (line["trace_id"], line["route"], line["attempts"]) == (TRACE_ID, "proof", 1), line
    return f"{len(lines)} lines in all"


def check_drained(fleet, ports):
    """SIGTERM must end the proxy with status 0, and its workers with it."""
    assert fleet.exit_status == 0, f"expected exit status 0, found {fleet.exit_status}"
    for port in ports:
        with socket.socket() as probe:
            probe.settimeout(1)
            listening = probe.connect_ex(("127.0.0.1", port)) == 0
        assert not listening, f"a worker still listens on port {port}"


# --- all of them --------------------------------------------------------------------------------


def check_model(checks, client, model, rng):
    def run(what, check, *arguments):
        checks.run(f"{model.name}: {what}", check, client, model, *arguments)

    run("readiness and metadata", check_metadata)
    for name, inputs in model.examples.items():
        run(f"example {name}, JSON and binary", check_example, inputs)
    run("random inputs", check_random, rng)
    if model.batches:
        for rows in BATCHES:
            run(f"batch of {rows}, JSON and binary", check_batch, rng, rows)
    inputs = next(iter(model.examples.values()))
    for algorithm in ("gzip", "deflate"):
        run(f"{algorithm} request", check_compressed, inputs, algorithm)
    run("asynchronous", check_async, rng)
    run("one output only", check_one_output, inputs)
    run("refusals", check_bad_inputs, inputs)
    if model.name == "silero-vad":
        run("state carried by the caller", check_recurrent, rng)


def main():
    # An ending by signal must stop the proxy too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("proof: out of time"))
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed} (SEED={seed} gives the same random inputs)")
    rng = numpy.random.default_rng(seed)
    models = [Model(folder.name) for folder in sorted(MODELS.iterdir()) if folder.is_dir()]
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="forebay-proof-") as folder:
        with Fleet(program(), folder) as fleet:
            print(f"proxy on {fleet.listener} with {WORKERS} workers")
            patience = {"connection_timeout": PATIENCE, "network_timeout": PATIENCE}
            client = triton.InferenceServerClient(fleet.listener, concurrency=CONCURRENCY, **patience)
            checks.run("server live and ready", check_health, client)
            checks.run("server metadata", check_server, client)
            checks.run("repository index", check_index, client, models)
            checks.run("unknown model and version", check_unknown_model, client, models[0])
            for model in models:
                check_model(checks, client, model, rng)
            checks.run("both workers took part", check_workers_shared, fleet)
            checks.run("identities of the caller's own", check_identity, client, models[0])
            endpoints = fleet.status()["pools"]["proof"]["endpoints"]
            ports = [int(endpoint["address"].rsplit(":", 1)[1]) for endpoint in endpoints]
            client.close()
        checks.run("SIGTERM ends everything with status 0", check_drained, fleet, ports)
        checks.run("access log", check_log, fleet, models[0])
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
