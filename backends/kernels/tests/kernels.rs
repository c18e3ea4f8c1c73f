//! The kernels beside the plainest possible loops, on random sizes, with each vector unit that there
//! is here.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "tests")]

use forebay_kernels::Unit;
use forebay_kernels::dense::{Convolution, Geometry, Matrices, Product, multiply};
use forebay_kernels::depthwise::Depthwise;
use forebay_kernels::epilogue::{Beside, Formula, Line, Pair, Spread, Step};
use forebay_kernels::reduce::Reduction;

type OfTwo = fn(f32, f32) -> f32;
/// Of a value and its index.
type OfIndex = Box<dyn Fn(f32, usize) -> f32>;

/// xorshift: the seed is the number of the case, so that a failure names it.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end
    }

    fn among(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.below(2001) as f32 - 1000.0) / 500.0).collect()
    }
}

/// Names the vector unit that a run of this program is for, if it is not the widest.
const WANTED: &str = "FOREBAY_KERNELS_UNIT";

/// Takes the vector unit that this run is for.
fn set_up() {
    let Ok(wanted) = std::env::var(WANTED) else { return };
    let unit = Unit::ALL.into_iter().find(|unit| unit.to_string() == wanted).unwrap();
    assert!(unit.choose(), "{wanted} can't be used, {} is", Unit::in_use());
}

#[test]
fn every_other_vector_unit_passes_the_same_tests() {
    if std::env::var_os(WANTED).is_some() {
        return;
    }
    let widest = Unit::in_use();
    let others = Unit::ALL.into_iter().filter(|&unit| unit != widest);
    for unit in others {
        if !unit.is_here() {
            eprintln!("{unit}: not on this machine, not tested");
            assert!(!unit.choose());
            continue;
        }
        // A process has one for its life.
        assert!(!unit.choose() && widest.choose());
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.env(WANTED, unit.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {text}");
        assert!(text.contains("test result: ok. 11 passed"), "{unit}: {text}");
    }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        if expected.is_nan() {
            assert!(found.is_nan(), "{what}: value {index} is {found}, expected NaN");
            continue;
        }
        let off = (found - expected).abs() / expected.abs().max(1.0);
        assert!(off < 2e-5, "{what}: value {index} is {found}, expected {expected}");
    }
}

