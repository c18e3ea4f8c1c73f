"""Steps that exporters write seldom: values scattered and added up, places for each row, loops with a state
for each row, equal values in a contest, axes of one element that are summed, casts beyond a type's range,
shapes that are computed, and other types than FP32."""

import numpy
from onnx import TensorProto, helper

from steps import F32, I64, axis_of, floats, full

INT8, HALF = numpy.int8, numpy.float16
LETTERS = "abcde"


def ties(g, x):
    """Few different values, many of them equal, and their order."""
    x = g.add("Round", [g.add("Mul", [floats(g, x), g.constant(F32(g.rng.choice([0.5, 1.0])))])])
    if g.chance(0.3):
        x = g.add("Cast", [x], to=g.rng.choice([TensorProto.INT64, TensorProto.INT32]))
    axis = axis_of(g, x)
    if g.chance(0.5):
        last = {"select_last_index": g.rng.choice([0, 1])} if g.opset >= 12 else {}
        if g.values[x].dtype == I64 or g.opset < 12:
            x = floats(g, x)
        return g.add(g.rng.choice(["ArgMax", "ArgMin"]), [x], axis=axis, keepdims=g.rng.choice([0, 1]), **last)
    k = g.rng.randint(1, g.shape(x)[axis])
    if g.opset < 11:
        found = g.add("TopK", [floats(g, x), g.ints(k)], 2, axis=axis) if g.opset >= 10 else g.add("TopK", [floats(g, x)], 2, axis=axis, k=k)
    else:
        found = g.add("TopK", [x, g.ints(k)], 2, axis=axis, largest=g.rng.choice([0, 1]))
    return g.rng.choice(found)


def scattered(g, x):
    """Several updates for one place."""
    x, axis, shape = floats(g, x), axis_of(g, x), list(g.shape(x))
    reductions = [None, "add", "mul"] + ["max", "min"] * (g.opset >= 18) if g.opset >= 16 else [None]
    reduction = g.rng.choice(reductions)
    if g.chance(0.5):
        places = list(shape)
        if not axis % len(shape):
            raise ValueError("rows")
        places[axis] = g.rng.randint(1, shape[axis] + (2 if reduction else 0))
        if not reduction:
            places[axis] = min(places[axis], shape[axis])
            order = numpy.argsort(g.random.normal(size=places), axis=axis).astype(I64)
        else:
            order = g.random.integers(-shape[axis], shape[axis], places)
        # As many rows as there are.
        rows = g.add("Shape", [x])
        rows = g.add("Slice", [rows, g.ints(0), g.ints(1), g.ints(0)]) if g.opset >= 10 else g.ints(shape[0])
        wanted = g.add("Concat", [rows, g.ints(*places[1:])], axis=0)
        order = g.add("Expand", [g.constant(order[:1]), wanted])
        updates = g.add("Expand", [g.constant(g.random.uniform(0.5, 1.5, places).astype(F32)[:1]), wanted])
        return g.add("ScatterElements", [x, order, updates], axis=axis, reduction=reduction)
    if len(shape) < 2:
        raise ValueError("rank")
    order = [1, 0, *range(2, len(shape))]
    turned = g.add("Transpose", [x], perm=order)
    count = g.rng.randint(1, 3)
    points = g.random.integers(0, shape[1], (count, 1)) if reduction else g.random.permutation(shape[1])[:count].reshape(-1, 1)
    rows = g.add("Gather", [turned, g.ints(*[0] * len(points))], axis=0)
    done = g.add("ScatterND", [turned, g.constant(points.astype(I64)), rows], reduction=reduction)
    return g.add("Transpose", [done], perm=order)


def placed(g, x):
    """Places that each row has for itself."""
    x = full(g, floats(g, x), g.rng.choice([2, 3]))
    shape = g.shape(x)
    scores = x if len(shape) == 2 else (g.add("ReduceSum", [x, g.ints(2)], keepdims=0) if g.opset >= 13 else g.add("ReduceSum", [x], axes=[2], keepdims=0))
    first = g.add("ArgMax", [scores], axis=1, keepdims=1)
    choice = g.rng.random()
    if choice < 0.35 and g.opset >= 12:
        return g.add("GatherND", [x, first], batch_dims=1)
    if choice < 0.6 and len(shape) == 2 and g.opset >= 11:
        return g.add("GatherElements", [x, first], axis=1)
    if choice < 0.8 and g.opset >= 11:
        run = g.add("Range", [g.constant(I64(0)), g.constant(I64(shape[1])), g.constant(I64(1))])
        test = g.add("Equal", [g.add("Reshape", [run, g.ints(1, -1)]), first])
        kept = g.add("Where", [test, scores, g.constant(F32(0))])
        return g.add("Mul", [kept, g.constant(F32(0.5))])
    if g.opset < 11:
        raise ValueError("version")
    table = g.normal((shape[1], g.rng.randint(1, 3)))
    return g.add("Gather", [table, first])


