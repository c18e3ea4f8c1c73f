#!/usr/bin/env python3
"""Write the small ONNX models that the worker's tests need. Needs: pip install onnx==1.* numpy==2.*"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, array):
    return numpy_helper.from_array(numpy.asarray(array), name)


def save(name, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, list(weights))
    opset = [helper.make_opsetid("", 16)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="forebay")
    onnx.checker.check_model(model)
    folder = HERE / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, **attributes)


# sum = a + b, difference = a - b: two inputs, two outputs, independent rows.
save(
    "arith",
    [node("Add", ["a", "b"], ["sum"]), node("Sub", ["a", "b"], ["difference"])],
    [value("a", ["n", 4]), value("b", ["n", 4])],
    [value("sum", ["n", 4]), value("difference", ["n", 4])],
)

# y = ln x: not finite for x <= 0.
save("log", [node("Log", ["x"], ["y"])], [value("x", ["n", 2])], [value("y", ["n", 2])])

# Each row minus the mean over all rows: the first dimension is open, but no batch.
save(
    "centred",
    [
        node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["x", "mean"], ["y"]),
    ],
    [value("x", ["n", 2])],
    [value("y", ["n", 2])],
)

# An LSTM over 5 steps of 3 features: memory that must not outlive a request.
rng = numpy.random.default_rng(7)
hidden = 4
save(
    "lstm",
    [node("LSTM", ["x", "W", "R", "B"], ["all", "y", "c"], hidden_size=hidden)],
    [value("x", [5, 1, 3])],
    [value("y", [1, 1, hidden])],
    [
        weight("W", rng.normal(0, 1, (1, 4 * hidden, 3)).astype("float32")),
        weight("R", rng.normal(0, 1, (1, 4 * hidden, hidden)).astype("float32")),
        weight("B", rng.normal(0, 1, (1, 8 * hidden)).astype("float32")),
    ],
)

# 60 products of the n x n matrix that n numbers span: nothing for n = 1, seconds for n = 1024.
products = 60
nodes = [
    node("Unsqueeze", ["x", "first"], ["row"]),
    node("Unsqueeze", ["x", "second"], ["column"]),
    node("Mul", ["row", "column"], ["p0"]),
]
nodes += [node("MatMul", [f"p{i}", "p0"], [f"p{i + 1}"]) for i in range(products)]
nodes.append(node("ReduceMean", [f"p{products}"], ["y"], axes=[0, 1], keepdims=0))
save(
    "slow",
    nodes,
    [value("x", ["n"])],
    [value("y", [])],
    [weight("first", numpy.array([0], "int64")), weight("second", numpy.array([1], "int64"))],
)

# Row x of a table with 10 rows: an index beyond it makes the whole run fail.
save(
    "lookup",
    [node("Gather", ["table", "x"], ["y"], axis=0)],
    [value("x", ["n"], TensorProto.INT64)],
    [value("y", ["n", 2])],
    [weight("table", numpy.arange(20, dtype="float32").reshape(10, 2))],
)

# The LSTM above over any number of steps: one node of the graph, however long it takes.
rng = numpy.random.default_rng(7)
save(
    "endless",
    [node("LSTM", ["x", "W", "R", "B"], ["all", "y", "c"], hidden_size=hidden)],
    [value("x", ["steps", 1, 3])],
    [value("y", [1, 1, hidden])],
    [
        weight("W", rng.normal(0, 1, (1, 4 * hidden, 3)).astype("float32")),
        weight("R", rng.normal(0, 1, (1, 4 * hidden, hidden)).astype("float32")),
        weight("B", rng.normal(0, 1, (1, 8 * hidden)).astype("float32")),
    ],
)
