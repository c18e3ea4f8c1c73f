#!/usr/bin/env python3
"""Write the small ONNX models that the worker's tests need. Needs: pip install onnx==1.* numpy==2.*"""

import json
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

# Gives x back: itself, through nodes that change nothing, and a part of it; y = 2 x.
save(
    "same",
    [
        node("Identity", ["x"], ["identity"]),
        node("Dropout", ["x"], ["dropout"]),
        node("Unsqueeze", ["x", "axes"], ["unsqueezed"]),
        node("Slice", ["x", "from", "to", "axis"], ["half"]),
        node("Add", ["x", "x"], ["y"]),
    ],
    [value("x", ["n", 2048])],
    [
        value("x", ["n", 2048]),
        value("identity", ["n", 2048]),
        value("dropout", ["n", 2048]),
        value("unsqueezed", ["n", 1, 2048]),
        value("half", ["n", 1024]),
        value("y", ["n", 2048]),
    ],
    [
        weight("axes", numpy.array([1], numpy.int64)),
        weight("from", numpy.array([0], numpy.int64)),
        weight("to", numpy.array([1024], numpy.int64)),
        weight("axis", numpy.array([1], numpy.int64)),
    ],
)

# All sums of a number of a and one of b: where each has one number the inputs are of the shape of the
# output, which a kernel may need, and with more of them neither is.
save(
    "spread",
    [node("Add", ["a", "b"], ["y"])],
    [value("a", ["n", "m", 1]), value("b", ["n", 1, "k"])],
    [value("y", ["n", "m", "k"])],
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

# Tokens to vectors, each with the mean of all that the mask shows added: padding that is not masked, or
# a vector that is pooled where it should not be, shows at once.
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "river", "bank", "the"]
def embed(name, sum_name, more):
    """Writes the model; `more` makes the output of the sum, which has this name."""
    nodes = [
        node("Gather", ["table", "input_ids"], ["vectors"], axis=0),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["column"]),
        node("Mul", ["vectors", "column"], ["shown"]),
        node("ReduceSum", ["shown", "second"], ["sum"], keepdims=1),
        node("ReduceSum", ["column", "second"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["mean"]),
        node("Add", ["vectors", "mean"], [sum_name]),
        *more,
    ]
    inputs = [
        value("input_ids", ["n", "s"], TensorProto.INT64),
        value("attention_mask", ["n", "s"], TensorProto.INT64),
    ]
    weights = [
        # Row i: i, i squared, and 1 for every other one.
        weight("table", numpy.array([[i, i * i, i % 2] for i in range(len(words))], "float32")),
        weight("last", numpy.array([2], "int64")),
        weight("second", numpy.array([1], "int64")),
    ]
    save(name, nodes, inputs, [value("hidden", ["n", "s", 3])], weights)


embed("embed", "hidden", [])
# The same, with sizes that go through floating point: the engine can't compile it before they are known,
# so that each length has a plan of its own.
embed(
    "each_size",
    "same",
    [
        node("Shape", ["same"], ["sizes"]),
        node("Cast", ["sizes"], ["as_float"], to=TensorProto.FLOAT),
        node("Cast", ["as_float"], ["as_integer"], to=TensorProto.INT64),
        node("Reshape", ["same", "as_integer"], ["hidden"]),
    ],
)
special = {"content": None, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
tokenizer = {
    "version": "1.0",
    # As files from training have it; it must not be believed.
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    },
    "added_tokens": [
        {"id": i, **special, "content": word, "special": True} for i, word in enumerate(words[:4])
    ],
    "normalizer": {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
        ],
        "special_tokens": {
            word: {"id": word, "ids": [words.index(word)], "tokens": [word]}
            for word in ("[CLS]", "[SEP]")
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {word: i for i, word in enumerate(words)},
    },
}
(HERE / "embed" / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
(HERE / "embed" / "model.toml").write_text("[embedding]\nmax_tokens = 40\nnormalize = false\n")

# A softmax between dequantising and quantising: the engine makes a table by element of it, which no
# softmax is. The examples beside it are what the graph means.
scale, zero = numpy.float32(0.05), numpy.uint8(128)
out_scale, out_zero = numpy.float32(1 / 255), numpy.uint8(0)
save(
    "../quantized",
    [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("Softmax", ["d"], ["s"], axis=1),
        node("QuantizeLinear", ["s", "out_scale", "out_zero"], ["r"]),
        node("DequantizeLinear", ["r", "out_scale", "out_zero"], ["y"]),
    ],
    [value("x", ["n", 4])],
    [value("y", ["n", 4])],
    [
        weight("scale", scale),
        weight("zero", zero),
        weight("out_scale", out_scale),
        weight("out_zero", out_zero),
    ],
)
x = numpy.array([[1, -2, 2.5, 0.5]], "float32")
d = (numpy.clip(numpy.rint(x / scale) + zero, 0, 255) - zero) * scale
s = numpy.exp(d) / numpy.exp(d).sum(axis=1, keepdims=True)
y = numpy.clip(numpy.rint(s / out_scale), 0, 255) * out_scale
examples = HERE.parent / "quantized" / "examples"
examples.mkdir(exist_ok=True)
tensor = {"datatype": "FP32", "shape": [1, 4]}
request = {"inputs": [{"name": "x", **tensor, "data": x.ravel().tolist()}]}
answer = {"outputs": [{"name": "y", **tensor, "data": y.ravel().tolist()}]}
(examples / "softmax.json").write_text(json.dumps(request) + "\n")
(examples / "softmax.expected.json").write_text(json.dumps(answer) + "\n")

# The greater of each two neighbours, of lines of any length but one.
save(
    "pools",
    [node("Relu", ["x"], ["r"]), node("MaxPool", ["r"], ["y"], kernel_shape=[2], strides=[2])],
    [value("x", ["n", 2, "w"])],
    [value("y", ["n", 2, "v"])],
)
