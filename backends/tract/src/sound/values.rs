//! Functions of single values, exact at both ends and for NaN.

use forebay_kernels::epilogue::{self, Step};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;

/// A function of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    Sigmoid,
    Tanh,
    Silu,
    Erf,
    /// ln(1 + e^x), which neither overflows nor loses what is small.
    Softplus,
    Celu(f32),
    /// The value itself.
    Kept,
}

// Parameters come from files, which hold no NaN that would matter here.
impl Eq for Function {}

impl Function {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Kept => x,
            Self::Silu => x / (1.0 + (-x).exp()),
            // The kernel's precision is that of the only type that this is asked for.
            #[allow(clippy::cast_possible_truncation, reason = "to that type")]
            Self::Erf => {
                let mut value = [x as f32];
                epilogue::run(&mut value, 1, &[Step::Erf], &[]);
                f64::from(value[0])
            }
            Self::Softplus if x > 0.0 => x + (-x).exp().ln_1p(),
            Self::Softplus => x.exp().ln_1p(),
            Self::Celu(_) if x > 0.0 => x,
            Self::Celu(alpha) => f64::from(alpha) * (x / f64::from(alpha)).exp_m1(),
        }
    }

    /// The same as a step of our kernels.
    fn step(self) -> Option<Step> {
        match self {
            Self::Sigmoid => Some(Step::Sigmoid),
            Self::Tanh => Some(Step::Tanh),
            Self::Silu => Some(Step::Silu),
            Self::Erf => Some(Step::Erf),
            Self::Softplus | Self::Celu(_) | Self::Kept => None,
        }
    }
}

impl ElementWiseMiniOp for Function {
    fn name(&self) -> String {
        format!("Forebay{self:?}")
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    #[allow(clippy::cast_possible_truncation, reason = "to the precision of the output")]
    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        if *self == Self::Kept {
            return Ok(());
        }
        let datum_type = tensor.datum_type();
        let mut plain = tensor.try_as_plain_ram_mut()?;
        if datum_type == f32::datum_type() {
            let values = plain.as_slice_mut::<f32>()?;
            match self.step() {
                Some(_) if values.is_empty() => (),
                Some(step) => epilogue::run(values, values.len(), &[step], &[]),
                None => values.iter_mut().for_each(|x| *x = self.of(f64::from(*x)) as f32),
            }
        } else if datum_type == f16::datum_type() {
            let values = plain.as_slice_mut::<f16>()?;
            values.iter_mut().for_each(|x| *x = f16::from_f64(self.of(x.to_f64())));
        } else if datum_type == f64::datum_type() {
            plain.as_slice_mut::<f64>()?.iter_mut().for_each(|x| *x = self.of(*x));
        } else {
            bail!("expected floating-point numbers, found {datum_type:?}");
        }
        Ok(())
    }
}
