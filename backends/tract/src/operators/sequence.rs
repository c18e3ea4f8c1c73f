//! The steps of a recurrent net over whole sequences, as one operator.
//!
//! Inputs, as far as they are there: the product of the input with its weights and its bias
//! [batch, time, gates * hidden], the weights of the state [gates * hidden, hidden], the bias of the state
//! [gates * hidden], the first state and cell [batch, hidden], peepholes [3 * hidden], and the length of
//! each sequence [batch]. Outputs: all states [batch, time, hidden], the last state and, of an LSTM, the
//! last cell [batch, hidden]. States behind the end of a sequence are zero, and the last state is that at
//! its end.

use super::activation::Activation;
use crate::sound::BadValue;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Rnn,
    /// Does the reset gate come behind the product with the state?
    Gru {
        resets_product: bool,
    },
    Lstm,
}

impl Kind {
    pub(super) fn gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru { .. } => 3,
            Self::Lstm => 4,
        }
    }

    /// Functions of one direction.
    pub(super) fn functions(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru { .. } => 2,
            Self::Lstm => 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(super) kind: Kind,
    pub(super) functions: Vec<Activation>,
    /// Bound of what goes into a function, as bits.
    pub(super) clip: Option<u32>,
    /// Is the forget gate what the input gate leaves?
    pub(super) is_coupled: bool,
    pub(super) is_backward: bool,
    pub(super) has_bias: bool,
    pub(super) has_state: bool,
    pub(super) has_cell: bool,
    pub(super) has_peepholes: bool,
    pub(super) has_lengths: bool,
}

/// The state that all rows share.
struct Weights<'a> {
    hidden: usize,
    /// Weights of the state, turned: [hidden, gates * hidden].
    turned: Vec<f32>,
    bias: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
}

impl Weights<'_> {
    /// Adds the product of a state with the weights of some gates, and their bias.
    fn add(&self, state: &[f32], gates: std::ops::Range<usize>, to: &mut [f32], width: usize) {
        let range = gates.start * self.hidden..gates.end * self.hidden;
        if let Some(bias) = self.bias {
            to.iter_mut().zip(&bias[range.clone()]).for_each(|(to, bias)| *to += bias);
        }
        for (line, &value) in self.turned.chunks_exact(width).zip(state) {
            to.iter_mut().zip(&line[range.clone()]).for_each(|(to, weight)| *to += value * weight);
        }
    }
}

/// The state of a row while it runs, and room for its gates.
struct Row {
    state: Vec<f32>,
    cell: Vec<f32>,
    gates: Vec<f32>,
    product: Vec<f32>,
}

impl Sequence {
    /// Within the bound, or at least finite, as ONNX Runtime has it; what is no number stays none.
    fn bounded(&self, x: f32) -> f32 {
        let clip = self.clip.map_or(f32::MAX, f32::from_bits);
        x.clamp(-clip, clip)
    }

    fn step(&self, weights: &Weights<'_>, row: &mut Row) {
        match self.kind {
            Kind::Rnn => {
                weights.add(&row.state, 0..1, &mut row.gates, weights.hidden);
                let values = row.state.iter_mut().zip(&row.gates);
                values.for_each(|(state, &x)| *state = self.functions[0].at(self.bounded(x)));
            }
            Kind::Gru { resets_product } => self.gru(weights, row, resets_product),
            Kind::Lstm => self.lstm(weights, row),
        }
    }

    fn gru(&self, weights: &Weights<'_>, row: &mut Row, resets_product: bool) {
        let size = weights.hidden;
        weights.add(&row.state, 0..2, &mut row.gates[..2 * size], 3 * size);
        let (outer, inner) = row.gates.split_at_mut(2 * size);
        outer.iter_mut().for_each(|gate| *gate = self.functions[0].at(self.bounded(*gate)));
        let (update, reset) = outer.split_at(size);
        row.product[..size].fill(0.0);
        if resets_product {
            weights.add(&row.state, 2..3, &mut row.product[..size], 3 * size);
            row.product[..size].iter_mut().zip(reset).for_each(|(x, reset)| *x *= reset);
        } else {
            let kept: Vec<f32> = row.state.iter().zip(reset).map(|(x, reset)| x * reset).collect();
            weights.add(&kept, 2..3, &mut row.product[..size], 3 * size);
        }
        for place in 0..size {
            let new = self.functions[1].at(self.bounded(inner[place] + row.product[place]));
            row.state[place] = (1.0 - update[place]) * new + update[place] * row.state[place];
        }
    }

