"""Writes MLServer's settings for a model: `settings.py ONNX FOLDER HTTP GRPC METRICS`."""

import json
import pathlib
import shutil
import sys

import onnxruntime

onnx, folder, http, grpc, metrics = sys.argv[1:]
folder = pathlib.Path(folder)
session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
TYPES = {"tensor(float)": "FP32", "tensor(int32)": "INT32", "tensor(int64)": "INT64"}


def described(tensors):
    return [
        {
            "name": tensor.name,
            "datatype": TYPES[tensor.type],
            "shape": [dim if isinstance(dim, int) else -1 for dim in tensor.shape],
        }
        for tensor in tensors
    ]


settings = {
    "host": "127.0.0.1",
    "http_port": int(http),
    "grpc_port": int(grpc),
    "metrics_port": int(metrics),
    # One process, one core: a pool of its own would only pass requests around.
    "parallel_workers": 0,
    "debug": False,
}
model = {
    "name": "model",
    "implementation": "model.Onnx",
    "parameters": {"uri": onnx, "version": "1"},
    "inputs": described(session.get_inputs()),
    "outputs": described(session.get_outputs()),
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(json.dumps(model))
shutil.copy(pathlib.Path(__file__).with_name("model.py"), folder / "model.py")
