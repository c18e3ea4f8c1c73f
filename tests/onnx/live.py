"""A graph that grows by nodes which ONNX Runtime runs as they are added: values are known, so that no
rule for shapes is needed, and whatever it does not take is no graph."""

import warnings

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Values beyond this tell little: what is added to them is lost.
GREATEST = 1e4
LARGEST = 20_000
# Rows of the first data set.
ROWS = 2


class Live:
    """Values are arrays; `rng` decides on the graph, `random` on numbers."""

    def __init__(self, rng, opset=None):
        self.rng = rng
        self.random = numpy.random.default_rng(rng.randrange(1 << 32))
        self.opset = opset or rng.choice([7, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 17, 17, 18, 19, 20, 21])
        self.nodes, self.weights, self.inputs, self.values = [], {}, {}, {}
        self.fills, self.fixed = {}, set()
        self.count = 0

    def chance(self, share):
        return self.rng.random() < share

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def source(self, shape, fill, is_fixed=False):
        """`fill` gives an array of a shape from a generator of numbers."""
        name = f"x{len(self.inputs)}"
        self.fills[name] = fill
        if is_fixed:
            self.fixed.add(name)
        self.inputs[name] = self.values[name] = fill(tuple(shape), self.random)
        return name

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = self.values[name] = numpy.asarray(array)
        return name

    def ints(self, *values):
        return self.constant(numpy.array(values, numpy.int64))

    def ints_of_rows(self, draw):
        """An integer for each row: an input."""
        return self.source((ROWS,), lambda shape, random: draw(random) + numpy.zeros(shape, numpy.int32))

    def normal(self, shape, scale=1.0, dtype=numpy.float32):
        """A weight: stored as it is, or made by nodes of what is stored."""
        array = (self.random.normal(size=shape) * scale).astype(dtype)
        if len(shape) == 2 and self.chance(0.2):
            return self.add("Transpose", [self.constant(array.T.copy())], perm=[1, 0])
        if self.chance(0.1):
            return self.add("Identity", [self.constant(array)])
        return self.constant(array)

    def shape(self, name):
        return self.values[name].shape

    def rank(self, name):
        return self.values[name].ndim

    def add(self, op, inputs, outputs=1, captures=(), domain="", **attributes):
        """The name of the output, or a list of several."""
        names = [self.name() for _ in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(op, inputs, names, domain=domain, **attributes)
        results = self.evaluate(node, [name for name in [*inputs, *captures] if name])
        for result in results:
            check(result)
        if all(result.size == 0 for result in results) and not self.chance(0.05):
            raise ValueError("empty")
        self.nodes.append(node)
        self.values.update(zip(names, results))
        return names[0] if outputs == 1 else names

    def evaluate(self, node, names):
        names = list(dict.fromkeys(names))
        kind = helper.np_dtype_to_tensor_dtype
        fed = [name for name in names if name not in self.weights]
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(name, kind(self.values[name].dtype), self.shape(name)) for name in fed],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
            [numpy_helper.from_array(self.weights[name], name) for name in names if name in self.weights],
        )
        model = helper.make_model(graph, opset_imports=opsets(self.opset), ir_version=8 if self.opset < 21 else 10)
        try:
            running = session_of_untyped(model)
            with warnings.catch_warnings(action="ignore"):
                return running.run(None, {name: self.values[name] for name in fed})
        except Exception as error:  # noqa: BLE001: whatever it does not take is no graph for us
            raise ValueError(str(error)) from error


def check(result):
    if not isinstance(result, numpy.ndarray) or result.size > LARGEST:
        raise ValueError("large")
    if result.dtype.kind == "f" and not (numpy.abs(result) < GREATEST).all():
        raise ValueError("large values")


def opsets(opset):
    return [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def session_of_untyped(model):
    """ONNX Runtime finds the types of outputs by itself if they have none."""
    untyped = onnx.ModelProto()
    untyped.CopyFrom(model)
    for output in untyped.graph.output:
        output.ClearField("type")
    return session(onnx.shape_inference.infer_shapes(untyped))
