"""Steps of wider random graphs: each takes a value and makes another of it, by operators in the form that
the graph's version of the operator set has."""

import numpy
from onnx import TensorProto, helper

F32, I64 = numpy.float32, numpy.int64


def is_float(g, x):
    return g.values[x].dtype == F32


def floats(g, x):
    return x if is_float(g, x) else g.add("Cast", [x], to=TensorProto.FLOAT)


def axis_of(g, x, least=1):
    """Mostly none of the rows; counted from the end at times."""
    rank = g.rank(x)
    axis = g.rng.randrange(0 if g.chance(0.08) else min(least, rank - 1), rank)
    return axis - rank if g.chance(0.3) else axis


def some_axes(g, x):
    rank = g.rank(x)
    first = 0 if g.chance(0.08) else min(1, rank - 1)
    return sorted(g.rng.sample(range(first, rank), g.rng.randint(1, rank - first)))


def full(g, x, rank):
    """The same values with so many axes, the rows first."""
    shape = g.shape(x)
    while len(shape) > rank:
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    while len(shape) < rank:
        size = shape[-1]
        part = g.rng.choice([n for n in range(1, size + 1) if size % n == 0] or [1])
        shape = (*shape[:-1], part, size // part) if len(shape) > 1 else (*shape, 1)
    if shape == g.shape(x):
        return x
    return g.add("Reshape", [x, g.ints(0, *shape[1:])])


SMOOTH = "Relu Sigmoid Tanh LeakyRelu HardSwish Elu Softplus Erf HardSigmoid Softsign Abs Neg Celu Selu Sin Cos Atan Mish Identity Gelu Asinh Sign Floor Ceil Round ThresholdedRelu Shrink Exp Dropout Swish".split()


def unary(g, x):
    x, op = floats(g, x), g.rng.choice(SMOOTH)
    if op == "LeakyRelu" or op == "Elu" or op == "ThresholdedRelu":
        return g.add(op, [x], alpha=g.rng.choice([0.01, 0.5, 1.5]))
    if op == "Shrink":
        return g.add(op, [x], lambd=g.rng.choice([0.2, 0.5]), bias=g.rng.choice([0.0, 0.3]))
    if op == "Gelu":
        return g.add(op, [x], approximate=g.rng.choice(["none", "tanh"]))
    if op == "HardSigmoid":
        return g.add(op, [x], alpha=g.rng.choice([0.2, 0.5]), beta=g.rng.choice([0.5, 0.1]))
    return g.add(op, [x])


def guarded(g, x):
    near = g.add("Add", [g.add("Abs", [floats(g, x)]), g.constant(F32(0.5))])
    return g.add(g.rng.choice(["Log", "Sqrt", "Reciprocal"]), [near])


def clip(g, x):
    x = floats(g, x)
    low, high = g.rng.choice([(-0.5, 0.7), (0, 6), (None, 0.4), (-1, None)])
    if g.opset < 11:
        return g.add("Clip", [x], min=low, max=high)
    bounds = ["" if bound is None else g.constant(F32(bound)) for bound in (low, high)]
    return g.add("Clip", [x, *bounds])


def operand(g, x):
    """A weight that is broadcast: along any axes, also of fewer, at times of more."""
    shape = [size if g.chance(0.4) else 1 for size in g.shape(x)]
    if shape and not g.chance(0.03):
        shape[0] = 1
    cut = g.rng.randint(0, len(shape)) if g.chance(0.5) else 0
    shape = shape[cut:]
    if g.chance(0.03):
        shape = [g.rng.randint(1, 2), *[1] * (g.rank(x) - len(shape)), *shape]
    kind = g.values[x].dtype
    if kind == F32:
        return g.constant((g.random.uniform(0.3, 2, shape) * g.rng.choice([1, -1])).astype(kind))
    return g.constant(g.random.integers(1, 4, shape).astype(kind))


def affine(g, x):
    x = floats(g, x) if g.chance(0.8) or g.values[x].dtype == bool else x
    ops = ["Add", "Sub", "Mul", "Div", "Max", "Min"] + ["PRelu", "Pow"] * is_float(g, x)
    op, y = g.rng.choice(ops), operand(g, x)
    if op == "Pow":
        return g.add(op, [g.add("Abs", [x]), g.constant(F32(g.rng.choice([2, 0.5, 1, 3])))])
    if op == "Div" and g.chance(0.3):
        return g.add(op, [y, g.add("Add", [g.add("Abs", [x]), g.constant(g.values[x].dtype.type(1))])])
    inputs = [x, y] if op == "PRelu" or g.chance(0.6) else [y, x]
    return g.add(op, inputs)


def other(g, x):
    """Another value, one of those that fit if there are such."""
    kind, names = g.values[x].dtype, list(g.values)
    names = [name for name in names if name not in g.weights and g.values[name].dtype == kind]
    near = [name for name in names if g.rank(name) == g.rank(x)]
    return g.rng.choice(near if g.chance(0.8) and near else names or [x])


def both(g, x):
    y = other(g, x)
    if g.values[x].dtype == bool:
        return g.add(g.rng.choice(["And", "Or", "Xor", "Equal"]), [x, y])
    return g.add(g.rng.choice(["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"]), [x, y])


def compared(g, x):
    x = floats(g, x)
    y = g.constant(F32(0.1234)) if g.chance(0.5) else other(g, x)
    test = g.add(g.rng.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]), [x, y])
    if g.chance(0.3):
        return test
    if g.chance(0.3):
        test = g.add("Not", [test])
    z = other(g, x) if g.chance(0.4) else operand(g, x)
    return g.add("Where", [test, *g.rng.choice([[x, z], [z, x]])])


