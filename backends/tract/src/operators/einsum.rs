//! `Einsum`, with an ellipsis or without.
//!
//! tract takes each ellipsis of the equation for the one of the next input, so that an input without one
//! shifts all others: `...c,cd->...d` loses the rows. Here each input has its own. The
//! dimensions that an ellipsis stands for are aligned at their end and broadcast, as in the definition.

use super::built::Built;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::internal::*;

/// Letters for axes that the equation does not name, behind all that it may name.
const UNNAMED: char = 'α';
/// Letters for axes of one element that no other input has.
const OF_ONE: char = 'ა';

pub(super) fn build(_: &ParsingContext, node: &NodeProto) -> Built {
    let equation = node.get_attr::<String>("equation")?.replace(' ', "");
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, output.to_owned()),
        None => (equation.as_str(), implicit(&equation)),
    };
    let inputs = inputs.split(',').map(str::to_owned).collect();
    Ok((expand(Ellipsis { inputs, output }), vec![]))
}

/// The output of an equation that states none: the unnamed axes, then each letter that occurs exactly
/// once.
fn implicit(inputs: &str) -> String {
    let letters = || inputs.chars().filter(|letter| letter.is_alphabetic());
    let mut once: Vec<char> =
        letters().filter(|letter| letters().filter(|other| other == letter).count() == 1).collect();
    once.sort_unstable();
    format!("...{}", once.into_iter().collect::<String>())
}

#[derive(Debug, Clone)]
struct Ellipsis {
    inputs: Vec<String>,
    output: String,
}

impl Ellipsis {
    /// The equation for inputs of these ranks.
    fn named(&self, ranks: &[usize]) -> TractResult<AxesMapping> {
        let (inputs, output) = self.terms(ranks)?;
        // As text, tract takes an output without axes for none that is stated.
        AxesMapping::from_strs(&inputs, &[output])
    }

    /// Its inputs and its output, with a letter for each axis, for inputs of these ranks.
    fn terms(&self, ranks: &[usize]) -> TractResult<(Vec<String>, String)> {
        let unnamed = |(term, rank): (&String, &usize)| {
            let named = term.chars().filter(|letter| letter.is_alphabetic()).count();
            let is_whole = term.contains("...") || named == *rank;
            let count = rank.checked_sub(named).filter(|_| is_whole);
            count.with_context(|| format!("expected an input of the axes {term}, found {rank}"))
        };
        let counts = self.inputs.iter().zip(ranks).map(unnamed).collect::<TractResult<Vec<_>>>()?;
        let most = counts.iter().copied().max().unwrap_or(0);
        let letters: Vec<char> = (UNNAMED..).take(most).collect();
        let filled = |term: &str, count: usize| {
            term.replacen("...", &letters[most - count..].iter().collect::<String>(), 1)
        };
        let inputs =
            self.inputs.iter().zip(&counts).map(|(term, &count)| filled(term, count)).collect();
        Ok((inputs, filled(&self.output, most)))
    }
}

impl Expansion for Ellipsis {
    fn name(&self) -> StaticName {
        "ForebayEinsum".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs.len())?;
        check_output_arity(outputs, 1)?;
        for input in inputs {
            solver.equals(&input.datum_type, &outputs[0].datum_type)?;
        }
        let shapes: Vec<_> = inputs.iter().map(|input| &input.shape).collect();
        solver.given_all(shapes, move |solver, shapes| {
            let ranks: Vec<usize> = shapes.iter().map(|shape| shape.len()).collect();
            let axes = self.named(&ranks)?;
            solver.equals(&outputs[0].rank, i64::try_from(axes.rank(InOut::Out(0)))?)?;
            for axis in axes.iter_all_axes() {
                let Some(&place) = axis.outputs[0].first() else { continue };
                let sizes = axis.inputs.iter().zip(&shapes);
                let sizes = sizes.flat_map(|(places, shape)| places.iter().map(|&p| &shape[p]));
                let size = sizes.cloned().try_fold(1.to_dim(), TDim::broadcast)?;
                solver.equals(&outputs[0].shape[place], size)?;
            }
            Ok(())
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let shape = |input: &OutletId| TractResult::Ok(model.outlet_fact(*input)?.shape.to_tvec());
        let shapes = inputs.iter().map(shape).collect::<TractResult<Vec<_>>>()?;
        let ranks: Vec<usize> = shapes.iter().map(|shape| shape.len()).collect();
        let operating_dt = model.outlet_fact(inputs[0])?.datum_type;
        let (mut terms, output) = self.terms(&ranks)?;
        let mut inputs: TVec<OutletId> = inputs.into();
        for ((slot, axis), own) in repeated(&terms, &shapes).into_iter().zip(OF_ONE..) {
            let letter = terms[slot].chars().nth(axis).context("expected a letter of each axis")?;
            if terms[slot].chars().nth(1).is_none() {
                // An input without axes is none that tract takes: a sum over one element is that element.
                terms[slot] = terms[slot].replace(letter, &own.to_string());
                continue;
            }
            let name = format!("{prefix}.of-one-{slot}-{axis}");
            inputs[slot] = model.wire_node(name, AxisOp::Rm(axis), &[inputs[slot]])?[0];
            terms[slot] = terms[slot].replacen(letter, "", 1);
        }
        let axes = AxesMapping::from_strs(&terms, &[output])?;
        model.wire_node(prefix, EinSum { axes, operating_dt, q_params: None }, &inputs)
    }
}

/// The axes of one element whose letter has more elements elsewhere, by input and place, the last of each input
/// first. tract takes an axis that an input lacks for one that is repeated, but none of one element.
fn repeated(terms: &[String], shapes: &[TVec<TDim>]) -> Vec<(usize, usize)> {
    let is_longer = |letter: char| {
        let sizes = terms.iter().zip(shapes);
        let mut sizes = sizes.flat_map(|(term, shape)| term.chars().zip(shape.iter()));
        sizes.any(|(other, size)| other == letter && !size.is_one())
    };
    let mut found = Vec::new();
    for (slot, (term, shape)) in terms.iter().zip(shapes).enumerate() {
        let axes = term.chars().zip(shape.iter()).enumerate();
        let of_one = axes.filter(|(_, (letter, size))| size.is_one() && is_longer(*letter));
        found.extend(of_one.map(|(axis, _)| (slot, axis)).collect::<Vec<_>>().into_iter().rev());
    }
    found
}
