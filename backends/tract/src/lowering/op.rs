//! Our kernels as operations of tract's graph.
//!
//! Sizes may be symbols of the graph. Then they are known at a run only, and all that depends on them
//! is worked out from the tensors that come in.

use forebay_kernels::dense::{self, Convolution, Product};
use forebay_kernels::depthwise::Depthwise;
use forebay_kernels::epilogue::{self, Beside};
use forebay_kernels::packed::Share;
use forebay_kernels::reduce;
use forebay_program::Reduction;
use forebay_program::products::{Pairing, Products};
use forebay_program::steps::{Spread, Step};
use forebay_program::windows::{Geometry, Windows};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// One of our kernels with all that follows it.
#[derive(Debug, Clone)]
pub(super) struct Fused {
    pub(super) kernel: Kernel,
    /// Done to each value of the sum; those that take a tensor take the inputs behind the first.
    pub(super) steps: Vec<Step>,
    /// Of the output, with its channels last.
    pub(super) shape: ShapeFact,
}

#[derive(Debug, Clone)]
pub(super) enum Kernel {
    /// With windows if the size of the images is known at a run only.
    Dense(Arc<Convolution>, Option<Windows>),
    Depthwise(Arc<Depthwise>, Option<Windows>),
    Product(Arc<Product>),
    /// The input as it is, of the same shape as the output.
    Input,
}

impl Fused {
    /// Shares the weights; gives the bytes that the rest takes.
    pub(super) fn share(&mut self, packed: Share<'_>) -> usize {
        let kernel = match &mut self.kernel {
            Kernel::Dense(kernel, _) => {
                let kernel = Arc::make_mut(kernel);
                kernel.share(packed);
                kernel.bytes()
            }
            Kernel::Depthwise(kernel, _) => {
                let kernel = Arc::make_mut(kernel);
                kernel.share(packed);
                kernel.bytes()
            }
            Kernel::Product(kernel) => {
                let kernel = Arc::make_mut(kernel);
                kernel.share(packed);
                kernel.bytes()
            }
            Kernel::Input => 0,
        };
        let step = |step: &Step| match step {
            Step::AddChannel(numbers) | Step::MulChannel(numbers) => {
                size_of_val(numbers.as_slice())
            }
            _ => 0,
        };
        kernel + self.steps.iter().map(step).sum::<usize>()
    }
}

/// The weights that a kernel was made of, in the order in which it has them.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Product(Arc<Product>),
    Convolution(Arc<Convolution>),
}

impl Source {
    /// Of a kernel, if its weights can be had back.
    pub(super) fn of(op: &Fused) -> Option<Self> {
        match &op.kernel {
            Kernel::Product(kernel) => Some(Self::Product(Arc::clone(kernel))),
            Kernel::Dense(kernel, _) => Some(Self::Convolution(Arc::clone(kernel))),
            Kernel::Depthwise(..) | Kernel::Input => None,
        }
    }

    /// Number of weights.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Product(kernel) => kernel.sizes().iter().product(),
            Self::Convolution(kernel) => kernel.count(),
        }
    }

    /// Lines and channels of a product; a convolution has its weights in one order only.
    pub(crate) fn sizes(&self) -> Option<[usize; 2]> {
        match self {
            Self::Product(kernel) => Some(kernel.sizes()),
            Self::Convolution(_) => None,
        }
    }

    pub(crate) fn unpack(&self) -> Vec<f32> {
        match self {
            Self::Product(kernel) => kernel.unpack(),
            Self::Convolution(kernel) => kernel.unpack(),
        }
    }
}

// Weights are the same if they are the same memory.
impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.kernel, &other.kernel) {
            (Kernel::Dense(a, _), Kernel::Dense(b, _)) => Arc::ptr_eq(a, b),
            (Kernel::Depthwise(a, _), Kernel::Depthwise(b, _)) => Arc::ptr_eq(a, b),
            (Kernel::Product(a), Kernel::Product(b)) => Arc::ptr_eq(a, b),
            (Kernel::Input, Kernel::Input) => true,
            _ => false,
        };
        same && self.steps == other.steps && self.shape == other.shape
    }
}

impl Eq for Fused {}