def cast(g, x):
    """To another type and back at times, from values that all types have: of others it is not defined."""
    x = g.add("Abs", [g.add("Mul", [floats(g, x), g.constant(F32(g.rng.choice([1.7, 10])))])])
    x = g.add("Min", [x, g.constant(F32(120))])
    to = g.rng.choice([TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE])
    y = g.add("Cast", [x], to=to)
    return y if g.chance(0.5) else g.add("Cast", [y], to=TensorProto.FLOAT)


def integers(g, x):
    x = floats(g, x)
    kind = g.rng.choice([numpy.int32, I64])
    y = g.add("Cast", [g.add("Mul", [x, g.constant(F32(5))])], to=helper.np_dtype_to_tensor_dtype(numpy.dtype(kind)))
    for _ in range(g.rng.randint(1, 3)):
        op = g.rng.choice(["Add", "Mul", "Sub", "Div", "Mod", "Max", "Min", "Abs", "Neg", "Sign"])
        if op in ("Abs", "Neg", "Sign"):
            y = g.add(op, [y])
            continue
        c = g.constant(numpy.array(g.rng.choice([2, 3, 5]), kind))
        if op in ("Div", "Mod") and g.chance(0.3):
            d = g.add("Add", [g.add("Abs", [y]), g.constant(numpy.array(1, kind))])
            y = g.add(op, [c, d])
        else:
            y = g.add(op, [y, c], **({"fmod": 1} if op == "Mod" and g.chance(0.3) else {}))
    return y if g.chance(0.4) else floats(g, y)


def modulo(g, x):
    return g.add("Mod", [floats(g, x), g.constant(F32(g.rng.choice([0.7, -0.7])))], fmod=1)


