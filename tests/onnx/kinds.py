"""Kinds of random graphs: each adds nodes to a graph, whose values have known shapes."""

import numpy
from onnx import helper


class Graph:
    """A graph that grows; all values are FP32 and their shapes are known."""

    def __init__(self, rng):
        self.rng = rng
        self.values = numpy.random.default_rng(rng.randrange(1 << 32))
        self.nodes, self.weights, self.inputs, self.shapes = [], {}, {}, {}
        self.last = self.other = None

    def source(self, shape):
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.values.normal(size=shape).astype(numpy.float32)
        self.shapes[name] = tuple(shape)
        self.last = name
        return name

    def weight(self, shape, scale=1.0):
        return self.constant((self.values.normal(size=shape) * scale).astype(numpy.float32))

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = numpy.asarray(array)
        self.shapes[name] = self.weights[name].shape
        return name

    def integers(self, *values):
        return self.constant(numpy.array(values, numpy.int64))

    def add(self, op, inputs, shape, **attributes):
        name = f"v{len(self.nodes)}"
        if shape is None or any(size < 1 for size in shape):
            raise ValueError("empty")
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.shapes[name] = tuple(shape)
        self.last = name
        return name

    def shape(self, name):
        return self.shapes[name]

    def chance(self, share):
        return self.rng.random() < share


def activation(g, x):
    op = g.rng.choice(
        ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Elu", "Softplus", "Clip", "Silu", "Gelu", "Erf", "HardSigmoid", "Softsign", "Abs", "Neg", "Celu", "Selu", "PRelu"]
    )
    shape = g.shape(x)
    if op == "Clip":
        low, high = g.constant(numpy.float32(-0.5)), g.constant(numpy.float32(0.7))
        return g.add("Clip", [x, low, high], shape)
    if op == "Silu":
        return g.add("Mul", [x, g.add("Sigmoid", [x], shape)], shape)
    if op == "Gelu":
        root = g.constant(numpy.float32(2**0.5))
        erf = g.add("Erf", [g.add("Div", [x, root], shape)], shape)
        both = g.add("Mul", [x, g.add("Add", [erf, g.constant(numpy.float32(1))], shape)], shape)
        return g.add("Mul", [both, g.constant(numpy.float32(0.5))], shape)
    if op == "PRelu":
        return g.add("PRelu", [x, g.constant(numpy.float32([0.3]))], shape)
    return g.add(op, [x], shape)


def strided(g, x, axis=None):
    """A slice of an axis other than the batch, with a step that may be negative."""
    shape = list(g.shape(x))
    axis = g.rng.randrange(1, len(shape)) if axis is None else axis
    size = shape[axis]
    step = g.rng.choice([1, 2, 2, 3, -1, -2])
    start = g.rng.randrange(0, max(1, size // 2))
    end = g.rng.randrange(min(start + 1, size), size + 1)
    if step > 0:
        picked = len(range(start, end, step))
        bounds = (start, end if g.chance(0.5) or end < size else 2**31 - 1)
    else:
        start, end = size - 1 - start // 2, None
        picked, bounds = len(range(start, -1, step)), (start, -(2**31) + 1)
    shape[axis] = picked
    at = axis - (len(shape) if g.chance(0.3) else 0)
    return g.add("Slice", [x, g.integers(bounds[0]), g.integers(bounds[1]), g.integers(at), g.integers(step)], shape)


def reduction(g, x, all_axes=False):
    shape = list(g.shape(x))
    first = 0 if all_axes and g.chance(0.25) else min(1, len(shape) - 1)
    axes = sorted(g.rng.sample(range(first, len(shape)), g.rng.randint(1, len(shape) - first)))
    op = g.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "ReduceL1"])
    for axis in axes:
        shape[axis] = 1
    if op == "ReduceSum":
        return g.add(op, [x, g.integers(*axes)], shape, keepdims=1)
    return g.add(op, [x], shape, axes=axes, keepdims=1)


def softmax(g, x):
    axis = g.rng.randrange(1, len(g.shape(x)))
    op = g.rng.choice(["Softmax", "Softmax", "LogSoftmax"])
    return g.add(op, [x], g.shape(x), axis=axis)


def expanded(g, x):
    """An axis of one element repeated, by Expand or Tile."""
    shape = list(g.shape(x))
    ones = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    if not ones:
        return x
    axis, times = g.rng.choice(ones), g.rng.randint(2, 4)
    shape[axis] = times
    repeats = [1] * len(shape)
    repeats[axis] = times
    if g.chance(0.5):
        return g.add("Tile", [x, g.integers(*repeats)], shape)
    return g.add("Expand", [x, g.integers(*repeats)], shape)


