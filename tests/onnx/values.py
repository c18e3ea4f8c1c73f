#!/usr/bin/env python3
"""Values that lie at an edge, given to single operators: places that are out of bounds, sizes that do
not fit together, divisors of zero, and what is no number.

What ONNX Runtime answers has to be answered alike; what it refuses has to be refused as a mistake of
the caller, neither answered nor ended by a panic. It is not asked where it ends itself (integers
divided by zero) or where it would take all memory. Where it hides what is no number in one place and
gives it in another (pools and reductions to the greatest value), no number is what is right.
"""

import pathlib
import sys
import tempfile

import numpy
import onnx
from onnx import helper, numpy_helper

import cases
from graphs import Skip, answers, session

OPSET = 17
NONE = numpy.float32(numpy.nan)
node = helper.make_node


def integers(*values):
    return numpy.array(values, numpy.int64)


def floats(*shape, seed=1):
    return numpy.random.default_rng(seed).normal(size=shape).astype(numpy.float32)


class Operator:
    """Nodes, and sets of inputs, the first of which is usual; a set is (inputs, outputs), where outputs
    are None for a mistake of the caller, and "ask" for what ONNX Runtime says."""

    def __init__(self, name, nodes, sets, weights=None, outputs=1, is_open=False):
        self.name, self.nodes, self.weights = name, nodes, weights or {}
        self.outputs, self.is_open = outputs, is_open
        self.sets = [each if isinstance(each, tuple) else (each, "ask") for each in sets]

    def model(self):
        def value(name, array):
            shape = [f"{name}{axis}" if self.is_open else size for axis, size in enumerate(array.shape)]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            return helper.make_tensor_value_info(name, kind, shape)

        first = self.sets[0][0]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value(name, array) for name, array in first.items()],
            [onnx.ValueInfoProto(name=f"y{place}") for place in range(self.outputs)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        running = session(onnx.shape_inference.infer_shapes(model))
        for output, result in zip(model.graph.output, running.run(None, first)):
            shape = list(result.shape)
            if self.is_open:
                shape = [f"{output.name}{axis}" for axis in range(len(shape))]
            kind = helper.np_dtype_to_tensor_dtype(result.dtype)
            output.type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
        return model

    def write(self, folder):
        """One case for each set, behind the usual one."""
        model = self.model()
        running = session(model)

        def right(inputs, outputs):
            if outputs != "ask":
                return outputs
            try:
                return answers(running, list(inputs), list(inputs.values()))
            except Skip:
                return None

        usual = self.sets[0][0]
        for place, (inputs, outputs) in enumerate(self.sets):
            data_sets = [(usual, right(usual, "ask")), (inputs, right(inputs, outputs))]
            made = folder / f"{self.name}.{place}"
            cases.write(made, model, [(list(i.values()), o) for i, o in data_sets])
            yield made


def gathering():
    x = numpy.arange(24, dtype=numpy.float32).reshape(4, 6) + 1
    for axis, size in ((0, 4), (1, 6)):
        places = [(0, 1), (-1, -size), (size, 0), (-size - 1, 0), (2**40, 0), (-(2**63), 0)]
        for is_open in (False, True):
            sets = [{"x": x, "i": integers(*pair)} for pair in places]
            yield Operator(f"gather_{axis}_{is_open}", [node("Gather", ["x", "i"], ["y0"], axis=axis)], sets, is_open=is_open)
        usual = numpy.zeros((4, 6), numpy.int64) + (numpy.arange(6) if axis else numpy.arange(4)[:, None])
        sets = []
        for value in (None, -size + 1 + axis, size, -size - 1):
            places = usual.copy()
            if value is not None:
                places[1, 2] = value
            sets.append({"x": x, "i": places})
        yield Operator(f"gather_elements_{axis}", [node("GatherElements", ["x", "i"], ["y0"], axis=axis)], sets)
        for reduction in ("none", "add"):
            scatter = node("ScatterElements", ["x", "i", "u"], ["y0"], axis=axis, reduction=reduction)
            yield Operator(f"scatter_elements_{axis}_{reduction}", [scatter], [s | {"u": 2 * x} for s in sets])
    words = [integers(0, 1), integers(-1, 3), integers(4, 3), integers(-5, 3), integers(30522, 1)]
    sets = [{"ids": ids} for ids in words]
    yield Operator("embed", [node("Gather", ["w", "ids"], ["y0"])], sets, {"w": x})
    tied = [
        node("Gather", ["w", "ids"], ["g"]),
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["g", "t"], ["y0"]),
    ]
    yield Operator("embed_tied", tied, sets, {"w": x})
    points = [[[0, 1], [2, 3]], [[0, -1], [-4, 3]], [[4, 1], [2, 3]], [[0, 6], [2, 3]], [[2**32, 1], [2, 3]], [[-5, 1], [2, 3]]]
    sets = [{"x": x, "i": numpy.array(pair, numpy.int64)} for pair in points]
    yield Operator("gather_nd", [node("GatherND", ["x", "i"], ["y0"])], sets)
    rows = [[0, 1, 2, 3], [0, -1, -6, 3], [0, 6, 2, 3]]
    batched = [{"x": x, "i": integers(*row).reshape(4, 1)} for row in rows]
    yield Operator("gather_nd_rows", [node("GatherND", ["x", "i"], ["y0"], batch_dims=1)], batched)
    for reduction in ("none", "add", "max"):
        scatter = node("ScatterND", ["x", "i", "u"], ["y0"], reduction=reduction)
        given = [s | {"u": numpy.full(2, 50, numpy.float32)} for s in sets]
        yield Operator(f"scatter_nd_{reduction}", [scatter], given)
    for axis in (-1, 0):
        given = [(0, 2), (-1, -5), (5, 1), (-6, 1), (2**32 + 1, 1)]
        hot = node("OneHot", ["i", "d", "v"], ["y0"], axis=axis)
        weights = {"d": numpy.array(5, numpy.int64), "v": numpy.array([0, 1], numpy.float32)}
        yield Operator(f"one_hot_{axis}", [hot], [{"i": integers(*pair)} for pair in given], weights)
    for largest in (0, 1):
        given = [{"x": x, "k": integers(k)} for k in (2, 6, 7, -1)]
        top = node("TopK", ["x", "k"], ["y0", "y1"], largest=largest)
        yield Operator(f"top_{largest}", [top], given, outputs=2, is_open=True)
    ties = [{"x": value} for value in (x // 3, x * 0, -(x // 4))]
    yield Operator("top_ties", [node("TopK", ["x", "k"], ["y0", "y1"])], ties, {"k": integers(3)}, outputs=2)


def counting():
    for kind in ("int64", "int32", "float32"):
        def steps(*values):
            return {name: numpy.array(value, kind) for name, value in zip("abc", values)}

        sets = [steps(0, 5, 1), steps(5, 0, -2), steps(5, 0, 1), steps(0, 5, -1), (steps(0, 5, 0), None)]
        sets.append((steps(0, 2**50, 1), None) if kind == "int64" else steps(2, 2, 1))
        yield Operator(f"range_{kind}", [node("Range", ["a", "b", "c"], ["y0"])], sets, is_open=True)
    for operator in ("Div", "Mod"):
        for kind in ("int64", "int32", "uint8"):
            def pair(a, b):
                return {"a": numpy.array(a).astype(kind), "b": numpy.array(b).astype(kind)}

            least = numpy.iinfo(kind).min
            wrapped = numpy.array([least, 2], kind) if operator == "Div" else numpy.array([0, 2], kind)
            sets = [pair([7, 9], [2, 3]), (pair([7, 8], [2, 0]), None), (pair([least, 8], [-1 if least else 1, 3]), [wrapped])]
            sets += [pair([-7, 7], [2, -2])] if least else []
            yield Operator(f"{operator}_{kind}".lower(), [node(operator, ["a", "b"], ["y0"])], sets)
    powers = [(integers(2, 3), integers(3, 2)), (integers(2, 0), integers(-1, 0)), (integers(-3, 1), integers(3, -2))]
    yield Operator("pow", [node("Pow", ["a", "b"], ["y0"])], [{"a": a, "b": b} for a, b in powers])
    boxes = numpy.array([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]], numpy.float32)
    scores = numpy.array([[[0.9, 0.8, 0.7]]], numpy.float32)
    sets = [{"b": boxes, "s": scores, "m": integers(m)} for m in (3, 1, 0, -1, 2**40)]
    bounds = {"i": numpy.array([0.5], numpy.float32), "t": numpy.array([0], numpy.float32)}
    yield Operator("boxes", [node("NonMaxSuppression", ["b", "s", "m", "i", "t"], ["y0"])], sets, bounds, is_open=True)


def fitting():
    x = numpy.arange(24, dtype=numpy.float32).reshape(4, 6)
    w = numpy.arange(48, dtype=numpy.float32).reshape(6, 8)

    def shapes(*given):
        return [dict(zip(("x", "z"), (floats(*shape) for shape in each))) for each in given]

    multiply = [node("MatMul", ["x", "z"], ["y0"])]
    yield Operator("matmul", multiply, shapes(((4, 6), (6, 4)), ((2, 6), (6, 4)), ((4, 6), (4, 6)), ((4, 1), (6, 4)), ((4, 6), (1, 4))), is_open=True)
    yield Operator("matmul_weights", [node("MatMul", ["x", "w"], ["y0"])], shapes(((4, 6),), ((4, 5),), ((4, 7),), ((4, 1),)), {"w": w}, is_open=True)
    yield Operator("gemm", [node("Gemm", ["x", "w"], ["y0"])], shapes(((4, 6),), ((4, 5),), ((4, 7),)), {"w": w}, is_open=True)
    yield Operator("add", [node("Add", ["x", "z"], ["y0"])], shapes(((4, 6), (4, 6)), ((1, 6), (4, 6)), ((4, 1), (4, 6)), ((2, 6), (4, 6))), is_open=True)
    yield Operator("add_weights", [node("Add", ["x", "w"], ["y0"])], shapes(((4, 6),), ((4, 1),), ((4, 5),), ((4, 7),)), {"w": x[:1]}, is_open=True)
    yield Operator("concat", [node("Concat", ["x", "z"], ["y0"], axis=0)], shapes(((4, 6), (4, 6)), ((1, 6), (4, 6)), ((4, 1), (4, 6))), is_open=True)
    where = [node("Greater", ["x", "c"], ["g"]), node("Where", ["g", "x", "z"], ["y0"])]
    yield Operator("where", where, shapes(((4, 6), (4, 6)), ((4, 6), (2, 6)), ((2, 6), (4, 6))), {"c": numpy.float32(0)}, is_open=True)
    attend = [node("Softmax", ["x"], ["p"]), node("MatMul", ["p", "z"], ["y0"])]
    yield Operator("attend", attend, shapes(((4, 6), (6, 3)), ((4, 6), (5, 3)), ((4, 6), (7, 3))), is_open=True)
    images = shapes(((2, 3, 5, 5),), ((2, 2, 5, 5),), ((2, 4, 5, 5),))
    for name, group, kernel in (("conv", 1, floats(4, 3, 3, 3)), ("conv_depthwise", 3, floats(3, 1, 3, 3))):
        yield Operator(name, [node("Conv", ["x", "w"], ["y0"], group=group)], images, {"w": kernel}, is_open=True)
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        sets = shapes(((5, 2, 4),), ((5, 2, 3),), ((5, 2, 5),), ((5, 1, 4),), ((1, 3, 4),))
        weights = {"w": floats(1, 3 * gates, 4), "r": floats(1, 3 * gates, 3, seed=2)}
        yield Operator(name.lower(), [node(name, ["x", "w", "r"], ["y0"], hidden_size=3)], sets, weights, is_open=True)


def holed(x):
    """The same values, some or all of which are no numbers or infinite."""
    yield x
    for seed, values in enumerate(([NONE], [numpy.inf], [-numpy.inf], [NONE, numpy.inf, -numpy.inf])):
        random, made = numpy.random.default_rng(seed), x.copy()
        for value in values * 4:
            made.flat[random.integers(made.size)] = value
        yield made
    yield numpy.full_like(x, NONE)


def not_hidden(operator, x, is_greatest):
    """What is right where one of the values is no number."""
    running = session(operator.model())
    no_number = numpy.isnan(x)
    rest = numpy.where(no_number, -numpy.inf if is_greatest else numpy.inf, x).astype(numpy.float32)
    marks = no_number if is_greatest else ~no_number
    [right], [marked] = (running.run(None, {"x": value}) for value in (rest, marks.astype(numpy.float32)))
    return [numpy.where(marked == (1.0 if is_greatest else 0.0), NONE, right).astype(numpy.float32)]


def numbers():
    x = floats(2, 3, 6, 6)
    plain = [
        "Relu LeakyRelu HardSigmoid HardSwish Sign Elu Selu ThresholdedRelu Softsign Softplus Sigmoid",
        "Tanh Abs Floor Ceil Round Erf Exp Sqrt Neg Celu Softmax LogSoftmax IsNaN Reciprocal Log Sin",
    ]
    for name in " ".join(plain).split():
        yield Operator(name.lower(), [node(name, ["x"], ["y0"])], [{"x": value} for value in holed(x)])
    bounds = {"low": numpy.float32(-0.5), "high": numpy.float32(0.5)}
    yield Operator("clip", [node("Clip", ["x", "low", "high"], ["y0"])], [{"x": value} for value in holed(x)], bounds)
    for name in ("Max", "Min", "Greater", "Less", "Equal"):
        two = [{"x": value, "z": value[::-1].copy()} for value in holed(x)]
        yield Operator(f"{name}_two".lower(), [node(name, ["x", "z"], ["y0"])], two)
        one = [{"x": value} for value in holed(x)]
        yield Operator(f"{name}_one".lower(), [node(name, ["x", "c"], ["y0"])], one, {"c": numpy.float32(0.3)})
    for axis in (1, 3):
        for is_last in (0, 1):
            for name in ("ArgMax", "ArgMin"):
                extreme = node(name, ["x"], ["y0"], axis=axis, select_last_index=is_last)
                yield Operator(f"{name}_{axis}_{is_last}".lower(), [extreme], [{"x": value} for value in holed(x)])
            top = node("TopK", ["x", "k"], ["y0", "y1"], axis=axis, largest=is_last)
            yield Operator(f"top_none_{axis}_{is_last}", [top], [{"x": value} for value in holed(x)], {"k": integers(2)}, outputs=2)
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = {"w": floats(1, 3 * gates, 4), "r": floats(1, 3 * gates, 3, seed=2)}
        sets = [{"x": value} for value in holed(floats(5, 2, 4))]
        yield Operator(f"{name}_none".lower(), [node(name, ["x", "w", "r"], ["y0"], hidden_size=3)], sets, weights)
    hiding = [
        ("pool_2", node("MaxPool", ["x"], ["y0"], kernel_shape=[2, 2])),
        ("pool_3", node("MaxPool", ["x"], ["y0"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])),
        ("pool_all", node("GlobalMaxPool", ["x"], ["y0"])),
        *((f"{name}_{axes}", node(name, ["x"], ["y0"], axes=axes)) for name in ("ReduceMax", "ReduceMin") for axes in ([1], [3], [2, 3])),
    ]
    for name, made in hiding:
        operator = Operator(name.lower(), [made], [{"x": x}])
        is_greatest = made.op_type != "ReduceMin"
        operator.sets += [
            ({"x": value}, not_hidden(operator, value, is_greatest))
            for value in list(holed(x))[1:]
            # A pool of ONNX Runtime's begins with the least finite number.
            if not (numpy.isinf(value).any() and "Pool" in made.op_type)
        ]
        yield operator


def main():
    wrong = count = refused = 0
    with tempfile.TemporaryDirectory() as scratch:
        operators = [o for kind in (gathering, counting, fitting, numbers) for o in kind()]
        folders = [made for operator in operators for made in operator.write(pathlib.Path(scratch))]
        for folder, (verdict, why) in cases.run(folders).items():
            count += 1
            refused += verdict == "refused"
            if verdict in ("wrong", "failed", "died"):
                wrong += 1
                print(f"{verdict}: {folder.name}: {why[:300]}")
            elif verdict == "refused":
                print(f"refused: {folder.name}: {why[:150]}")
    print(f"{count} cases of {len(operators)} operators, {refused} of them refused at load")
    if wrong:
        sys.exit(f"{wrong} of {count} cases differ")


if __name__ == "__main__":
    main()
