"""More steps of wider random graphs: shapes, layers, nets in nodes, and quantised values."""

import numpy
from onnx import TensorProto, helper

from steps import F32, I64, axis_of, floats, full, other, unary


def reshaped(g, x):
    shape = g.shape(x)
    choice = g.rng.random()
    if choice < 0.3 and g.opset >= 9:
        return g.add("Flatten", [x], axis=g.rng.choice([1, 1, 2, -1]) if g.opset >= 11 else 1)
    if choice < 0.5:
        return full(g, x, g.rng.randint(2, 5))
    if choice < 0.7:
        # By the sizes of a value, as exporters do.
        size = g.add("Gather", [g.add("Shape", [x]), g.ints(0)], axis=0)
        target = g.add("Concat", [size, g.ints(-1)], axis=0)
        return g.add("Reshape", [x, target])
    if choice < 0.85 and len(shape) > 1:
        order = [0, *g.rng.sample(range(1, len(shape)), len(shape) - 1)]
        back = g.add("Transpose", [x], perm=order)
        return g.add("Reshape", [back, g.add("Shape", [x])])
    return g.add("Reshape", [x, g.ints(0, -1)])


def transposed(g, x):
    rank = g.rank(x)
    if g.chance(0.05):
        return g.add("Transpose", [x])
    return g.add("Transpose", [x], perm=[0, *g.rng.sample(range(1, rank), rank - 1)])


def squeezed(g, x):
    ones = [axis for axis in range(1, g.rank(x)) if g.shape(x)[axis] == 1]
    op = "Squeeze" if ones and g.chance(0.6) else "Unsqueeze"
    axes = [g.rng.choice(ones)] if op == "Squeeze" else [g.rng.randint(1, g.rank(x))]
    if g.opset < 13:
        return g.add(op, [x], axes=axes)
    return g.add(op, [x, g.ints(*axes)])


def repeated(g, x):
    shape = g.shape(x)
    times = [1, *[g.rng.choice([1, 1, 2, 3]) for _ in shape[1:]]]
    if g.chance(0.5):
        return g.add("Tile", [x, g.ints(*times)])
    sizes = [1, *[t if size == 1 else g.rng.choice([1, size]) for t, size in zip(times, shape[1:])]]
    if g.chance(0.3):
        return g.add("Expand", [x, g.add("Shape", [other(g, x)])])
    return g.add("Expand", [x, g.ints(*sizes)])


def concatenated(g, x):
    y = g.rng.choice([x, other(g, x), unary(g, x)])
    parts = [x, y] if g.chance(0.7) else [y, x, y]
    return g.add("Concat", parts, axis=axis_of(g, x))


def split(g, x):
    axis = axis_of(g, x)
    size = g.shape(x)[axis]
    first = g.rng.randint(1, size)
    if first == size or g.chance(0.2):
        more = {"num_outputs": 2} if g.opset >= 18 else {}
        return g.rng.choice(g.add("Split", [x], 2, axis=axis, **more))
    if g.opset < 13:
        parts = g.add("Split", [x], 2, axis=axis, split=[first, size - first])
    else:
        parts = g.add("Split", [x, g.ints(first, size - first)], 2, axis=axis)
    return g.rng.choice(parts)


def padded(g, x):
    x, rank = floats(g, x), g.rank(x)
    pads = [0 if place % rank == 0 else g.rng.choice([0, 0, 1, 2, -1]) for place in range(2 * rank)]
    mode = g.rng.choice(["constant", "constant", "edge", "reflect", "wrap"])
    if g.opset < 11:
        return g.add("Pad", [x], pads=pads, mode=mode, value=0.5)
    return g.add("Pad", [x, g.ints(*pads)] + [g.constant(F32(0.5))] * (mode == "constant"), mode=mode)


