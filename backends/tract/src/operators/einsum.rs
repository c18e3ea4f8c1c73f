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
    /// The equation with a letter for each axis, for inputs of these ranks.
    fn named(&self, ranks: &[usize]) -> TractResult<AxesMapping> {
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
        let inputs: Vec<String> =
            self.inputs.iter().zip(&counts).map(|(term, &count)| filled(term, count)).collect();
        format!("{}->{}", inputs.join(","), filled(&self.output, most)).parse()
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
        let rank = |input: &OutletId| model.outlet_fact(*input).map(TypedFact::rank);
        let ranks = inputs.iter().map(rank).collect::<TractResult<Vec<_>>>()?;
        let operating_dt = model.outlet_fact(inputs[0])?.datum_type;
        let op = EinSum { axes: self.named(&ranks)?, operating_dt, q_params: None };
        model.wire_node(prefix, op, inputs)
    }
}