fn convolve(g: &Geometry, images: usize, x: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
    let [height, width] = g.output().unwrap();
    let (inner, outer) = (g.channels_in / g.groups, g.channels_out / g.groups);
    let mut y = Vec::new();
    for image in 0..images {
        for row in 0..height {
            for column in 0..width {
                for channel in 0..g.channels_out {
                    let mut sum = b.get(channel).copied().unwrap_or(0.0);
                    for kernel_row in 0..g.kernel[0] {
                        for kernel_column in 0..g.kernel[1] {
                            let at = row * g.stride[0] + kernel_row * g.dilation[0];
                            let left = column * g.stride[1] + kernel_column * g.dilation[1];
                            let (Some(at), Some(left)) =
                                (at.checked_sub(g.before[0]), left.checked_sub(g.before[1]))
                            else {
                                continue;
                            };
                            if at >= g.input[0] || left >= g.input[1] {
                                continue;
                            }
                            for from in 0..inner {
                                let source = channel / outer * inner + from;
                                let value = x[((image * g.input[0] + at) * g.input[1] + left)
                                    * g.channels_in
                                    + source];
                                let weight = w[((channel * inner + from) * g.kernel[0]
                                    + kernel_row)
                                    * g.kernel[1]
                                    + kernel_column];
                                sum += value * weight;
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

fn geometry(random: &mut Random, depthwise: bool) -> Geometry {
    loop {
        let mut two = |first, last| [random.among(first, last), random.among(first, last)];
        let (input, kernel, stride) = (two(1, 19), two(1, 5), two(1, 3));
        let (dilation, before, after) = (two(1, 3), two(0, 3), two(0, 3));
        let groups = if depthwise { random.among(1, 70) } else { [1, 1, 2, 3][random.below(4)] };
        let scale = if depthwise { 1 } else { random.among(1, 40 / groups) };
        let channels_in = groups * scale;
        let channels_out = if depthwise { groups } else { groups * random.among(1, 75 / groups) };
        let geometry = Geometry {
            input,
            kernel,
            stride,
            dilation,
            before,
            after,
            channels_in,
            channels_out,
            groups,
        };
        if geometry.output().is_some() {
            return geometry;
        }
    }
}

#[test]
fn products_are_those_of_plain_loops() {
    set_up();
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let (m, k, n) = (random.among(1, 40), random.among(1, 70), random.among(1, 100));
        let (x, w) = (random.values(m * k), random.values(k * n));
        let biased = random.below(2);
        let b = random.values([0, n][biased]);
        let product = Product::new(k, n, |line, channel| w[line * n + channel], &b);
        let mut y = vec![f32::NAN; m * n];
        product.run(&x, &mut y, &[], &[]);
        let expected: Vec<f32> = (0..m * n)
            .map(|i| {
                let sum: f32 = (0..k).map(|line| x[i / n * k + line] * w[line * n + i % n]).sum();
                sum + b.get(i % n).copied().unwrap_or(0.0)
            })
            .collect();
        assert_close(&y, &expected, &format!("seed {seed}: {m} x {k} x {n}"));
    }
}

#[test]
fn convolutions_are_those_of_plain_loops() {
    set_up();
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let g = geometry(&mut random, seed % 2 == 0);
        let images = random.among(1, 3);
        let x = random.values(images * g.input[0] * g.input[1] * g.channels_in);
        let taps = g.kernel[0] * g.kernel[1];
        let w = random.values(g.channels_out * (g.channels_in / g.groups) * taps);
        let biased = random.below(2);
        let b = random.values([0, g.channels_out][biased]);
        let expected = convolve(&g, images, &x, &w, &b);
        let what = format!("seed {seed}: {g:?}");
        let mut y = vec![f32::NAN; expected.len()];
        Convolution::new(g, &w, &b).unwrap().run(&x, &mut y, &[], &[]);
        assert_close(&y, &expected, &what);
        if let Some(depthwise) = Depthwise::new(g, &w, &b) {
            y.fill(f32::NAN);
            depthwise.run(&x, &mut y, &[], &[]);
            assert_close(&y, &expected, &format!("depthwise, {what}"));
        } else {
            assert_eq!(seed % 2, 1, "{what}");
        }
    }
}

#[test]
fn steps_are_those_of_the_definitions() {
    set_up();
    let erf = |x: f32| {
        // The series, in double precision.
        let x = f64::from(x);
        let (mut sum, mut term) = (x, x);
        for n in 1..80 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        let value = 2.0 / std::f64::consts::PI.sqrt() * sum;
        #[allow(clippy::cast_possible_truncation, reason = "single precision is compared")]
        let value = if x.abs() > 4.5 { x.signum() } else { value } as f32;
        value
    };
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let (rows, channels) = (7, 37);
    let mut random = Random::new(1);
    let x: Vec<f32> = random.values(rows * channels).iter().map(|x| x * 4.0).collect();
    let by_channel = random.values(channels);
    let gate = Step::Gate { scale: 1.0 / 6.0, offset: 0.5, low: 0.0, high: 1.0 };
    let cases: Vec<(Step, OfIndex)> = vec![
        (Step::Relu, Box::new(|x, _| x.max(0.0))),
        (Step::Clip(-1.0, 2.5), Box::new(|x, _| x.clamp(-1.0, 2.5))),
        (Step::Leaky(0.1), Box::new(|x, _| if x < 0.0 { x * 0.1 } else { x })),
        (gate, Box::new(|x, _| x * (x / 6.0 + 0.5).clamp(0.0, 1.0))),
        (Step::Sigmoid, Box::new(move |x, _| sigmoid(x))),
        (Step::Silu, Box::new(move |x, _| x * sigmoid(x))),
        (Step::Tanh, Box::new(|x, _| x.tanh())),
        (Step::Erf, Box::new(move |x, _| erf(x))),
        (
            Step::Gelu,
            Box::new(move |x, _| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        ),
        (Step::Add(0.7), Box::new(|x, _| x + 0.7)),
        (Step::Mul(-3.0), Box::new(|x, _| x * -3.0)),
        (Step::AddChannel(by_channel.clone()), {
            let by_channel = by_channel.clone();
            Box::new(move |x, i| x + by_channel[i % channels])
        }),
        (Step::MulChannel(by_channel.clone()), {
            Box::new(move |x, i| x * by_channel[i % channels])
        }),
        (Step::Abs, Box::new(|x, _| x.abs())),
        (Step::Square, Box::new(|x, _| x * x)),
        (Step::Sqrt, Box::new(|x, _| x.sqrt())),
        (Step::Rsqrt, Box::new(|x, _| x.sqrt().recip())),
        (Step::Recip, Box::new(|x, _| x.recip())),
        (Step::Exp, Box::new(|x, _| x.exp())),
        (
            // The approximation of GELU: x / 2 * (1 + tanh(0.8 * (x + 0.04 * x^3))).
            Step::Formula(Formula {
                lines: vec![
                    Line::One { step: Step::Square, a: 0, to: 1 },
                    Line::Two { pair: Pair::Mul, a: 1, b: 0, to: 1 },
                    Line::One { step: Step::Mul(0.04), a: 1, to: 1 },
                    Line::Two { pair: Pair::Add, a: 1, b: 0, to: 1 },
                    Line::One { step: Step::Mul(0.8), a: 1, to: 1 },
                    Line::One { step: Step::Tanh, a: 1, to: 1 },
                    Line::One { step: Step::Add(1.0), a: 1, to: 1 },
                    Line::One { step: Step::Mul(0.5), a: 0, to: 2 },
                    Line::Two { pair: Pair::Mul, a: 2, b: 1, to: 0 },
                ],
            }),
            Box::new(|x, _| x / 2.0 * (1.0 + (0.8 * (x + 0.04 * x * x * x)).tanh())),
        ),
    ];
    // The identity, so that only the steps are seen.
    let identity = |line, channel| if line == channel { 1.0 } else { 0.0 };
    let product = Product::new(channels, channels, identity, &[]);
    for (step, f) in &cases {
        let mut y = vec![f32::NAN; rows * channels];
        product.run(&x, &mut y, std::slice::from_ref(step), &[]);
        let expected: Vec<f32> = x.iter().enumerate().map(|(i, &x)| f(x, i)).collect();
        assert_close(&y, &expected, &format!("{step:?}"));
        let mut y = x.clone();
        forebay_kernels::epilogue::run(&mut y, channels, std::slice::from_ref(step), &[]);
        assert_close(&y, &expected, &format!("{step:?} of values as they are"));
    }
    // Many of them, one after the other.
    let steps: Vec<Step> = cases[..11].iter().map(|(step, _)| step.clone()).collect();
    let mut y = vec![f32::NAN; rows * channels];
    product.run(&x, &mut y, &steps, &[]);
    let all = |(i, &x): (usize, &f32)| cases[..11].iter().fold(x, |x, (_, f)| f(x, i));
    assert_close(&y, &x.iter().enumerate().map(all).collect::<Vec<f32>>(), "many steps");
}

#[test]
fn tensors_go_with_the_rows_that_they_belong_to() {
    set_up();
    let pairs: [(Pair, OfTwo); 6] = [
        (Pair::Add, |a, b| a + b),
        (Pair::Sub, |a, b| a - b),
        (Pair::From, |a, b| b - a),
        (Pair::Mul, |a, b| a * b),
        (Pair::Div, |a, b| a / b),
        (Pair::Into, |a, b| b / a),
    ];
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let (outer, middle, inner) = (random.among(1, 3), random.among(1, 4), random.among(1, 5));
        let (rows, channels) = (outer * middle * inner, random.among(1, 150));
        let x: Vec<f32> = random.values(rows * channels).iter().map(|x| x + 3.5).collect();
        let repeat = [1, inner, middle * inner][random.below(3)];
        let tensor_rows = (rows / repeat)
            .min([usize::MAX, middle * inner / repeat.min(middle * inner)][random.below(2)])
            .max(1);
        let has_channels = random.below(2) == 1;
        let spread = Spread { repeat, rows: tensor_rows, has_channels };
        let width = if has_channels { channels } else { 1 };
        let other: Vec<f32> = random.values(tensor_rows * width).iter().map(|x| x + 3.5).collect();
        for (pair, f) in pairs {
            let mut y = x.clone();
            let beside = [Beside { data: &other, spread }];
            forebay_kernels::epilogue::run(&mut y, channels, &[Step::Tensor(pair)], &beside);
            let expected = x.iter().enumerate().map(|(i, &x)| {
                let row = i / channels / repeat % tensor_rows;
                f(x, other[row * width + if has_channels { i % channels } else { 0 }])
            });
            let what = format!("seed {seed}: {pair:?} {spread:?} {rows} x {channels}");
            assert_close(&y, &expected.collect::<Vec<f32>>(), &what);
        }
    }
}

#[test]
fn values_that_are_no_numbers_stay_so_and_extremes_stay_finite() {
    set_up();
    let product = Product::new(1, 1, |_, _| 1.0, &[]);
    let gate = Step::Gate { scale: 1.0, offset: 0.0, low: 0.0, high: 1.0 };
    for step in [Step::Relu, Step::Clip(0.0, 1.0), gate, Step::Sigmoid, Step::Tanh, Step::Gelu] {
        let mut y = [0.0];
        product.run(&[f32::NAN], &mut y, std::slice::from_ref(&step), &[]);
        assert!(y[0].is_nan(), "{step:?} of NaN gives {}", y[0]);
    }
    for step in [Step::Sigmoid, Step::Tanh, Step::Erf] {
        for (x, end) in [(1e4, 1.0), (-1e4, if step == Step::Sigmoid { 0.0 } else { -1.0 })] {
            let mut y = [0.0];
            product.run(&[x], &mut y, std::slice::from_ref(&step), &[]);
            assert!((y[0] - end).abs() < 1e-6, "{step:?} of {x} gives {}", y[0]);
        }
    }
}

#[test]
fn reductions_are_those_of_plain_loops() {
    set_up();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let (outer, count) = (random.among(1, 4), random.among(1, 150));
        let inner = [1, random.among(2, 150)][random.below(2)];
        let x = random.values(outer * count * inner);
        let cases: [(Reduction, OfTwo, f32); 3] = [
            (Reduction::Sum, |sum, x| sum + x, 0.0),
            (Reduction::Max, f32::max, f32::NEG_INFINITY),
            (Reduction::MeanOfSquares, |sum, x| sum + x * x, 0.0),
        ];
        for (reduction, f, start) in cases {
            let mut y = vec![f32::NAN; outer * inner];
            forebay_kernels::reduce::reduce(reduction, &x, &mut y, count, inner);
            let expected = (0..outer * inner).map(|at| {
                let values = (0..count).map(|i| x[(at / inner * count + i) * inner + at % inner]);
                let sum = values.fold(start, f);
                if reduction == Reduction::MeanOfSquares { sum / count as f32 } else { sum }
            });
            let what = format!("seed {seed}: {reduction:?} of {outer} x {count} x {inner}");
            assert_close(&y, &expected.collect::<Vec<f32>>(), &what);
        }
        let mut y: Vec<f32> = x.iter().map(|x| x * 9.0).collect();
        let rows = outer * inner;
        forebay_kernels::reduce::softmax(&mut y, count);
        for row in 0..rows {
            let row = row * count..(row + 1) * count;
            let greatest = x[row.clone()].iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b * 9.0));
            let powers: Vec<f32> =
                x[row.clone()].iter().map(|x| (x * 9.0 - greatest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            let expected: Vec<f32> = powers.iter().map(|power| power / sum).collect();
            assert_close(&y[row], &expected, &format!("seed {seed}: softmax of {count}"));
        }
    }
}

#[test]
fn the_greatest_of_windows_is_that_of_plain_loops() {
    set_up();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut g = geometry(&mut random, true);
        // Every window holds at least one value.
        g.before = g.before.map(|zeros| zeros.min(1));
        g.after = g.before;
        g.kernel = g.kernel.map(|size| size.max(2));
        g.dilation = [1, 1];
        let Some([height, width]) = g.output() else { continue };
        let images = random.among(1, 3);
        let x = random.values(images * g.input[0] * g.input[1] * g.channels_in);
        let mut y = vec![f32::NAN; images * height * width * g.channels_in];
        forebay_kernels::reduce::max_pool(&g, &x, &mut y).unwrap();
        let expected = (0..y.len()).map(|at| {
            let (channel, place) = (at % g.channels_in, at / g.channels_in);
            let (column, row, image) =
                (place % width, place / width % height, place / width / height);
            let mut greatest = f32::NEG_INFINITY;
            for tap in 0..g.kernel[0] * g.kernel[1] {
                let at = (row * g.stride[0] + tap / g.kernel[1]).wrapping_sub(g.before[0]);
                let left = (column * g.stride[1] + tap % g.kernel[1]).wrapping_sub(g.before[1]);
                if at < g.input[0] && left < g.input[1] {
                    let from = (image * g.input[0] + at) * g.input[1] + left;
                    greatest = greatest.max(x[from * g.channels_in + channel]);
                }
            }
            greatest
        });
        assert_close(&y, &expected.collect::<Vec<f32>>(), &format!("seed {seed}: {g:?}"));
    }
}

#[test]
fn pixels_are_repeated_in_both_directions() {
    set_up();
    let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let mut y = [0.0; 48];
    // Two images of 1 x 2 pixels of two channels, 2 times as high and 3 times as wide.
    forebay_kernels::reduce::repeat([2, 3], 2, 2, &x, &mut y);
    let line = |a: f32| [a, a + 1.0, a, a + 1.0, a, a + 1.0];
    let expected = [1.0, 3.0, 1.0, 3.0, 5.0, 7.0, 5.0, 7.0].map(line).concat();
    assert_eq!(y.as_slice(), expected);
}

#[test]
fn weights_are_had_back_as_they_were_given() {
    for (lines, channels) in [(1, 1), (3, 16), (5, 33), (7, 64), (2, 100)] {
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        let weight = |line: usize, channel: usize| (line * channels + channel) as f32;
        let product = Product::new(lines, channels, weight, &[]);
        let given: Vec<f32> =
            (0..lines).flat_map(|line| (0..channels).map(move |c| weight(line, c))).collect();
        assert_eq!((product.sizes(), product.unpack()), ([lines, channels], given));
    }
    for (groups, inner, outer, kernel) in [(1, 3, 40, [3, 2]), (2, 5, 7, [1, 3]), (1, 1, 1, [1, 1])]
    {
        let geometry = Geometry {
            input: [9, 9],
            kernel,
            stride: [1, 1],
            dilation: [1, 1],
            before: [0, 0],
            after: [0, 0],
            channels_in: groups * inner,
            channels_out: groups * outer,
            groups,
        };
        let count = groups * outer * inner * kernel[0] * kernel[1];
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        let given: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let convolution = Convolution::new(geometry, &given, &[]).unwrap();
        assert_eq!((convolution.count(), convolution.unpack()), (count, given));
    }
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    set_up();
    let mut random = Random::new(3);
    for (lines, channels) in [(1, 1), (64, 7), (7, 64), (33, 129), (64, 500), (500, 64)] {
        let (x, w) = (random.values(2 * lines), random.values(lines * channels));
        for (w_line, w_channel) in [(channels, 1), (1, lines)] {
            let of = |rows| Matrices {
                rows,
                lines,
                channels,
                x_row: lines,
                w_line,
                w_channel,
                y_row: channels,
            };
            let (mut pair, mut alone) = (vec![0.5; 2 * channels], vec![0.5; channels]);
            multiply(&of(2), &x, &w, &mut pair);
            multiply(&of(1), &x, &w, &mut alone);
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone), bits(&pair[..channels]), "{lines} {channels} {w_line}");
        }
    }
}