impl Op for Fused {
    fn name(&self) -> StaticName {
        match self.kernel {
            Kernel::Dense(..) => "ForebayConvolution".into(),
            Kernel::Depthwise(..) => "ForebayDepthwise".into(),
            Kernel::Product(_) => "ForebayProduct".into(),
            Kernel::Input => "ForebaySteps".into(),
        }
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Fused {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        if inputs.is_empty() {
            bail!("expected an input");
        }
        let x = inputs.remove(0);
        if let Kernel::Input = self.kernel {
            // In place, if nothing else reads the input.
            let mut output = x.into_tensor();
            let shape: TVec<usize> = output.shape().into();
            let channels = shape.last().copied().unwrap_or(1);
            let tensors = beside(&inputs, &shape)?;
            let mut plain = output.try_as_plain_ram_mut()?;
            epilogue::run(plain.as_slice_mut::<f32>()?, channels, &self.steps, &tensors);
            return Ok(tvec!(output.into_tvalue()));
        }
        let shape = self.shape.eval_to_usize(context.symbols)?;
        let tensors = beside(&inputs, &shape)?;
        let sizes = x.shape();
        let x = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let misfit = "expected images that a window fits in";
        made(&shape, |y| {
            match &self.kernel {
                Kernel::Dense(kernel, windows) => {
                    let kernel = sized(&**kernel, windows.as_ref(), sizes, Convolution::resized);
                    kernel.context(misfit)?.run(x, y, &self.steps, &tensors);
                }
                Kernel::Depthwise(kernel, windows) => {
                    let kernel = sized(&**kernel, windows.as_ref(), sizes, Depthwise::resized);
                    kernel.context(misfit)?.run(x, y, &self.steps, &tensors);
                }
                Kernel::Product(kernel) => kernel.run(x, y, &self.steps, &tensors),
                Kernel::Input => (),
            }
            Ok(())
        })
    }
}

/// The tensors that steps read, each with how its rows go with those of an output of this shape,
/// channels last.
fn beside<'a>(inputs: &'a [TValue], shape: &[usize]) -> TractResult<TVec<Beside<'a>>> {
    let one = |input: &'a TValue| {
        let data = input.try_as_plain_ram()?.as_slice::<f32>()?;
        let is_same_rank = input.rank() == shape.len() && !shape.is_empty();
        let spread =
            is_same_rank.then(|| Spread::of(input.shape(), shape, shape.len() - 1)).flatten();
        Ok(Beside { data, spread: spread.context("expected tensors whose rows go together")? })
    };
    inputs.iter().map(one).collect()
}

/// The kernel for images of these sizes, channels last.
fn sized<'a, K: Clone>(
    kernel: &'a K,
    windows: Option<&Windows>,
    sizes: &[usize],
    resize: fn(&K, Geometry) -> Option<K>,
) -> Option<Cow<'a, K>> {
    match windows {
        Some(windows) => resize(kernel, windows.geometry(sizes)?).map(Cow::Owned),
        None => Some(Cow::Borrowed(kernel)),
    }
}

impl TypedOp for Fused {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(self.shape.clone())))
    }

    as_op!();
}

/// A new tensor of this shape, with what `fill` puts into it.
fn made(
    shape: &[usize],
    fill: impl FnOnce(&mut [f32]) -> TractResult<()>,
) -> TractResult<TVec<TValue>> {
    let mut output = Tensor::zero::<f32>(shape)?;
    fill(output.try_as_plain_ram_mut()?.as_slice_mut()?)?;
    Ok(tvec!(output.into_tvalue()))
}

/// Describes one of the operations below to tract: its name, whether it rounds in another way than tract's
/// own, and the shape of its output.
macro_rules! operation {
    ($op:ty, $name:literal $(, $validation:ident)?; $self:ident, $inputs:pat => $shape:expr) => {
        impl Op for $op {
            fn name(&self) -> StaticName {
                $name.into()
            }

            $(fn validation(&self) -> Validation {
                Validation::$validation
            })?

            op_as_typed_op!();
        }

        impl TypedOp for $op {
            fn output_facts(&$self, $inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
                Ok(tvec!(f32::fact($shape)))
            }

            as_op!();
        }
    };
}