def summed_products(g, x):
    """Einsum of any terms: axes of one element beside longer ones, diagonals, sums of single inputs."""
    if g.opset < 12:
        raise ValueError("version")
    x = full(g, floats(g, x), g.rng.choice([2, 3, 4]))
    letters = LETTERS[: g.rank(x)]
    sizes = dict(zip(letters, g.shape(x)))
    free = g.rng.choice(["", "y", "yz"])
    sizes |= {letter: g.rng.randint(1, 3) for letter in free}
    terms, inputs = [letters], [x]
    for _ in range(g.rng.choice([0, 1, 1, 2])):
        mine = "".join(g.rng.sample(letters[1:] + free, g.rng.randint(1, len(letters[1:] + free)))) if letters[1:] + free else ""
        if not mine:
            break
        shape = [1 if g.chance(0.2) else sizes[letter] for letter in mine]
        terms.append(mine)
        inputs.append(g.normal(tuple(shape), 0.7))
    known = "".join(dict.fromkeys("".join(terms)))
    kept = [letter for letter in known[1:] if g.chance(0.6)]
    g.rng.shuffle(kept)
    output = "".join(["a", *kept]) if g.chance(0.9) else "".join(kept)
    if g.chance(0.1):
        return g.add("Einsum", inputs, equation=",".join(terms))
    return g.add("Einsum", inputs, equation=f"{','.join(terms)}->{output}")


def cast_far(g, x):
    """Between types, of values that each has."""
    x, choice = floats(g, x), g.rng.random()
    if choice < 0.35:
        # Integers wrap.
        wide = g.add("Cast", [g.add("Mul", [x, g.constant(F32(300))])], to=g.rng.choice([TensorProto.INT32, TensorProto.INT64]))
        to = [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32]
        return g.add("Cast", [wide], to=g.rng.choice(to))
    if choice < 0.6:
        half = g.add("Cast", [x], to=TensorProto.FLOAT16)
        return g.add("Cast", [half], to=g.rng.choice([TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.DOUBLE]))
    if choice < 0.8:
        double = g.add("Cast", [x], to=TensorProto.DOUBLE)
        y = g.add(g.rng.choice(["Add", "Mul", "Sub", "Div"]), [double, g.constant(numpy.float64(1.7))])
        if g.chance(0.5):
            y = g.add("Floor" if g.chance(0.5) else "Sqrt", [g.add("Abs", [y])])
        return y if g.chance(0.5) else g.add("Cast", [y], to=TensorProto.FLOAT)
    test = g.add("Cast", [g.add("Floor", [x])], to=TensorProto.BOOL)
    return test if g.chance(0.4) else g.add("Cast", [test], to=g.rng.choice([TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8]))


def computed_shape(g, x):
    """A shape by conditions and arithmetic on the shape of a value."""
    if g.opset < 13:
        raise ValueError("version")
    x = floats(g, x)
    shape, rank = g.add("Shape", [x]), g.rank(x)
    choice = g.rng.random()
    if choice < 0.3:
        test = g.add("Equal", [shape, g.ints(*[g.rng.choice([1, size]) for size in g.shape(x)])])
        wanted = g.add("Where", [test, g.ints(*[1] * rank), shape])
        return g.add("Add", [x, g.add("ConstantOfShape", [wanted], value=helper.make_tensor("v", 1, [1], [0.5]))])
    if choice < 0.5:
        size = g.add("ReduceProd", [g.add("Slice", [shape, g.ints(1), g.ints(9), g.ints(0)])], keepdims=1)
        rows = g.add("Slice", [shape, g.ints(0), g.ints(1), g.ints(0)])
        return g.add("Reshape", [x, g.add("Concat", [rows, size], axis=0)])
    if choice < 0.7 and g.opset >= 15:
        part = g.add("Shape", [x], start=g.rng.choice([0, 1, -1]), end=g.rng.choice([None, rank, -1]) if rank > 2 else None)
        number = g.add("Cast", [g.add("ReduceSum", [part], keepdims=0)], to=TensorProto.FLOAT)
        return g.add("Div", [x, number])
    if choice < 0.85:
        size = g.add("Cast", [g.add("Size", [x])], to=TensorProto.FLOAT)
        return g.add("Div", [x, size])
    place = g.rng.randrange(1, rank) if rank > 1 else 0
    size = g.add("Gather", [shape, g.constant(I64(place))])
    half = g.add("Div", [size, g.constant(I64(2))])
    run = g.add("Range", [half, g.add("Add", [size, half]), g.constant(I64(1))])
    run = g.add("Mod", [run, size])
    return g.add("Gather", [x, run], axis=place)