def product(g, x):
    """A product along the last axis, which may be of one element, repeated before."""
    shape = list(g.shape(x))
    if g.chance(0.3) and shape[-1] > 1:
        x = g.add("ReduceMean", [x], [*shape[:-1], 1], axes=[len(shape) - 1], keepdims=1)
        x = expanded(g, x)
        shape = list(g.shape(x))
    width = g.rng.randint(1, 6)
    scale = shape[-1] ** -0.5
    if len(shape) == 2 and g.chance(0.5):
        turned = g.chance(0.5)
        w = g.weight((width, shape[-1]) if turned else (shape[-1], width), scale)
        return g.add("Gemm", [x, w, g.weight((width,))], [shape[0], width], transB=int(turned))
    y = g.add("MatMul", [x, g.weight((shape[-1], width), scale)], [*shape[:-1], width])
    return g.add("Add", [y, g.weight((width,))], g.shape(y)) if g.chance(0.6) else y


def convolution(g, x):
    n, c, *sizes = g.shape(x)
    group = c if g.chance(0.25) else 1
    out = c * g.rng.choice([1, 2]) if group > 1 else g.rng.randint(1, 6)
    kernel = [g.rng.choice([1, 1, 2, 3, 3, 5]) for _ in sizes]
    strides = [g.rng.choice([1, 1, 2, 3]) for _ in sizes]
    dilations = [g.rng.choice([1, 1, 1, 2]) for _ in sizes]
    attributes = {"strides": strides, "kernel_shape": kernel, "group": group}
    if g.chance(0.3):
        attributes["auto_pad"] = g.rng.choice(["SAME_UPPER", "SAME_LOWER"])
        shape = [-(-size // stride) for size, stride in zip(sizes, strides)]
    else:
        before, after = ([g.rng.choice([0, 0, 1, 2]) for _ in sizes] for _ in range(2))
        attributes |= {"pads": before + after, "dilations": dilations}
        shape = [
            (size + b + a - d * (k - 1) - 1) // s + 1
            for size, b, a, d, k, s in zip(sizes, before, after, dilations, kernel, strides)
        ]
    fan = c // group * int(numpy.prod(kernel))
    inputs = [x, g.weight((out, c // group, *kernel), fan**-0.5)]
    if g.chance(0.6):
        inputs.append(g.weight((out,)))
    return g.add("Conv", inputs, [n, out, *shape], **attributes)


def pool(g, x):
    n, c, *sizes = g.shape(x)
    if g.chance(0.15):
        return g.add(g.rng.choice(["GlobalAveragePool", "GlobalMaxPool"]), [x], [n, c, *[1] * len(sizes)])
    kernel, strides = ([g.rng.choice([1, 2, 3]) for _ in sizes] for _ in range(2))
    pads = [g.rng.choice([0, k // 2]) for k in kernel]
    shape = [(size + 2 * p - k) // s + 1 for size, p, k, s in zip(sizes, pads, kernel, strides)]
    op = g.rng.choice(["MaxPool", "AveragePool"])
    attributes = {"count_include_pad": g.rng.choice([0, 1])} if op == "AveragePool" else {}
    return g.add(op, [x], [n, c, *shape], kernel_shape=kernel, strides=strides, pads=pads * 2, **attributes)


def normalised(g, x):
    _, c, *_ = g.shape(x)
    positive = g.constant(g.values.uniform(0.5, 2, (c,)).astype(numpy.float32))
    return g.add("BatchNormalization", [x, positive, g.weight((c,)), g.weight((c,)), positive], g.shape(x))


def padded(g, x):
    shape = g.shape(x)
    before, after = ([0] + [g.rng.choice([0, 0, 1, 2]) for _ in shape[1:]] for _ in range(2))
    mode = g.rng.choice(["constant", "constant", "edge", "reflect"])
    if mode == "reflect" and any(size <= max(b, a) for size, b, a in zip(shape, before, after)):
        mode = "constant"
    sizes = [size + b + a for size, b, a in zip(shape, before, after)]
    return g.add("Pad", [x, g.integers(*before, *after)], sizes, mode=mode)


def joined(g, x, branch):
    """A value beside what was made of it: added, multiplied, or put side by side."""
    a, b = g.shape(x), g.shape(branch)
    if a == b:
        return g.add(g.rng.choice(["Add", "Mul", "Sub", "Max", "Min"]), [x, branch], a)
    axes = [axis for axis in range(1, len(a)) if len(a) == len(b) and a[:axis] + a[axis + 1 :] == b[:axis] + b[axis + 1 :]]
    if not axes:
        return branch
    axis = g.rng.choice(axes)
    shape = list(a)
    shape[axis] += b[axis]
    return g.add("Concat", [x, branch], shape, axis=axis)


def transposed(g, x, keep_batch=True):
    shape = g.shape(x)
    order = list(range(1, len(shape))) if keep_batch else list(range(len(shape)))
    g.rng.shuffle(order)
    order = [0, *order] if keep_batch else order
    return g.add("Transpose", [x], [shape[axis] for axis in order], perm=order)


def flattened(g, x):
    shape = g.shape(x)
    if len(shape) > 2 and g.chance(0.5):
        merged = [0, -1, *shape[3:]] if len(shape) > 3 else [0, -1]
        return g.add("Reshape", [x, g.integers(*merged)], [shape[0], shape[1] * shape[2], *shape[3:]])
    return g.add("Flatten", [x], [shape[0], int(numpy.prod(shape[1:]))])


def affine(g, x):
    shape = g.shape(x)
    operand = g.chance(0.5) and g.constant(numpy.float32(g.rng.choice([0.5, 2.0, 3.0, 0.1])))
    if not operand:
        axis = g.rng.randrange(1, len(shape))
        sizes = [size if place == axis else 1 for place, size in enumerate(shape)]
        operand = g.constant(g.values.uniform(0.5, 2, sizes).astype(numpy.float32))
    op = g.rng.choice(["Add", "Mul", "Sub", "Div", "Max", "Min"])
    inputs = [operand, x] if op in ("Sub", "Add") and g.chance(0.4) else [x, operand]
    return g.add(op, inputs, shape)


def cnn(g):
    rank = g.rng.choice([1, 2, 2, 2])
    x = g.source((2, g.rng.randint(1, 4), *[g.rng.randint(4, 12) for _ in range(rank)]))
    steps = [convolution, convolution, convolution, activation, activation, pool, normalised, padded, strided, strided, affine, softmax]
    for _ in range(g.rng.randint(2, 8)):
        before = x
        x = g.rng.choice(steps)(g, x)
        if g.chance(0.25):
            x = joined(g, before, x)
        if g.chance(0.1):
            g.other = x
    if g.chance(0.3):
        x = product(g, flattened(g, x))
    if g.chance(0.3):
        x = reduction(g, x)


def layer_norm(g, x):
    shape = g.shape(x)
    if g.chance(0.5):
        return g.add("LayerNormalization", [x, g.weight((shape[-1],)), g.weight((shape[-1],))], shape, axis=-1)
    mean = g.add("ReduceMean", [x], [*shape[:-1], 1], axes=[len(shape) - 1], keepdims=1)
    off = g.add("Sub", [x, mean], shape)
    square = g.add("Pow", [off, g.constant(numpy.float32(2))], shape)
    variance = g.add("ReduceMean", [square], [*shape[:-1], 1], axes=[len(shape) - 1], keepdims=1)
    root = g.add("Sqrt", [g.add("Add", [variance, g.constant(numpy.float32(1e-3))], [*shape[:-1], 1])], [*shape[:-1], 1])
    return g.add("Div", [off, root], shape)


def attention(g, x):
    n, s, d = g.shape(x)
    heads = g.rng.choice([head for head in (1, 2, 3) if d % head == 0])

    def split(last):
        y = g.add("MatMul", [x, g.weight((d, d), d**-0.5)], (n, s, d))
        y = g.add("Reshape", [y, g.integers(0, 0, heads, d // heads)], (n, s, heads, d // heads))
        order = [0, 2, 3, 1] if last else [0, 2, 1, 3]
        return g.add("Transpose", [y], [(n, s, heads, d // heads)[i] for i in order], perm=order)

    scores = g.add("MatMul", [split(False), split(True)], (n, heads, s, s))
    if g.chance(0.5):
        scores = g.add("Div", [scores, g.constant(numpy.float32((d // heads) ** 0.5))], g.shape(scores))
    weights = g.add("Softmax", [scores], g.shape(scores), axis=-1)
    mixed = g.add("MatMul", [weights, split(False)], (n, heads, s, d // heads))
    mixed = g.add("Transpose", [mixed], (n, s, heads, d // heads), perm=[0, 2, 1, 3])
    return g.add("Reshape", [mixed, g.integers(0, 0, d)], (n, s, d))


def encoder(g):
    x = g.source((2, g.rng.randint(1, 7), g.rng.choice([2, 4, 6])))
    for _ in range(g.rng.randint(1, 4)):
        before = x
        step = g.rng.choice([attention, attention, layer_norm, product, activation, strided, softmax, affine, transposed, reduction, expanded])
        x = step(g, x)
        if g.chance(0.4):
            x = joined(g, before, x)
        if len(g.shape(x)) != 3:
            break
    if g.chance(0.5):
        x = strided(g, x)
    if g.chance(0.5):
        x = product(g, x)
    if g.chance(0.3):
        reduction(g, x)


def recurrent(g):
    op = g.rng.choice(["LSTM", "GRU", "RNN"])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    n, s, width, hidden = 2, g.rng.randint(1, 6), g.rng.randint(1, 4), g.rng.randint(1, 5)
    x = g.source((n, s, width))
    if g.chance(0.4):
        x = activation(g, x)
    x = g.add("Transpose", [x], (s, n, width), perm=[1, 0, 2])
    direction = g.rng.choice(["forward", "reverse", "bidirectional"])
    sides = 2 if direction == "bidirectional" else 1
    inputs = [x, g.weight((sides, gates * hidden, width)), g.weight((sides, gates * hidden, hidden))]
    if g.chance(0.7):
        inputs.append(g.weight((sides, 2 * gates * hidden)))
    attributes = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = g.rng.choice([0, 1])
    if op == "RNN" and g.chance(0.4):
        attributes["activations"] = [g.rng.choice(["Relu", "Tanh", "Sigmoid"])] * sides
    name = f"v{len(g.nodes)}"
    outputs = [f"{name}y", f"{name}h"]
    g.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
    g.shapes[outputs[0]], g.shapes[outputs[1]] = (s, sides, n, hidden), (sides, n, hidden)
    y = g.add("Transpose", [outputs[0]], (n, s, sides, hidden), perm=[2, 0, 1, 3])
    y = g.add("Reshape", [y, g.integers(0, 0, sides * hidden)], (n, s, sides * hidden))
    if g.chance(0.5):
        g.other = g.add("Transpose", [outputs[1]], (n, sides, hidden), perm=[1, 0, 2])
        g.last = y
    for _ in range(g.rng.randint(0, 3)):
        y = g.rng.choice([strided, product, activation, reduction, softmax])(g, y)


def elementwise(g):
    """Any rank, all axes: also the batch's, so that not all of these have independent rows."""
    rank = g.rng.randint(1, 4)
    shape = (3, *[g.rng.choice([1, 2, 3, 5]) for _ in range(rank)])
    made = [g.source(shape)]
    if g.chance(0.5):
        made.append(g.source((3, *[g.rng.choice([1, size]) for size in shape[1:]])))
    for _ in range(g.rng.randint(2, 10)):
        x = g.rng.choice(made[-4:])
        choice = g.rng.random()
        if choice < 0.2:
            others = [y for y in made if len(g.shape(y)) == len(g.shape(x)) and all(a == b or 1 in (a, b) for a, b in zip(g.shape(x), g.shape(y)))]
            y = g.rng.choice(others)
            both = [max(a, b) for a, b in zip(g.shape(x), g.shape(y))]
            made.append(g.add(g.rng.choice(["Add", "Sub", "Mul", "Max", "Min"]), [x, y], both))
        elif choice < 0.3:
            axis = g.rng.randrange(0 if g.chance(0.2) else 1, len(g.shape(x)))
            flags = {"exclusive": int(g.chance(0.5)), "reverse": int(g.chance(0.5))}
            made.append(g.add("CumSum", [x, g.constant(numpy.int64(axis))], g.shape(x), **flags))
        elif choice < 0.4:
            made.append(reduction(g, x, all_axes=True))
        elif choice < 0.45:
            test = g.add("Greater", [x, g.constant(numpy.float32(0.123))], g.shape(x))
            made.append(g.add("Where", [test, x, g.constant(numpy.float32(-1))], g.shape(x)))
        elif choice < 0.5:
            step = g.add("Floor", [affine(g, x)], g.shape(g.last))
            made.append(step)
        elif choice < 0.55:
            near = g.add("Add", [g.add("Abs", [x], g.shape(x)), g.constant(numpy.float32(0.5))], g.shape(x))
            made.append(g.add(g.rng.choice(["Log", "Sqrt", "Reciprocal"]), [near], g.shape(x)))
        elif choice < 0.6:
            shape = g.shape(x)
            axis = g.rng.randrange(1, len(shape))
            picked = [g.rng.randrange(shape[axis]) for _ in range(g.rng.randint(1, 3))]
            sizes = [*shape[:axis], len(picked), *shape[axis + 1 :]]
            made.append(g.add("Gather", [x, g.integers(*picked)], sizes, axis=axis))
        else:
            step = g.rng.choice([activation, affine, strided, expanded, expanded, softmax, transposed, padded, product])
            made.append(step(g, x))
    if made[-1].startswith("x"):
        activation(g, made[-1])


KINDS = [cnn, cnn, encoder, recurrent, elementwise, elementwise]