def sliced(g, x):
    axes = some_axes(g, x)[:2]
    shape, starts, ends, steps = g.shape(x), [], [], []
    for axis in axes:
        size, step = shape[axis], g.rng.choice([1, 1, 2, 2, 3, -1, -2])
        start = g.rng.randrange(0, max(1, size // 2 + 1))
        if step > 0:
            starts.append(start - (size if g.chance(0.2) else 0))
            ends.append(g.rng.choice([size, 2**31 - 1, 2**63 - 1, max(start + 1, size - 1), -1]))
        else:
            starts.append(g.rng.choice([size - 1 - start, -1, 2**31 - 1]))
            ends.append(g.rng.choice([-(2**31) + 1, -(2**63) + 1, 0]))
        steps.append(step)
    axes = [axis - len(shape) if g.chance(0.3) else axis for axis in axes]
    if g.opset < 10:
        if any(step != 1 for step in steps):
            raise ValueError("steps")
        return g.add("Slice", [x], axes=[axis % len(shape) for axis in axes], starts=starts, ends=ends)
    return g.add("Slice", [x, g.ints(*starts), g.ints(*ends), g.ints(*axes), g.ints(*steps)])


def gathered(g, x):
    axis = axis_of(g, x)
    size = g.shape(x)[axis]
    shape = g.rng.choice([(), (1,), (2,), (3,), (2, 2)])
    low = -size if g.opset >= 11 and g.chance(0.4) else 0
    kind = g.rng.choice([I64, numpy.int32])
    return g.add("Gather", [x, g.constant(g.random.integers(low, size, shape).astype(kind))], axis=axis)


def by_elements(g, x):
    axis, shape = axis_of(g, x), list(g.shape(x))
    places = list(shape)
    places[axis] = g.rng.randint(1, shape[axis] + 1)
    if g.chance(0.5):
        return g.add("GatherElements", [x, indices(g, x, axis, places)], axis=axis)
    places[axis] = min(places[axis], shape[axis])
    order = numpy.argsort(g.random.normal(size=places), axis=axis).astype(I64)
    updates = g.constant(g.random.normal(size=places).astype(g.values[x].dtype))
    reduction = g.rng.choice([None, "add", "mul"]) if g.opset >= 16 else None
    return g.add("ScatterElements", [x, g.constant(order), updates], axis=axis, reduction=reduction)


def indices(g, x, axis, shape):
    """Places along an axis, stored, or found by the values of another axis."""
    return g.constant(g.random.integers(-g.shape(x)[axis], g.shape(x)[axis], shape))


def by_points(g, x):
    shape, rank = g.shape(x), g.rank(x)
    if g.chance(0.4) and rank >= 2 and g.opset >= 12:
        # Rows of places for rows of values: the batch is known here.
        turned = g.add("Transpose", [x], perm=[1, 0, *range(2, rank)])
        point = g.random.integers(0, shape[1], (g.rng.randint(1, 3), 1))
        return g.add("Transpose", [g.add("GatherND", [turned, g.constant(point)])], perm=[1, 0, *range(2, rank)])
    if g.chance(0.5) and rank >= 2:
        turned = g.add("Transpose", [x], perm=[1, 0, *range(2, rank)])
        count = g.rng.randint(1, shape[1])
        point = g.random.permutation(shape[1])[:count].reshape(-1, 1)
        rows = g.add("Gather", [turned, g.ints(*[0] * count)], axis=0)
        done = g.add("ScatterND", [turned, g.constant(point), rows])
        return g.add("Transpose", [done], perm=[1, 0, *range(2, rank)])
    point = g.random.integers(0, [shape[0], *shape[1:2]][: min(2, rank)], (2, min(2, rank)))
    return g.add("GatherND", [x, g.constant(point)])


def top(g, x):
    x, axis = floats(g, x), axis_of(g, x)
    k = g.rng.randint(1, g.shape(x)[axis])
    if g.opset < 10:
        found = g.add("TopK", [x], 2, axis=axis, k=k)
    elif g.opset < 11:
        found = g.add("TopK", [x, g.ints(k)], 2, axis=axis)
    else:
        found = g.add("TopK", [x, g.ints(k)], 2, axis=axis, largest=g.rng.choice([0, 1]), sorted=1)
    return g.rng.choice(found)


def greatest_place(g, x):
    x = floats(g, x)
    y = g.add(g.rng.choice(["ArgMax", "ArgMin"]), [x], axis=axis_of(g, x), keepdims=g.rng.choice([0, 1]))
    if g.chance(0.3) and g.opset >= 9:
        depth = g.constant(numpy.array(6, I64))
        return g.add("OneHot", [y, depth, g.constant(numpy.array([0, 1], F32))], axis=g.rng.choice([-1, 1]))
    return y


def summed(g, x):
    x = floats(g, x)
    flags = {"exclusive": int(g.chance(0.5)), "reverse": int(g.chance(0.5))}
    return g.add("CumSum", [x, g.constant(I64(axis_of(g, x)))], **flags)


REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceLogSumExp ReduceSumSquare ReduceL1 ReduceProd ReduceLogSum".split()


def reduced(g, x):
    op, keep = g.rng.choice(REDUCTIONS), g.rng.choice([0, 1])
    if not (op in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd") and g.values[x].dtype in (numpy.int32, I64) and g.chance(0.5)):
        x = floats(g, x)
    if op == "ReduceLogSum":
        x = g.add("Add", [g.add("Abs", [x]), g.constant(F32(0.1))])
    axes = some_axes(g, x)
    axes = [axis - g.rank(x) for axis in axes] if g.opset >= 11 and g.chance(0.3) else axes
    if g.opset >= (13 if op == "ReduceSum" else 18):
        if g.chance(0.05):
            return g.add(op, [x], keepdims=keep, noop_with_empty_axes=g.rng.choice([0, 1]))
        return g.add(op, [x, g.ints(*axes)], keepdims=keep)
    return g.add(op, [x], axes=axes, keepdims=keep)


def softmax(g, x):
    x = floats(g, x)
    op = g.rng.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization"])
    return g.add(op, [x], axis=axis_of(g, x))


ELEMENTWISE = [unary, unary, guarded, clip, affine, affine, both, both, compared, cast, integers, modulo]
MOVING = [sliced, sliced, gathered, by_elements, by_points, top, greatest_place, summed, reduced, reduced, softmax]
