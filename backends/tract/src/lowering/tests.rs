//! Graphs with our kernels beside the same graphs without.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::bits::Bits;
use super::plain::tests::check_program;
use super::rewrite;
use std::collections::HashSet;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{
    DataFormat, Reduce, Reducer, Softmax, SoftmaxKind, hard_swish, leaky_relu, sigmoid,
};

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn among(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|_| (self.below(401) as f32 - 200.0) / 100.0).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }
}

fn random(seed: u64) -> Random {
    Random((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A graph that is being built, and the inputs for it.
struct Case {
    model: TypedModel,
    inputs: TVec<TValue>,
    random: Random,
    nodes: usize,
}

impl Case {
    fn new(seed: u64) -> Self {
        let (model, inputs) = (TypedModel::default(), tvec!());
        Self { model, inputs, random: random(seed), nodes: 0 }
    }

    fn input(&mut self, shape: &[usize]) -> OutletId {
        let tensor = self.random.tensor(shape);
        self.inputs.push(tensor.into_tvalue());
        self.nodes += 1;
        self.model.add_source(format!("input{}", self.nodes), f32::fact(shape)).unwrap()
    }

    fn constant(&mut self, shape: &[usize]) -> OutletId {
        let tensor = self.random.tensor(shape);
        self.fixed(tensor)
    }

    fn fixed(&mut self, tensor: Tensor) -> OutletId {
        self.nodes += 1;
        self.model.add_const(format!("constant{}", self.nodes), tensor).unwrap()
    }

    fn number(&mut self, outlet: OutletId, number: f32) -> OutletId {
        let rank = self.model.outlet_fact(outlet).unwrap().rank();
        self.fixed(Tensor::from_shape(&vec![1; rank], &[number]).unwrap())
    }

    fn add(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> OutletId {
        self.nodes += 1;
        self.model.wire_node(format!("node{}", self.nodes), op, inputs).unwrap()[0]
    }

    fn shape(&self, outlet: OutletId) -> Vec<usize> {
        self.model.outlet_fact(outlet).unwrap().shape.as_concrete().unwrap().to_vec()
    }

    /// Runs the graph with and without our kernels and compares; gives the operations of ours.
    fn check(mut self, outputs: &[OutletId], what: &str, bits: &mut Bits) -> Vec<String> {
        self.model.select_output_outlets(outputs).unwrap();
        let model = self.model.into_decluttered().unwrap();
        let mut ours = rewrite(&model).unwrap().unwrap_or_else(|| model.clone());
        ours.optimize().unwrap();
        let names = ours.nodes().iter().map(|node| node.op().name().to_string());
        let names = names.filter(|name| name.starts_with("Forebay")).collect();
        let expected = model.clone().into_optimized().unwrap().into_runnable().unwrap();
        let expected = expected.run(self.inputs.clone()).unwrap();
        let found = ours.into_runnable().unwrap().run(self.inputs.clone()).unwrap();
        bits.add(&what, &self.inputs, &expected, &found);
        bits.programs += usize::from(check_program(&model, &self.inputs, &expected, what));
        for (found, expected) in found.iter().zip(expected) {
            let close = Approximation::Custom(1e-4, 1e-4, 0.0);
            let close = found.close_enough(&expected, close);
            assert!(close.is_ok(), "{what}: {:?}", close.err());
        }
        names
    }
}

/// Something that often follows: an activation, a scale, a sum with another tensor.
fn follow(case: &mut Case, outlet: OutletId, axis: usize) -> OutletId {
    let shape = case.shape(outlet);
    let mut by_channel = vec![1; shape.len()];
    by_channel[axis] = shape[axis];
    match case.random.below(14) {
        0 => case.add(sigmoid(), &[outlet]),
        1 => case.add(math::tanh(), &[outlet]),
        2 => case.add(hard_swish(), &[outlet]),
        3 => case.add(leaky_relu(0.1), &[outlet]),
        4 => {
            let zero = case.number(outlet, 0.0);
            case.add(math::max(), &[outlet, zero])
        }
        5 => {
            let six = case.number(outlet, 0.6);
            case.add(math::min(), &[outlet, six])
        }
        6 => {
            let factors = case.constant(&by_channel);
            case.add(math::mul(), &[factors, outlet])
        }
        7 => {
            let terms = case.constant(&by_channel);
            case.add(math::sub(), &[outlet, terms])
        }
        8 => {
            let terms = case.constant(&by_channel);
            case.add(math::sub(), &[terms, outlet])
        }
        9 => {
            let other = case.input(&shape);
            case.add(math::add(), &[other, outlet])
        }
        10 => {
            // Of another size along some axes.
            let some: Vec<usize> = shape
                .iter()
                .map(|&size| if case.random.below(2) == 0 { 1 } else { size })
                .collect();
            let other = case.input(&some);
            case.add(math::mul(), &[outlet, other])
        }
        11 => {
            // Hard swish as exporters write it.
            let [three, zero, six, sixth] =
                [3.0, 0.0, 6.0, 1.0 / 6.0].map(|number| case.number(outlet, number));
            let sum = case.add(math::add(), &[outlet, three]);
            let low = case.add(math::max(), &[zero, sum]);
            let gate = case.add(math::min(), &[low, six]);
            let product = case.add(math::mul(), &[gate, outlet]);
            case.add(math::mul(), &[product, sixth])
        }
        12 => {
            // GELU by its approximation.
            let [c, one, half, root] =
                [0.044, 1.0, 0.5, 0.8].map(|number| case.number(outlet, number));
            let square = case.add(math::mul(), &[outlet, outlet]);
            let cube = case.add(math::mul(), &[square, outlet]);
            let scaled = case.add(math::mul(), &[cube, c]);
            let sum = case.add(math::add(), &[outlet, scaled]);
            let inner = case.add(math::mul(), &[sum, root]);
            let tanh = case.add(math::tanh(), &[inner]);
            let outer = case.add(math::add(), &[one, tanh]);
            let halved = case.add(math::mul(), &[half, outlet]);
            case.add(math::mul(), &[halved, outer])
        }
        _ => {
            // A residual: read twice.
            let tanh = case.add(math::tanh(), &[outlet]);
            let factors = case.constant(&by_channel);
            let scaled = case.add(math::mul(), &[tanh, factors]);
            case.add(math::add(), &[scaled, outlet])
        }
    }
}

fn windows(
    case: &mut Case,
    rank: usize,
    sizes: &[usize],
) -> (TVec<usize>, TVec<usize>, PaddingSpec, TVec<usize>) {
    let random = &mut case.random;
    let kernel: TVec<usize> = sizes.iter().map(|&size| random.among(1, size.min(4))).collect();
    let dilations: TVec<usize> = (0..rank)
        .map(|axis| if kernel[axis] * 2 <= sizes[axis] { random.among(1, 2) } else { 1 })
        .collect();
    let strides = (0..rank).map(|_| random.among(1, 3)).collect();
    let zeros = |random: &mut Random| kernel.iter().map(|&size| random.below(size)).collect();
    let padding = match random.below(4) {
        0 => PaddingSpec::Valid,
        1 => PaddingSpec::SameUpper,
        2 => PaddingSpec::SameLower,
        _ => PaddingSpec::Explicit(zeros(random), zeros(random)),
    };
    (kernel, strides, padding, dilations)
}

#[test]
fn convolutions_of_all_sizes_answer_the_same_with_all_that_follows() {
    let mut bits = Bits::default();
    let mut kinds = HashSet::new();
    for seed in 0..250 {
        let mut case = Case::new(seed);
        let rank = case.random.among(1, 2);
        let format = [DataFormat::NCHW, DataFormat::NHWC, DataFormat::CHW, DataFormat::HWC]
            [case.random.below(4)];
        let sizes: TVec<usize> = (0..rank).map(|_| case.random.among(2, 13)).collect();
        let (group, inner, outer) = match case.random.below(3) {
            0 => (case.random.among(2, 35), 1, 1),
            1 => (1, case.random.among(1, 35), case.random.among(1, 70)),
            _ => (case.random.among(2, 4), case.random.among(1, 5), case.random.among(1, 5)),
        };
        let images = case.random.among(1, 3);
        let (kernel, strides, padding, dilations) = windows(&mut case, rank, &sizes);
        let shape = format.from_n_c_hw(images, group * inner, &sizes).unwrap();
        let x = case.input(&shape.shape);
        let w_shape: TVec<usize> =
            [group * outer, inner].into_iter().chain(kernel.iter().copied()).collect();
        let w = case.constant(&w_shape);
        let b = case.constant(&[group * outer]);
        let spec = PoolSpec::new(
            format,
            kernel,
            padding,
            Some(dilations),
            Some(strides),
            group * inner,
            group * outer,
        );
        let what = format!("seed {seed}: {spec:?} in {group} groups of {sizes:?}");
        let mut y = case.add(Conv::new(spec, KernelFormat::OIHW, group, None), &[x, w, b]);
        let mut outputs = Vec::new();
        for _ in 0..case.random.below(5) {
            y = follow(&mut case, y, shape.c_axis());
            if case.random.below(6) == 0 {
                outputs.push(y);
            }
        }
        outputs.push(y);
        outputs.dedup();
        let names = case.check(&outputs, &what, &mut bits);
        assert!(!names.is_empty(), "{what}");
        kinds.extend(names);
    }
    for kind in ["ForebayConvolution", "ForebayDepthwise", "ForebayProduct", "ForebaySteps"] {
        assert!(kinds.contains(kind), "expected a {kind} among {kinds:?}");
    }
    assert!(bits.programs >= 249, "{}", bits.programs);
    bits.check("convolutions");
}

#[test]
fn products_over_any_axes_answer_the_same() {
    let mut bits = Bits::default();
    let sizes = |axis: char| match axis {
        'a' | 'c' | 'd' => 1,
        'm' => 7,
        'h' => 3,
        'b' => 4,
        'k' => 33,
        'n' => 37,
        _ => 5,
    };
    for (seed, (expression, is_ours)) in [
        ("mk,kn->mn", true),
        ("amk,kn->mn", true),
        ("mk,kn->amn", true),
        ("mk,nk->nm", true),
        ("km,kn->mn", true),
        ("km,nk->nm", true),
        ("mbk,bkn->amn", true),
        ("mbk,kbn->nm", true),
        ("akmh,nk->anmh", true),
        ("akmh,nk->nmh", true),
        ("kmh,nk->anmh", true),
        ("mkh,nk->mnh", true),
        ("k,nk->nac", true),
        ("bk,nk->bnac", true),
        ("mhk,kn->mhn", true),
        // The output turns the rows around: not ours.
        ("mhk,kn->hmn", false),
        // Two axes of channels: not ours.
        ("mk,kbn->mbn", false),
        // A product for each of several: not ours.
        ("bmk,bkn->bmn", false),
    ]
    .into_iter()
    .enumerate()
    {
        for turned in [false, true] {
            let mut case = Case::new(u64::try_from(seed).unwrap());
            let (inputs, output) = expression.split_once("->").unwrap();
            let (left, right) = inputs.split_once(',').unwrap();
            let [x_shape, w_shape] =
                [left, right].map(|axes| axes.chars().map(sizes).collect::<Vec<_>>());
            let (x, w) = (case.input(&x_shape), case.constant(&w_shape));
            let axes =
                if turned { format!("{right},{left}->{output}") } else { expression.to_owned() };
            let operands = if turned { [w, x] } else { [x, w] };
            let op = EinSum::new(axes.parse().unwrap(), f32::datum_type());
            let mut y = case.add(op, &operands);
            let axis = output.find('n').unwrap();
            for _ in 0..3 {
                y = follow(&mut case, y, axis);
            }
            let names = case.check(&[y], &axes, &mut bits);
            let found = names.iter().any(|name| name == "ForebayProduct");
            assert_eq!(found, is_ours, "{axes}: {names:?}");
        }
    }
    assert!(bits.programs >= 28, "{}", bits.programs);
    bits.check("products");
}

#[test]
fn products_of_computed_tensors_answer_the_same() {
    let mut bits = Bits::default();
    let sizes = |axis: char| match axis {
        'a' | 'c' | 'd' => 1,
        'm' => 7,
        'b' => 4,
        'h' => 3,
        'k' => 33,
        _ => 37,
    };
    for (seed, (expression, is_ours)) in [
        ("mbk,nbk->abmn", true),
        ("abmk,kbn->mbn", true),
        ("hbmk,hbkn->hbmn", true),
        ("amdbk,ancbk->abmn", true),
        ("mk,kn->mn", true),
        ("bk,bnk->bn", true),
        // The rows of neither side lie together: not ours.
        ("km,kn->mn", false),
        // Nor do the channels of the output.
        ("mk,bkn->mnb", false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new(u64::try_from(seed).unwrap());
        let (inputs, _) = expression.split_once("->").unwrap();
        let shapes = inputs.split(',').map(|axes| axes.chars().map(sizes).collect::<Vec<_>>());
        let inputs: Vec<_> = shapes.map(|shape| case.input(&shape)).collect();
        let op = EinSum::new(expression.parse().unwrap(), f32::datum_type());
        let y = case.add(op, &inputs);
        let axis = case.shape(y).len() - 1;
        let z = follow(&mut case, y, axis);
        let names = case.check(&[z], expression, &mut bits);
        let found = names.iter().any(|name| name == "ForebayPaired");
        assert_eq!(found, is_ours, "{expression}: {names:?}");
    }
    assert_eq!(bits.programs, 6);
    bits.check("paired");
}

#[test]
fn what_is_done_to_whole_axes_answers_the_same() {
    let mut bits = Bits::default();
    let mut kinds = HashSet::new();
    for seed in 0..150 {
        let mut case = Case::new(seed);
        let shape: Vec<usize> = (0..4).map(|_| case.random.among(1, 9)).collect();
        let mut x = case.input(&shape);
        // Half of them on images that are turned.
        if case.random.below(2) == 0 {
            let channels = case.random.among(1, 20);
            let (w, b) = (case.constant(&[channels, shape[1], 1, 1]), case.constant(&[channels]));
            let kernel = tvec!(1, 1);
            let valid = PaddingSpec::Valid;
            let spec =
                PoolSpec::new(DataFormat::NCHW, kernel, valid, None, None, shape[1], channels);
            x = case.add(Conv::new(spec, KernelFormat::OIHW, 1, None), &[x, w, b]);
        }
        let shape = case.shape(x);
        let y = match case.random.below(4) {
            0 => {
                let axes: TVec<usize> = (0..4).filter(|_| case.random.below(2) == 0).collect();
                let reducers = [Reducer::Sum, Reducer::Max, Reducer::MeanOfSquares, Reducer::Min];
                let reducer = reducers[case.random.below(4)];
                case.add(Reduce { axes, reducer }, &[x])
            }
            1 => {
                let axes = tvec!(case.random.below(4));
                case.add(Softmax { axes, quant_output_dt: None, kind: SoftmaxKind::Softmax }, &[x])
            }
            2 => {
                let (kernel, strides, padding, dilations) = windows(&mut case, 2, &shape[2..]);
                let spec = PoolSpec::new(
                    DataFormat::NCHW,
                    kernel,
                    padding,
                    Some(dilations),
                    Some(strides),
                    shape[1],
                    shape[1],
                );
                case.add(MaxPool::new(spec, None), &[x])
            }
            _ => {
                let (high, wide) = (case.random.among(1, 3), case.random.among(1, 3));
                let scales = tvec!(1, 1, high, wide);
                case.add(tract_onnx::tract_core::ops::nn::NearestUpsample { scales }, &[x])
            }
        };
        let z = follow(&mut case, y, 1);
        kinds.extend(case.check(&[z], &format!("seed {seed}"), &mut bits));
    }
    for kind in ["ForebayReduction", "ForebaySoftmax", "ForebayMaxPool", "ForebayRepeat"] {
        assert!(kinds.contains(kind), "expected a {kind} among {kinds:?}");
    }
    assert!(bits.programs >= 100, "{}", bits.programs);
    bits.check("whole");
}

#[test]
fn each_alternative_of_a_condition_answers_the_same() {
    let mut bits = Bits::default();
    for condition in [true, false] {
        let body = |seed| {
            let mut case = Case::new(seed);
            let (x, w) = (case.input(&[3, 20]), case.constant(&[20, 9]));
            let op = EinSum::new("mk,kn->mn".parse().unwrap(), f32::datum_type());
            let y = case.add(op, &[x, w]);
            case.model.select_output_outlets(&[y]).unwrap();
            case.model
        };
        let op = tract_onnx::tract_core::ops::logic::IfThenElse {
            then_body: body(1),
            then_input_mapping: vec![1],
            else_body: body(2),
            else_input_mapping: vec![2],
        };
        let mut case = Case::new(3);
        case.inputs.push(tensor0(condition).into_tvalue());
        let source = case.model.add_source("condition", bool::scalar_fact()).unwrap();
        let (a, b) = (case.input(&[3, 20]), case.input(&[3, 20]));
        let y = case.add(op, &[source, a, b]);
        let z = follow(&mut case, y, 1);
        let names = case.check(&[z], &format!("{condition}"), &mut bits);
        assert!(names.iter().any(|name| name == "ForebayBranch"), "{names:?}");
    }
    bits.check("conditions");
}

#[test]
fn a_graph_without_a_place_for_a_kernel_is_left_alone() {
    let mut model = TypedModel::default();
    let source = model.add_source("x", i64::fact([2, 3])).unwrap();
    let sum = model.wire_node("sum", math::add(), &[source, source]).unwrap();
    model.select_output_outlets(&sum).unwrap();
    assert!(rewrite(&model).unwrap().is_none());
}

#[test]
fn a_product_over_an_open_size_is_of_the_size_of_its_run() {
    let mut model = TypedModel::default();
    let size = model.symbols.sym("S").to_dim();
    let dims = |dims: &[TDim]| f32::fact(dims.iter().cloned().collect::<TVec<_>>());
    let x = model.add_source("x", dims(&[1.to_dim(), size.clone()])).unwrap();
    let w = model.add_source("w", dims(&[size, 4.to_dim()])).unwrap();
    let op = EinSum::new("bk,kn->bn".parse().unwrap(), f32::datum_type());
    let y = model.wire_node("y", op, &[x, w]).unwrap();
    model.select_output_outlets(&y).unwrap();
    let ours = rewrite(&model).unwrap().unwrap().into_optimized().unwrap().into_runnable().unwrap();
    let plain = model.into_optimized().unwrap().into_runnable().unwrap();
    for size in [1, 3, 200] {
        let mut random = random(7);
        let inputs = [vec![1, size], vec![size, 4]];
        let inputs: TVec<TValue> =
            inputs.iter().map(|shape| random.tensor(shape).into_tvalue()).collect();
        let (found, expected) = (ours.run(inputs.clone()).unwrap(), plain.run(inputs).unwrap());
        let close = Approximation::Custom(1e-4, 1e-4, 0.0);
        assert!(found[0].close_enough(&expected[0], close).is_ok(), "{size}");
    }
}
