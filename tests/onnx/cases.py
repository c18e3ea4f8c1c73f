"""Models with inputs and right answers, given to the engine's example `cases`."""

import os
import pathlib
import subprocess

import numpy
import onnx
from onnx import TensorProto, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = os.environ.get("CASES", str(ROOT / "target/debug/examples/cases"))
# Datatypes of the Open Inference Protocol that the engine takes.
PLAIN = {
    TensorProto.BOOL,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.FLOAT16,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.STRING,
}


def is_plain(value):
    kind = value.type
    return kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type in PLAIN


def write(folder, model, data_sets):
    """Writes a case; `data_sets` are pairs of lists of arrays, inputs and outputs, or inputs and None
    where the inputs are a mistake of the caller."""
    for number, (inputs, outputs) in enumerate(data_sets):
        data_set = folder / f"test_data_set_{number}"
        data_set.mkdir(parents=True)
        if outputs is None:
            (data_set / "refused").touch()
        for kind, values in (("input", inputs), ("output", outputs or [])):
            for place, value in enumerate(values):
                if not isinstance(value, onnx.TensorProto):
                    value = numpy_helper.from_array(numpy.asarray(value))
                (data_set / f"{kind}_{place}.pb").write_bytes(value.SerializeToString())
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def run(folders, *arguments):
    """Verdict and reason for each of the folders."""
    lines = "".join(f"{folder}\n" for folder in folders)
    command = [CASES, *arguments]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    found = {}
    for line in done.stdout.splitlines():
        verdict, folder, why = line.split("\t", 2)
        found[pathlib.Path(folder)] = (verdict, why)
    for folder in folders:
        found.setdefault(folder, ("died", done.stderr[-300:]))
    return found