    /// Gates stand in the order input, output, forget, cell; peepholes as the first three.
    fn lstm(&self, weights: &Weights<'_>, row: &mut Row) {
        let size = weights.hidden;
        weights.add(&row.state, 0..4, &mut row.gates, 4 * size);
        let [f, g, h] = [self.functions[0], self.functions[1], self.functions[2]];
        for place in 0..size {
            let peep = |gate: usize, cell: f32| {
                weights.peepholes.map_or(0.0, |peepholes| peepholes[gate * size + place] * cell)
            };
            let gate = |gate: usize| row.gates[gate * size + place];
            let cell = row.cell[place];
            let input = f.at(self.bounded(gate(0) + peep(0, cell)));
            let forget = match self.is_coupled {
                true => 1.0 - input,
                false => f.at(self.bounded(gate(2) + peep(2, cell))),
            };
            let new = g.at(self.bounded(gate(3)));
            let cell = forget * cell + input * new;
            let output = f.at(self.bounded(gate(1) + peep(1, cell)));
            row.cell[place] = cell;
            row.state[place] = output * h.at(cell);
        }
    }
}

/// How many steps each row has.
fn lengths(input: Option<&TValue>, rows: usize, time: usize) -> TractResult<Vec<usize>> {
    let Some(input) = input else { return Ok(vec![time; rows]) };
    let input = input.cast_to::<i64>()?;
    let given = input.try_as_plain_ram()?;
    let given = given.as_slice::<i64>()?;
    ensure!(given.len() == rows, "expected {rows} lengths of sequences, found {}", given.len());
    let length = |length: &i64| {
        let fits = usize::try_from(*length).ok().filter(|&length| length <= time);
        fits.ok_or_else(|| {
            let expected = format!("lengths of sequences from 0 to {time}");
            TractError::from(BadValue::new("a recurrent net", expected, length))
        })
    };
    given.iter().map(length).collect()
}

impl Op for Sequence {
    fn name(&self) -> StaticName {
        "ForebaySequence".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Sequence {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let plain = |input: &TValue| -> TractResult<Vec<f32>> {
            Ok(input.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let mut rest = inputs[2..].iter();
        let mut next = |is_there: bool| if is_there { rest.next() } else { None };
        let bias = next(self.has_bias).map(plain).transpose()?;
        let state = next(self.has_state).map(plain).transpose()?;
        let cell = next(self.has_cell).map(plain).transpose()?;
        let peepholes = next(self.has_peepholes).map(plain).transpose()?;
        let given = next(self.has_lengths);
        let &[rows, time, width] = inputs[0].shape() else { bail!("expected three axes") };
        let hidden = width / self.kind.gates();
        let lengths = lengths(given, rows, time)?;
        let product = inputs[0].try_as_plain_ram()?;
        let product = product.as_slice::<f32>()?;
        let stored = inputs[1].try_as_plain_ram()?;
        let stored = stored.as_slice::<f32>()?;
        let turned = (0..hidden).flat_map(|k| (0..width).map(move |g| stored[g * hidden + k]));
        let turned = turned.collect();
        let (bias, peepholes) = (bias.as_deref(), peepholes.as_deref());
        let weights = Weights { hidden, turned, bias, peepholes };
        let mut y = vec![0.0; rows * time * hidden];
        let (mut last, mut cells) = (Vec::new(), Vec::new());
        for (place, &length) in lengths.iter().enumerate() {
            let own = |first: &Option<Vec<f32>>| match first {
                Some(all) => all[place * hidden..(place + 1) * hidden].to_vec(),
                None => vec![0.0; hidden],
            };
            let (gates, product_of) = (vec![0.0; width], vec![0.0; hidden]);
            let mut row = Row { state: own(&state), cell: own(&cell), gates, product: product_of };
            for step in 0..length {
                let at = place * time + if self.is_backward { length - 1 - step } else { step };
                row.gates.copy_from_slice(&product[at * width..(at + 1) * width]);
                self.step(&weights, &mut row);
                y[at * hidden..(at + 1) * hidden].copy_from_slice(&row.state);
            }
            last.extend(row.state);
            cells.extend(row.cell);
        }
        let y = Tensor::from_shape(&[rows, time, hidden], &y)?.into_tvalue();
        let mut outputs = tvec!(y, Tensor::from_shape(&[rows, hidden], &last)?.into_tvalue());
        if self.kind == Kind::Lstm {
            outputs.push(Tensor::from_shape(&[rows, hidden], &cells)?.into_tvalue());
        }
        Ok(outputs)
    }
}

impl TypedOp for Sequence {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [rows, time, _] = &*inputs[0].shape else { bail!("expected three axes") };
        let hidden = &inputs[1].shape[1];
        let fact = |shape: &[&TDim]| {
            let shape: TVec<TDim> = shape.iter().map(|&size| size.clone()).collect();
            f32::datum_type().fact(shape)
        };
        let mut facts = tvec!(fact(&[rows, time, hidden]), fact(&[rows, hidden]));
        if self.kind == Kind::Lstm {
            facts.push(fact(&[rows, hidden]));
        }
        Ok(facts)
    }

    as_op!();
}