def made_of_sizes(g, x):
    """Values that depend on sizes alone."""
    x, shape = floats(g, x), g.shape(x)
    place = g.rng.randrange(1, len(shape)) if len(shape) > 1 else 0
    size = g.add("Gather", [g.add("Shape", [x]), g.constant(I64(place))], axis=0)
    choice = g.rng.random()
    if choice < 0.4:
        run = g.add("Range", [g.constant(I64(0)), size, g.constant(I64(1))])
        run = g.add("Cast", [run], to=TensorProto.FLOAT)
        sizes = [1] * len(shape)
        sizes[place] = -1
        return g.add(g.rng.choice(["Add", "Mul"]), [x, g.add("Reshape", [run, g.ints(*sizes)])])
    if choice < 0.6:
        part = g.add("Div", [size, g.constant(I64(2))])
        part = g.add("Add", [part, g.constant(I64(1))])
        end = g.add("Unsqueeze", [part], axes=[0]) if g.opset < 13 else g.add("Unsqueeze", [part, g.ints(0)])
        return g.add("Slice", [x, g.ints(0), end, g.ints(place)])
    if choice < 0.8:
        zeros = g.add("ConstantOfShape", [g.add("Shape", [x])], value=helper.make_tensor("v", 1, [1], [0.25]))
        return g.add("Add", [x, zeros])
    return g.add("Div", [x, g.add("Cast", [size], to=TensorProto.FLOAT)])


