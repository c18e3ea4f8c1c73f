#!/usr/bin/env python3
"""Write ONNX models that must not be trusted. Needs: pip install onnx==1.* numpy==2.*"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
X, Y = ("x", ["n", 4]), ("y", ["n", 4])


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(name, nodes, weights=(), x=X, y=Y, domain=None):
    inputs, outputs = [value(*x)], [value(*y)]
    graph = helper.make_graph(nodes, name, inputs, outputs, list(weights))
    opset = [helper.make_opsetid("", 16)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="forebay")
    write(name, model.SerializeToString())


def write(name, content):
    folder = HERE / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, **attributes)


def whole(name, numbers):
    return numpy_helper.from_array(numpy.array(numbers, "int64"), name)


def weight(dims, content=b""):
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=content)


def sized_by(kind, inputs, weights, **attributes):
    """A value that the file makes as large as it likes, summed up and added."""
    name = f"{kind.lower()}-huge"
    save(
        name,
        [
            node(kind, inputs, ["large"], **attributes),
            node("ReduceSum", ["large"], ["sum"], keepdims=0),
            node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
            node("Add", ["x", "number"], ["y"]),
        ],
        weights,
    )


# Not refused by its size, but more than a machine likes to give: 3 GiB. Not among the others, since
# those are also loaded without a bound.
HERE = HERE.parent / "eating"
for kind, inputs, weights in [
    ("ConstantOfShape", ["s"], [whole("s", [3 * 2**28])]),
    ("Expand", ["one", "s"], [numpy_helper.from_array(numpy.ones(1, "float32"), "one"), whole("s", [3 * 2**28])]),
]:
    sized_by(kind, inputs, weights)
HERE = HERE.parent / "hostile"
save("cycle", [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])])
save("cycle-of-one", [node("Add", ["x", "y"], ["y"])])
relu = [node("Relu", ["x"], ["y"])]
save("dimension-2-63", relu, x=("x", [2**63 - 1, 4]), y=("y", [2**63 - 1, 4]))
save("dimension-2-33", relu, x=("x", [2**33, 4]), y=("y", [2**33, 4]))
save("dimensions-2-80", relu, x=("x", [2**40, 2**40]), y=("y", [2**40, 2**40]))
add = [node("Add", ["x", "w"], ["y"])]
save("weight-2-62", add, [weight([2**62])])
save("weight-2-96", add, [weight([2**32] * 3, b"1234")])
save("weight-negative", add, [weight([-4], b"1234" * 4)])
save("weight-short", add, [weight([4], b"1234")])
outside = weight([4])
outside.data_location = TensorProto.EXTERNAL
outside.external_data.add(key="location", value="../../../secret.bin")
save("weight-outside", add, [outside])
save("operator-unknown", [node("Evil", ["x"], ["y"], domain="evil.example")], domain="evil.example")
save("input-missing", [node("Add", ["nothing", "x"], ["y"])])
save("output-missing", [node("Relu", ["x"], ["z"])])
sized_by("ConstantOfShape", ["s"], [whole("s", [2**40])])
sized_by("Tile", ["x", "s"], [whole("s", [2**20, 2**20])])
sized_by("Range", ["a", "b", "c"], [whole("a", 0), whole("b", 2**50), whole("c", 1)])
sized_by("Pad", ["x", "p"], [whole("p", [2**30] * 4)])
body = helper.make_graph(
    [node("Identity", ["c"], ["again"]), node("Add", ["v", "one"], ["more"])],
    "body",
    [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", [1])],
    [value("again", [], TensorProto.BOOL), value("more", [1])],
    [numpy_helper.from_array(numpy.array([1], "float32"), "one")],
)
save(
    "loop-endless",
    [node("Loop", ["m", "go", "zero"], ["r"], body=body), node("Add", ["x", "r"], ["y"])],
    [
        whole("m", 2**62),
        numpy_helper.from_array(numpy.array(True), "go"),
        numpy_helper.from_array(numpy.array([0], "float32"), "zero"),
    ],
)


def field(number, content):
    """A field of bytes as protobuf has it."""
    length, encoded = len(content), b""
    while length > 127:
        encoded, length = encoded + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + content


# A graph in an attribute of a node of a graph, and so on: ModelProto.graph is 7, GraphProto.node 1,
# NodeProto.attribute 5, AttributeProto.g 6.
nested = b""
for _ in range(3000):
    nested = field(1, field(5, field(6, nested)))
write("nested-3000", field(7, nested))
