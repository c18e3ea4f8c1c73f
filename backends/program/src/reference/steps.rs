//! Steps, one value after the other.

use super::array::Array;
use crate::steps::{Formula, Line, Pair, REGISTERS, Spread, Step};

/// Takes the steps with each value; `None` if a tensor that they read does not go with the values.
pub(super) fn apply(steps: &[Step], y: &mut Array, tensors: &[&Array]) -> Option<()> {
    let mut tensors = tensors.iter();
    for step in steps {
        let channels = y.shape.last().copied().unwrap_or(1).max(1);
        let rows = y.values.chunks_exact_mut(channels);
        match step {
            Step::AddChannel(numbers) => rows.for_each(|row| {
                row.iter_mut().zip(numbers).for_each(|(y, number)| *y += f64::from(*number));
            }),
            Step::MulChannel(numbers) => rows.for_each(|row| {
                row.iter_mut().zip(numbers).for_each(|(y, number)| *y *= f64::from(*number));
            }),
            Step::Tensor(pair) => {
                let tensor = tensors.next()?;
                let is_same_rank = tensor.shape.len() == y.shape.len() && !y.shape.is_empty();
                let axis = y.shape.len().checked_sub(1).filter(|_| is_same_rank)?;
                let spread = Spread::of(&tensor.shape, &y.shape, axis)?;
                for (place, row) in rows.enumerate() {
                    for (channel, y) in row.iter_mut().enumerate() {
                        let at = spread.row(place);
                        let at = if spread.has_channels { at * channels + channel } else { at };
                        *y = of_two(*pair, *y, *tensor.values.get(at)?);
                    }
                }
            }
            Step::Formula(formula) => {
                y.values.iter_mut().for_each(|y| *y = of_formula(formula, *y));
            }
            step => y.values.iter_mut().for_each(|y| *y = of_one(step, *y)),
        }
    }
    Some(())
}

fn of_formula(formula: &Formula, value: f64) -> f64 {
    let mut registers = [value; REGISTERS];
    let mut last = value;
    for line in &formula.lines {
        let to = match line {
            Line::One { step, a, to } => {
                last = of_one(step, registers[a % REGISTERS]);
                to
            }
            Line::Two { pair, a, b, to } => {
                last = of_two(*pair, registers[a % REGISTERS], registers[b % REGISTERS]);
                to
            }
        };
        registers[to % REGISTERS] = last;
    }
    last
}

fn of_two(pair: Pair, a: f64, b: f64) -> f64 {
    match pair {
        Pair::Add => a + b,
        Pair::Sub => a - b,
        Pair::From => b - a,
        Pair::Mul => a * b,
        Pair::Div => a / b,
        Pair::Into => b / a,
    }
}

/// A step that reads nothing but the value; the others leave it as it is.
fn of_one(step: &Step, x: f64) -> f64 {
    let clip = |x: f64, low: f32, high: f32| x.max(f64::from(low)).min(f64::from(high));
    match *step {
        Step::Relu => x.max(0.0),
        Step::Clip(low, high) => clip(x, low, high),
        Step::Leaky(slope) => {
            if x < 0.0 {
                x * f64::from(slope)
            } else {
                x
            }
        }
        Step::Gate { scale, offset, low, high } => {
            x * clip(x * f64::from(scale) + f64::from(offset), low, high)
        }
        Step::Sigmoid => sigmoid(x),
        Step::Silu => x * sigmoid(x),
        Step::Tanh => x.tanh(),
        Step::Erf => erf(x),
        Step::Gelu => x / 2.0 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Step::Abs => x.abs(),
        Step::Square => x * x,
        Step::Sqrt => x.sqrt(),
        Step::Rsqrt => 1.0 / x.sqrt(),
        Step::Recip => 1.0 / x,
        Step::Exp => x.exp(),
        Step::Add(number) => x + f64::from(number),
        Step::Mul(number) => x * f64::from(number),
        Step::AddChannel(_) | Step::MulChannel(_) | Step::Tensor(_) | Step::Formula(_) => x,
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// By a series without differences (Abramowitz and Stegun 7.1.6); beyond 6 it is 1.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_has_the_values_of_its_tables() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813),
            (1.0, 0.842_700_792_950),
            (3.0, 0.999_977_909_503),
        ] {
            assert!((erf(x) - expected).abs() < 1e-11, "{x}");
            assert!((erf(-x) + expected).abs() < 1e-11, "{x}");
        }
        assert_eq!((erf(f64::INFINITY), erf(-7.0)), (1.0, -1.0));
        assert!(erf(f64::NAN).is_nan());
    }
}