def typed(g, x):
    """Arithmetic of other types."""
    x = floats(g, x)
    to = g.rng.choice([TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8])
    if to == TensorProto.UINT8:
        x = g.add("Abs", [x])
    # A sum of these wraps in no type: overflows are faults where the engine is built for tests.
    near = g.add("Min", [g.add("Max", [g.add("Mul", [x, g.constant(F32(2))]), g.constant(F32(-5))]), g.constant(F32(5))])
    y = g.add("Cast", [near], to=to)
    kind = g.values[y].dtype
    op = g.rng.choice(["Add", "Sub"] if kind != numpy.uint8 else ["Add"]) if g.chance(0.2) else g.rng.choice(["Add", "Mul", "Max", "Min", "ReduceSum", "ReduceMax", "MatMul", "Where", "Concat", "Greater", "CumSum", "Abs", "Transpose", "ArgMax", "Clip", "Relu"])
    if op in ("Add", "Sub", "Mul", "Max", "Min"):
        return g.add(op, [y, g.constant(numpy.array(g.rng.choice([1, 2, 3]), kind))])
    if op in ("ReduceSum", "ReduceMax"):
        axis = g.rank(y) - 1
        return g.add(op, [y, g.ints(axis)], keepdims=0) if g.opset >= (13 if op == "ReduceSum" else 18) else g.add(op, [y], axes=[axis], keepdims=0)
    if op == "MatMul":
        return g.add(op, [y, g.constant(g.random.integers(0, 3, (g.shape(y)[-1], 2)).astype(kind))])
    if op == "Where":
        return g.add(op, [g.add("Greater", [x, g.constant(F32(0.1))]), y, g.constant(numpy.array(7, kind))])
    if op == "Concat":
        return g.add(op, [y, y], axis=axis_of(g, y))
    if op == "Greater":
        return g.add(op, [y, g.constant(numpy.array(1, kind))])
    if op == "CumSum":
        return g.add(op, [y, g.constant(I64(axis_of(g, y)))])
    if op == "ArgMax":
        return g.add(op, [y], axis=axis_of(g, y))
    if op == "Clip":
        if g.opset < 12:
            raise ValueError("version")
        return g.add(op, [y, g.constant(numpy.array(1, kind)), g.constant(numpy.array(4, kind))])
    return g.add(op, [y])


def bits(g, x):
    if g.opset < 18:
        raise ValueError("version")
    y = g.add("Cast", [g.add("Mul", [floats(g, x), g.constant(F32(9))])], to=g.rng.choice([TensorProto.INT32, TensorProto.INT64]))
    if g.chance(0.25):
        return g.add("BitwiseNot", [y])
    return g.add(g.rng.choice(["BitwiseAnd", "BitwiseOr", "BitwiseXor"]), [y, g.constant(numpy.array(g.rng.choice([1, 6, -4]), g.values[y].dtype))])