def resized(g, x):
    x = full(g, floats(g, x), g.rng.choice([3, 4, 4]))
    rank, mode = g.rank(x), g.rng.choice(["nearest", "linear", "cubic"])
    scales = numpy.array([1, 1, *[g.rng.choice([0.5, 1, 2, 2, 1.5, 3]) for _ in range(rank - 2)]], F32)
    if g.opset < 10:
        return g.add("Upsample", [x, g.constant(scales)], mode=mode)
    if g.opset < 11:
        return g.add("Resize", [x, g.constant(scales)], mode=mode)
    attributes = {"mode": mode}
    attributes["coordinate_transformation_mode"] = g.rng.choice(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"])
    if mode == "nearest":
        attributes["nearest_mode"] = g.rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    if mode == "cubic" and g.chance(0.5):
        attributes |= {"cubic_coeff_a": -0.5, "exclude_outside": g.rng.choice([0, 1])}
    if g.chance(0.4):
        size = g.add("Slice", [g.add("Shape", [x]), g.ints(0), g.ints(2), g.ints(0)])
        to = g.ints(*[max(1, int(size * scale)) for size, scale in zip(g.shape(x)[2:], scales[2:])])
        return g.add("Resize", [x, "", "", g.add("Concat", [size, to], axis=0)], **attributes)
    return g.add("Resize", [x, "", g.constant(scales)], **attributes)


def blocks(g, x):
    x = full(g, floats(g, x), 4)
    if g.chance(0.6):
        return g.add("DepthToSpace", [x], blocksize=2, mode=g.rng.choice(["DCR", "CRD"]) if g.opset >= 11 else None)
    return g.add("SpaceToDepth", [x], blocksize=2)


def windows(g, x):
    """Attributes of windows that go over a value."""
    sizes = g.shape(x)[2:]
    kernel = [g.rng.randint(1, min(size, 3)) for size in sizes]
    attributes = {"kernel_shape": kernel, "strides": [g.rng.choice([1, 1, 2, 3]) for _ in sizes]}
    # Of steps that are longer than the window it is not clear how much is left out at either end.
    is_dense = all(step <= size for step, size in zip(attributes["strides"], kernel))
    if g.chance(0.25):
        attributes["auto_pad"] = g.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"] if is_dense else ["VALID"])
    else:
        attributes["pads"] = [g.rng.randint(0, k - 1) for k in kernel * 2]
    return attributes


def convolution(g, x):
    x = full(g, floats(g, x), g.rng.choice([3, 4, 4, 5]))
    channels, attributes = g.shape(x)[1], windows(g, x)
    group = g.rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
    attributes["group"] = group
    is_back = g.chance(0.35)
    attributes["dilations"] = [g.rng.choice([1, 1, 1, 2]) for _ in attributes["kernel_shape"]]
    out = group * g.rng.randint(1, 3)
    shape = (channels, out // group) if is_back else (out, channels // group)
    kernel = attributes["kernel_shape"]
    scale = (channels // group * int(numpy.prod(kernel))) ** -0.5
    inputs = [x, g.normal((*shape, *kernel), scale)] + ([g.normal((out,))] if g.chance(0.6) else [])
    if is_back and g.chance(0.3):
        attributes["output_padding"] = [g.rng.randint(0, stride - 1) for stride in attributes["strides"]]
    return g.add("ConvTranspose" if is_back else "Conv", inputs, **attributes)


def pooled(g, x):
    x = full(g, floats(g, x), g.rng.choice([3, 4, 4]))
    if g.chance(0.15):
        return g.add(g.rng.choice(["GlobalAveragePool", "GlobalMaxPool"]), [x])
    op, attributes = g.rng.choice(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"]), windows(g, x)
    if op != "LpPool" or g.opset >= 18:
        attributes["ceil_mode"] = g.rng.choice([None, 1])
    if op == "AveragePool":
        attributes["count_include_pad"] = g.rng.choice([0, 1])
    if op == "LpPool":
        attributes["p"] = g.rng.choice([1, 2, 3])
    if "auto_pad" not in attributes and g.chance(0.2) and (op == "MaxPool" or g.opset >= 19):
        attributes["dilations"] = [g.rng.choice([1, 2]) for _ in attributes["kernel_shape"]]
    if op == "MaxPool" and g.chance(0.1):
        return g.rng.choice(g.add(op, [x], 2, **attributes))
    return g.add(op, [x], **attributes)


def normalised(g, x):
    x, op = floats(g, x), g.rng.choice(["Batch", "Instance", "Layer", "Group", "LRN", "MeanVarianceNormalization"])
    if op == "Layer":
        shape = g.shape(x)[axis_of(g, x, 1):]
        axis = -len(shape)
        return g.add("LayerNormalization", [x, g.normal(shape)] + [g.normal(shape)] * g.rng.choice([0, 1]), axis=axis, epsilon=1e-3)
    x = full(g, x, g.rng.choice([3, 4]))
    channels = g.shape(x)[1]
    scale, positive = g.normal((channels,)), g.constant(g.random.uniform(0.5, 2, (channels,)).astype(F32))
    if op == "Batch":
        return g.add("BatchNormalization", [x, scale, g.normal((channels,)), g.normal((channels,)), positive])
    if op == "Instance":
        return g.add("InstanceNormalization", [x, scale, g.normal((channels,))], epsilon=1e-2)
    if op == "Group":
        groups = g.rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
        of = groups if g.opset < 21 else channels
        return g.add("GroupNormalization", [x, g.normal((of,)), g.normal((of,))], num_groups=groups, epsilon=1e-2)
    if op == "LRN":
        return g.add("LRN", [x], size=g.rng.choice([1, 3, 5]), alpha=0.1, beta=0.5)
    return g.add(op, [x], axes=g.rng.choice([None, [2], [1, 2]]))


def product(g, x):
    x = floats(g, x)
    shape, choice = g.shape(x), g.rng.random()
    if choice < 0.25:
        x = full(g, x, 2)
        width, wide, turned = g.shape(x)[1], g.rng.randint(1, 6), g.chance(0.5)
        weight = g.normal((wide, width) if turned else (width, wide), width**-0.5)
        bias = [g.normal(g.rng.choice([(wide,), (1, wide), (1,), ()]))] if g.chance(0.7) or g.opset < 11 else []
        return g.add("Gemm", [x, weight, *bias], transB=int(turned), alpha=g.rng.choice([1.0, 0.5]), beta=g.rng.choice([1.0, 2.0]))
    if choice < 0.4 and len(shape) > 2:
        # A weight from the left.
        weight = g.normal((g.rng.randint(1, 5), shape[-2]), shape[-2] ** -0.5)
        return g.add("MatMul", [weight, x])
    if choice < 0.5 and len(shape) > 2:
        weight = g.normal((*[g.rng.choice([1, size]) for size in shape[1:-2]], shape[-1], g.rng.randint(1, 4)), shape[-1] ** -0.5)
        return g.add("MatMul", [x, weight])
    if choice < 0.65 and len(shape) > 2:
        y = unary(g, x)
        y = g.add("Transpose", [y], perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
        return g.add("MatMul", g.rng.choice([[x, y], [y, x]]))
    if choice < 0.7:
        return g.add("MatMul", [x, g.normal((shape[-1],))])
    y = g.add("MatMul", [x, g.normal((shape[-1], g.rng.randint(1, 6)), shape[-1] ** -0.5)])
    return g.add("Add", [y, g.normal((g.shape(y)[-1],))]) if g.chance(0.5) else y


def einsum(g, x):
    x = full(g, floats(g, x), 3)
    a, b, c = g.shape(x)
    equation, weights = g.rng.choice(
        [
            ("abc,cd->abd", [(c, 3)]),
            ("abc,db->adc", [(3, b)]),
            ("abc,bcd->abd", [(b, c, 2)]),
            ("abc,bc->a", [(b, c)]),
            ("abc,bc->ac", [(b, c)]),
            ("abc->acb", []),
            ("abc->ab", []),
            ("...c,cd->...d", [(c, 2)]),
            ("abc,bd,ce->ade", [(b, 2), (c, 3)]),
            ("abc,c->bac", [(c,)]),
        ]
    )
    return g.add("Einsum", [x, *[g.normal(shape) for shape in weights]], equation=equation)


def attention(g, x):
    x = full(g, floats(g, x), 3)
    d = g.shape(x)[2]
    q, k, v = (g.add("MatMul", [x, g.normal((d, d), d**-0.5)]) for _ in range(3))
    scores = g.add("MatMul", [q, g.add("Transpose", [k], perm=[0, 2, 1])])
    if g.chance(0.5) and g.opset >= 14:
        scores = g.add("Add", [scores, g.add("Mul", [g.add("Trilu", [g.add("Abs", [scores])], upper=1), g.constant(F32(-9))])])
    return g.add("MatMul", [g.add("Softmax", [scores], axis=-1 if g.opset >= 11 else 2), v])


def triangular(g, x):
    return g.add("Trilu", [full(g, floats(g, x), 3), g.constant(I64(g.rng.choice([-1, 0, 1])))], upper=g.rng.choice([0, 1]))


def recurrent(g, x):
    x = full(g, floats(g, x), 3)
    op = g.rng.choice(["LSTM", "GRU", "RNN"])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    n, s, width = g.shape(x)
    hidden, direction = g.rng.randint(1, 5), g.rng.choice(["forward", "reverse", "bidirectional"])
    sides = 2 if direction == "bidirectional" else 1
    x = g.add("Transpose", [x], perm=[1, 0, 2])
    inputs = [x, g.normal((sides, gates * hidden, width)), g.normal((sides, gates * hidden, hidden))]
    inputs.append(g.normal((sides, 2 * gates * hidden)) if g.chance(0.7) else "")
    inputs.append(g.ints_of_rows(lambda random: random.integers(1, s + 1)) if g.chance(0.15) else "")
    attributes = {"hidden_size": hidden, "direction": direction}
    if g.chance(0.3):
        attributes["clip"] = g.rng.choice([0.5, 1.0, 3.0])
    if op == "LSTM" and g.chance(0.15):
        attributes["input_forget"] = 1
    if op == "GRU":
        attributes["linear_before_reset"] = g.rng.choice([0, 1])
    if g.chance(0.4):
        names = ["Relu", "Tanh", "Sigmoid", "HardSigmoid", "Softsign", "LeakyRelu", "ScaledTanh", "Elu", "ThresholdedRelu", "Affine", "Softplus"]
        count = {"LSTM": 3, "GRU": 2, "RNN": 1}[op] * sides
        made = [g.rng.choice(names[: 3 if g.chance(0.5) else len(names)]) for _ in range(count)]
        attributes["activations"] = made
        alphas = [g.rng.choice([0.1, 0.5, 0.2]) for name in made if name in TAKES_ALPHA]
        betas = [g.rng.choice([0.5, 0.3]) for name in made if name in TAKES_BETA]
        if alphas:
            attributes["activation_alpha"] = alphas
        if betas:
            attributes["activation_beta"] = betas
    if g.chance(0.2):
        states = {"LSTM": 2}.get(op, 1)
        first = g.add("Reshape", [g.add("ReduceMean", [x], axes=[0, 2], keepdims=0), g.ints(1, -1, 1)]) if g.opset < 18 else g.add("Reshape", [g.add("ReduceMean", [x, g.ints(0, 2)], keepdims=0), g.ints(1, -1, 1)])
        state = g.add("Mul", [first, g.normal((sides, 1, hidden))])
        inputs += [state] * states
        if op == "LSTM" and g.chance(0.4):
            inputs.append(g.normal((sides, 3 * hidden)))
    while inputs[-1] == "":
        inputs.pop()
    y, h = g.add(op, inputs, 2, **attributes)
    if g.chance(0.3):
        return g.add("Transpose", [h], perm=[1, 0, 2])
    y = g.add("Transpose", [y], perm=[2, 0, 1, 3])
    return g.add("Reshape", [y, g.ints(0, 0, -1)])


TAKES_ALPHA = ("HardSigmoid", "LeakyRelu", "ScaledTanh", "Elu", "ThresholdedRelu", "Affine")
TAKES_BETA = ("HardSigmoid", "ScaledTanh", "Affine")


def quantised(g, x):
    """Values, or a weight, made coarse and fine again."""
    x = floats(g, x)
    kind = g.rng.choice([numpy.uint8, numpy.int8])
    zero = g.constant(kind(g.rng.choice([0, 3]) if kind == numpy.int8 else 128))
    if g.chance(0.4):
        width = g.shape(x)[-1]
        stored = g.constant(g.random.integers(-100, 100, (width, 3)).astype(numpy.int8))
        if g.opset >= 13 and g.chance(0.5):
            scale = g.constant(g.random.uniform(0.005, 0.02, (3,)).astype(F32))
            weight = g.add("DequantizeLinear", [stored, scale, g.constant(numpy.zeros(3, numpy.int8))], axis=1)
        else:
            weight = g.add("DequantizeLinear", [stored, g.constant(F32(0.011)), g.constant(numpy.int8(0))])
        return g.add("MatMul", [x, weight])
    if g.chance(0.3):
        q, scale, point = g.add("DynamicQuantizeLinear", [x], 3)
        weight = g.constant(g.random.integers(-100, 100, (g.shape(x)[-1], 3)).astype(numpy.int8))
        y = g.add("MatMulInteger", [q, weight, point])
        return g.add("Mul", [g.add("Mul", [g.add("Cast", [y], to=TensorProto.FLOAT), scale]), g.constant(F32(0.01))])
    q = g.add("QuantizeLinear", [x, g.constant(F32(0.031)), zero])
    y = g.add("DequantizeLinear", [q, g.constant(F32(0.031)), zero])
    return y if g.chance(0.7) else g.add("DequantizeLinear", [q, g.constant(F32(0.031)), zero])


def body(g, x, count):
    """A small graph over values from outside."""
    nodes, last, shape = [], x, None
    for _ in range(count):
        op = g.rng.choice(["Relu", "Tanh", "Abs", "Neg", "Sigmoid"])
        name = g.name()
        nodes.append(helper.make_node(op, [last], [name]))
        last = name
    return nodes, last, shape


def branched(g, x):
    """A condition on values, on sizes, or on none of these."""
    x, choice = floats(g, x), g.rng.random()
    if choice < 0.4:
        test = g.constant(numpy.array(g.chance(0.5)))
        test = g.add("Identity", [test]) if g.chance(0.5) else test
    elif choice < 0.7:
        place = g.rng.randrange(g.rank(x))
        size = g.add("Gather", [g.add("Shape", [x]), g.constant(I64(place))], axis=0)
        test = g.add("Greater", [size, g.constant(I64(g.rng.choice([1, 2, 4])))])
    else:
        most = g.add("ReduceMax", [x], keepdims=0)
        test = g.add("Greater", [most, g.constant(F32(0.7))])
    graphs = {}
    for place in ("then_branch", "else_branch"):
        nodes, last, _ = body(g, x, g.rng.randint(1, 3))
        output = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
        graphs[place] = helper.make_graph(nodes, place, [], [output])
    return g.add("If", [test], captures=[x], **graphs)


def looped(g, x):
    x = floats(g, x)
    count, is_on, carried = g.name(), g.name(), g.name()
    nodes, last, _ = body(g, carried, g.rng.randint(1, 2))
    still, sum_ = g.name(), g.name()
    nodes.append(helper.make_node("Add", [last, x], [sum_]))
    nodes.append(helper.make_node("Identity", [is_on], [still]))
    graph = helper.make_graph(
        nodes,
        "body",
        [
            helper.make_tensor_value_info(count, TensorProto.INT64, []),
            helper.make_tensor_value_info(is_on, TensorProto.BOOL, []),
            helper.make_tensor_value_info(carried, TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info(still, TensorProto.BOOL, []), helper.make_tensor_value_info(sum_, TensorProto.FLOAT, None)],
    )
    trips = g.constant(I64(g.rng.randint(1, 3)))
    return g.add("Loop", [trips, g.constant(numpy.array(True)), x], captures=[x], body=graph)


LAYERS = [convolution, convolution, pooled, normalised, product, product, einsum, attention, recurrent]
SHAPES = [reshaped, transposed, squeezed, repeated, concatenated, split, padded, made_of_sizes, resized, blocks, triangular]
RARE = [quantised, branched, looped]
