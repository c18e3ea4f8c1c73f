"""Writes Triton's repository for a model: `triton_settings.py ONNX FOLDER`."""

import pathlib
import shutil
import sys

import onnxruntime

onnx, folder = sys.argv[1:]
model = pathlib.Path(folder) / "model"
(model / "1").mkdir(parents=True, exist_ok=True)
session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int32)": "TYPE_INT32", "tensor(int64)": "TYPE_INT64"}


def described(key, tensors):
    for tensor in tensors:
        dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in tensor.shape)
        yield f'{key} [{{ name: "{tensor.name}" data_type: {TYPES[tensor.type]} dims: [{dims}] }}]'


lines = ['name: "model"', 'backend: "python"', "max_batch_size: 0"]
lines += ["instance_group [{ kind: KIND_CPU count: 1 }]"]
lines += [*described("input", session.get_inputs()), *described("output", session.get_outputs())]
(model / "config.pbtxt").write_text("\n".join(lines) + "\n")
shutil.copy(onnx, model / "1" / "model.onnx")
shutil.copy(pathlib.Path(__file__).with_name("triton.py"), model / "1" / "model.py")