def scanned(g, x):
    """A state for each row that goes along an axis."""
    if g.opset < 9:
        raise ValueError("version")
    x = full(g, floats(g, x), 3)
    turned = g.add("Transpose", [x], perm=[1, 0, 2])
    first = g.add("Mul", [g.add("Gather", [x, g.constant(I64(0))], axis=1), g.constant(F32(0.0))])
    state, element, after, copy, squashed = (g.name() for _ in range(5))
    nodes = [
        helper.make_node("Add", [state, element], [after]),
        helper.make_node(g.rng.choice(["Tanh", "Relu", "Abs"]), [after], [squashed]),
        helper.make_node("Identity", [squashed], [copy]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "step",
        [value(state, 1, None), value(element, 1, None)],
        [value(squashed, 1, None), value(copy, 1, None)],
    )
    flags = {}
    if g.chance(0.3):
        flags = {"scan_input_directions": [1], "scan_output_directions": [g.rng.choice([0, 1])]}
    last, all_ = g.add("Scan", [first, turned], 2, body=graph, num_scan_inputs=1, **flags)
    return last if g.chance(0.4) else g.add("Transpose", [all_], perm=[1, 0, 2])


def counted_rows(g, x):
    """As many values as the numbers say: not the rows that came in."""
    x = floats(g, x)
    if g.chance(0.5):
        return g.add("Transpose", [g.add("NonZero", [g.add("Relu", [x])])], perm=[1, 0])
    flat = g.add("ReduceMax", [full(g, x, 2)], axes=[1], keepdims=0) if g.opset < 18 else g.add("ReduceMax", [full(g, x, 2), g.ints(1)], keepdims=0)
    return g.add("Compress", [x, g.add("Greater", [flat, g.constant(F32(0))])], axis=0)


def turned_back(g, x):
    if g.opset < 10:
        raise ValueError("version")
    x = full(g, floats(g, x), 3)
    lengths = g.ints_of_rows(lambda random: random.integers(1, g.shape(x)[1] + 1))
    lengths = g.add("Cast", [lengths], to=TensorProto.INT64)
    return g.add("ReverseSequence", [x, lengths], batch_axis=0, time_axis=1)


def sampled(g, x):
    """Images at places that are computed."""
    x = full(g, floats(g, x), 4)
    n, c, h, w = g.shape(x)
    choice = g.rng.random()
    if choice < 0.5 and g.opset >= 16:
        grid = g.constant(g.random.uniform(-1.2, 1.2, (1, 2, 3, 2)).astype(F32))
        rows = g.add("Slice", [g.add("Shape", [x]), g.ints(0), g.ints(1), g.ints(0)])
        grid = g.add("Expand", [grid, g.add("Concat", [rows, g.ints(2, 3, 2)], axis=0)])
        mode = g.rng.choice(["bilinear", "nearest", "bicubic"] if g.opset < 20 else ["linear", "nearest", "cubic"])
        # ONNX Runtime does not move a cubic's place to the border, as the definition has it.
        padding = ["zeros"] if "cubic" in mode else ["zeros", "border", "reflection"]
        return g.add("GridSample", [x, grid], mode=mode, padding_mode=g.rng.choice(padding), align_corners=g.rng.choice([0, 1]))
    if choice < 0.85 and g.opset >= 18:
        return g.add("CenterCropPad", [x, g.ints(max(1, h - 1), w + 2)], axes=[2, 3])
    return g.add("GlobalLpPool", [x], p=2)


def eye(g, x):
    x = full(g, floats(g, x), 2)
    if g.opset < 9:
        raise ValueError("version")
    return g.add("Add", [x, g.add("EyeLike", [x], k=g.rng.choice([0, 1, -1]))])


def whole_numbers(g, x):
    """Products of bytes, as quantised nets have them."""
    if g.opset < 10:
        raise ValueError("version")
    x = floats(g, x)
    scale, zero = g.constant(F32(0.05)), g.constant(numpy.uint8(g.rng.choice([0, 120, 128])))
    choice = g.rng.random()
    if choice < 0.35:
        q = g.add("QuantizeLinear", [x, scale, zero])
        kind = g.rng.choice([numpy.int8, numpy.uint8])
        weight = g.constant(g.random.integers(0, 90, (g.shape(x)[-1], 3)).astype(kind))
        return g.add("MatMulInteger", [q, weight] + [zero] * g.rng.choice([0, 1]))
    if choice < 0.65:
        q = g.add("QuantizeLinear", [x, scale, zero])
        weight = g.constant(g.random.integers(-90, 90, (g.shape(x)[-1], 3)).astype(INT8))
        made = g.add("QLinearMatMul", [q, scale, zero, weight, g.constant(F32(0.02)), g.constant(INT8(0)), g.constant(F32(0.2)), g.constant(numpy.uint8(100))])
        # A quantum more or less is rounding.
        return g.add("Greater", [g.add("DequantizeLinear", [made, g.constant(F32(0.2)), g.constant(numpy.uint8(100))]), g.constant(F32(99.0))])
    x = full(g, x, 4)
    q = g.add("QuantizeLinear", [x, scale, zero])
    weight = g.constant(g.random.integers(0, 90, (2, g.shape(x)[1], 1, 1)).astype(numpy.uint8))
    return g.add("ConvInteger", [q, weight] + [zero] * g.rng.choice([0, 1]), pads=[g.rng.choice([0, 1])] * 4)


def widened(g, x):
    """Small integers as numbers in which sums do not wrap."""
    kind = g.values[x].dtype
    is_small = kind.kind in "iu" and (kind.itemsize < 4 or kind.kind == "u")
    return g.add("Cast", [x], to=TensorProto.FLOAT) if is_small else x


ODD = [ties, scattered, placed, summed_products, summed_products, cast_far, computed_shape, typed, typed, bits, scanned, counted_rows, turned_back, sampled, eye, whole_numbers]


def of_type(rng):
    """How an input of another type than FP32 is drawn."""
    kind = rng.choice([HALF, numpy.float64, numpy.int64, numpy.int32, INT8, numpy.uint8, bool])

    def fill(shape, random):
        if numpy.dtype(kind).kind == "f":
            return random.normal(size=shape).astype(kind)
        if kind is bool:
            return random.integers(0, 2, shape).astype(bool)
        return random.integers(0 if kind == numpy.uint8 else -9, 10, shape).astype(kind)

    return fill