/// A reduction of neighbouring axes, the middle one of three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reduced {
    pub(super) reduction: Reduction,
    /// Those of the input, in the order in which its values lie.
    pub(super) axes: Range<usize>,
    /// Of the output.
    pub(super) shape: ShapeFact,
}

operation!(Reduced, "ForebayReduction", Rounding; self, _ => self.shape.clone());

impl EvalOp for Reduced {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let size = |axes: &[usize]| axes.iter().product::<usize>();
        let axes = x.shape().get(self.axes.clone()).context("expected the axes to reduce")?;
        let (count, inner) = (size(axes), size(&x.shape()[self.axes.end..]));
        let x = x.try_as_plain_ram()?.as_slice()?;
        made(&self.shape.eval_to_usize(context.symbols)?, |y| {
            reduce::reduce(self.reduction, x, y, count, inner);
            Ok(())
        })
    }
}

/// Softmax along the last axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Softmaxed;

operation!(Softmaxed, "ForebaySoftmax", Rounding; self, inputs => inputs[0].shape.clone());

impl EvalOp for Softmaxed {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = args_1!(inputs).into_tensor();
        let count = output.shape().last().copied().unwrap_or(1);
        reduce::softmax(output.try_as_plain_ram_mut()?.as_slice_mut()?, count);
        Ok(tvec!(output.into_tvalue()))
    }
}

/// The greatest of each window of images in channels-last order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MaxPooled {
    pub(super) windows: Windows,
    /// Of the output.
    pub(super) shape: ShapeFact,
}

operation!(MaxPooled, "ForebayMaxPool"; self, _ => self.shape.clone());

impl EvalOp for MaxPooled {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let geometry = self.windows.geometry(x.shape()).context("expected images")?;
        let x = x.try_as_plain_ram()?.as_slice()?;
        made(&self.shape.eval_to_usize(context.symbols)?, |y| {
            reduce::max_pool(&geometry, x, y).context("expected a window that fits")
        })
    }
}

/// Each pixel of images in channels-last order several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) scales: [usize; 2],
    /// Of the output.
    pub(super) shape: ShapeFact,
}

operation!(Repeated, "ForebayRepeat"; self, _ => self.shape.clone());

impl EvalOp for Repeated {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let x = x.try_as_plain_ram()?.as_slice()?;
        let shape = self.shape.eval_to_usize(context.symbols)?;
        let &[_, _, width, channels] = shape.as_slice() else { bail!("expected images") };
        made(&shape, |y| {
            reduce::repeat(self.scales, width / self.scales[1].max(1), channels, x, y);
            Ok(())
        })
    }
}

/// Products of two tensors that are both computed, one for each of several places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paired {
    pub(super) pairing: Pairing,
    /// For these sizes, if they are known before a run.
    pub(super) products: Option<Products>,
    /// Of the output.
    pub(super) shape: ShapeFact,
}

operation!(Paired, "ForebayPaired", Rounding; self, _ => self.shape.clone());

impl EvalOp for Paired {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (a, b) = args_2!(inputs);
        let (x, w) = if self.pairing.slot == 0 { (&a, &b) } else { (&b, &a) };
        let shape = self.shape.eval_to_usize(context.symbols)?;
        let products = match &self.products {
            Some(products) => Cow::Borrowed(products),
            None => {
                let products = self.pairing.products(x.shape(), w.shape(), &shape);
                Cow::Owned(products.context("expected sizes of products")?)
            }
        };
        let (x, w) = (x.try_as_plain_ram()?.as_slice()?, w.try_as_plain_ram()?.as_slice()?);
        made(&shape, |y| {
            for &[from_x, from_w, to] in &products.places {
                dense::multiply(&products.matrices, &x[from_x..], &w[from_w..], &mut y[to..]);
            }
            Ok(())
        })
    }
}

/// Whether the operation looks for the maximum of several values.
pub(crate) fn finds_greatest(op: &dyn TypedOp) -> bool {
    op.is::<MaxPooled>()
        || op.downcast_ref::<Reduced>().is_some_and(|op| op.reduction == Reduction::Max)
}
