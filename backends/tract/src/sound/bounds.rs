//! The maximum and the minimum of two values, neither of which hides NaN; shifts by any number of bits; and
//! divisions of integers that report a divisor of zero.

use super::places::Asked;
use tract_onnx::prelude::tract_ndarray::Zip;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::BinMiniOp;

/// Applies `pick` to all pairs, the second broadcast to the first.
fn in_first<T: Datum + Copy>(
    a: &mut Tensor,
    b: &Tensor,
    pick: impl Fn(T, T) -> T,
) -> TractResult<()> {
    let is_same = a.shape() == b.shape();
    let mut a = a.try_as_plain_ram_mut()?;
    let second = b.try_as_plain_ram()?;
    let values = second.as_slice::<T>()?;
    if let [b] = values {
        a.as_slice_mut::<T>()?.iter_mut().for_each(|a| *a = pick(*a, *b));
    } else if is_same {
        a.as_slice_mut::<T>()?.iter_mut().zip(values).for_each(|(a, b)| *a = pick(*a, *b));
    } else {
        let a = a.to_array_view_mut::<T>()?;
        let b = b.to_plain_array_view::<T>()?;
        Zip::from(a).and_broadcast(b).for_each(|a, b| *a = pick(*a, *b));
    }
    Ok(())
}

fn out_of_place<T: Datum + Copy>(
    c: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    pick: impl Fn(T, T) -> T,
) -> TractResult<()> {
    let (a, b) = (a.to_plain_array_view::<T>()?, b.to_plain_array_view::<T>()?);
    let mut c = c.try_as_plain_ram_mut()?;
    let c = c.to_array_view_mut::<T>()?;
    Zip::from(c).and_broadcast(a).and_broadcast(b).for_each(|c, a, b| *c = pick(*a, *b));
    Ok(())
}

/// One of two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bound {
    Greater,
    Lesser,
}

impl Bound {
    /// The first if it wins or is no number, else the second, which may be none either.
    #[allow(clippy::eq_op, reason = "what is no number differs from itself")]
    pub(super) fn pick<T: PartialOrd + Copy>(&self, a: T, b: T) -> T {
        let wins = match self {
            Self::Greater => a > b,
            Self::Lesser => a < b,
        };
        if wins || a != a { a } else { b }
    }
}

impl BinMiniOp for Bound {
    fn name(&self) -> &'static str {
        match self {
            Self::Greater => "ForebayMax",
            Self::Lesser => "ForebayMin",
        }
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        self.operating_datum_type(a, b)
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        match a.datum_type() {
            DatumType::F32 => in_first::<f32>(a, b, |a, b| self.pick(a, b)),
            DatumType::F16 => in_first::<f16>(a, b, |a, b| self.pick(a, b)),
            DatumType::F64 => in_first::<f64>(a, b, |a, b| self.pick(a, b)),
            other => bail!("expected floating-point numbers, found {other:?}"),
        }
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        match c.datum_type() {
            DatumType::F32 => out_of_place::<f32>(c, a, b, |a, b| self.pick(a, b)),
            DatumType::F16 => out_of_place::<f16>(c, a, b, |a, b| self.pick(a, b)),
            DatumType::F64 => out_of_place::<f64>(c, a, b, |a, b| self.pick(a, b)),
            other => bail!("expected floating-point numbers, found {other:?}"),
        }
    }
}

/// Moves bits; beyond the width of a value nothing of it is left but its sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    Right,
}

/// Integers whose bits can be moved.
trait Bits: Datum + Copy {
    fn moved(self, by: Self, to: &Shift) -> Self;
}

macro_rules! bits {
    ($($int:ty)*) => {$(
        impl Bits for $int {
            fn moved(self, by: Self, to: &Shift) -> Self {
                // A shift that is negative is beyond any width.
                let by = u32::try_from(by).unwrap_or(u32::MAX);
                #[allow(unused_comparisons, reason = "unsigned ones have no sign")]
                let sign = if self < 0 { !0 } else { 0 };
                match to {
                    Shift::Left => self.checked_shl(by).unwrap_or(0),
                    Shift::Right => self.checked_shr(by).unwrap_or(sign),
                }
            }
        }
    )*};
}

bits!(i8 i16 i32 i64 u8 u16 u32 u64);

/// Calls `$function` for the integer type `$datum_type`.
macro_rules! for_integers {
    ($datum_type:expr, $function:ident, $a:expr, $b:expr, $to:expr $(, $c:expr)?) => {
        match $datum_type {
            DatumType::I8 => $function::<i8>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::I16 => $function::<i16>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::I32 => $function::<i32>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::I64 => $function::<i64>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::U8 => $function::<u8>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::U16 => $function::<u16>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::U32 => $function::<u32>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            DatumType::U64 => $function::<u64>($($c,)? $a, $b, |a, b| a.moved(b, $to)),
            other => bail!("expected integers, found {other:?}"),
        }
    };
}

impl BinMiniOp for Shift {
    fn name(&self) -> &'static str {
        match self {
            Self::Left => "ForebayShiftLeft",
            Self::Right => "ForebayShiftRight",
        }
    }

    fn is_commutative(&self) -> bool {
        false
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        self.operating_datum_type(a, b)
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        for_integers!(a.datum_type(), in_first, a, b, self)
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        for_integers!(c.datum_type(), out_of_place, a, b, self, c)
    }
}

/// A division of integers, towards zero, or its rest. tract's ends with a panic where it divides by zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quotient {
    pub(super) is_rest: bool,
    pub(super) asked: Asked,
}

impl Quotient {
    /// # Errors
    /// A divisor is zero.
    fn check(&self, divisors: &Tensor) -> TractResult<()> {
        let wide = divisors.cast_to::<i64>()?;
        let plain = wide.try_as_plain_ram()?;
        if plain.as_slice::<i64>()?.contains(&0) {
            return Err(self.asked.bad("numbers to divide by", &0));
        }
        Ok(())
    }
}

/// Integers that are divided.
trait Divide: Datum + Copy {
    fn divided(self, by: Self, is_rest: bool) -> Self;
}

macro_rules! divide {
    ($($int:ty)*) => {$(
        impl Divide for $int {
            fn divided(self, by: Self, is_rest: bool) -> Self {
                if is_rest { self.wrapping_rem(by) } else { self.wrapping_div(by) }
            }
        }
    )*};
}

divide!(i8 i16 i32 i64 u8 u16 u32 u64);

/// Calls `$function` for the integer type `$datum_type`.
macro_rules! for_divisions {
    ($datum_type:expr, $function:ident, $a:expr, $b:expr, $is_rest:expr $(, $c:expr)?) => {
        match $datum_type {
            DatumType::I8 => $function::<i8>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::I16 => $function::<i16>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::I32 => $function::<i32>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::I64 => $function::<i64>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::U8 => $function::<u8>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::U16 => $function::<u16>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::U32 => $function::<u32>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            DatumType::U64 => $function::<u64>($($c,)? $a, $b, |a, b| a.divided(b, $is_rest)),
            other => bail!("expected integers, found {other:?}"),
        }
    };
}

impl BinMiniOp for Quotient {
    fn name(&self) -> &'static str {
        if self.is_rest { "ForebayRem" } else { "ForebayDiv" }
    }

    fn is_commutative(&self) -> bool {
        false
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        self.operating_datum_type(a, b)
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        self.check(b)?;
        for_divisions!(a.datum_type(), in_first, a, b, self.is_rest)
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        self.check(b)?;
        for_divisions!(c.datum_type(), out_of_place, a, b, self.is_rest, c)
    }
}

/// A power of integers. tract's takes an exponent below zero for one of billions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Power;

/// Integers that are multiplied with themselves.
trait Powers: Datum + Copy {
    fn power(self, exponent: Self) -> Self;
}

macro_rules! powers {
    ($($int:ty)*) => {$(
        impl Powers for $int {
            fn power(self, exponent: Self) -> Self {
                match (u32::try_from(exponent), self) {
                    (Ok(exponent), _) => self.wrapping_pow(exponent),
                    (Err(_), 1) => 1,
                    (Err(_), -1) => if exponent % 2 == 0 { 1 } else { -1 },
                    // A part of one, cut off; or so large that nothing is left of it.
                    (Err(_), _) => 0,
                }
            }
        }
    )*};
}

powers!(i32 i64);

impl BinMiniOp for Power {
    fn name(&self) -> &'static str {
        "ForebayPow"
    }

    fn is_commutative(&self) -> bool {
        false
    }

    fn result_datum_type(&self, a: DatumType, b: DatumType) -> TractResult<DatumType> {
        self.operating_datum_type(a, b)
    }

    fn eval_in_a(&self, a: &mut Tensor, b: &Tensor) -> TractResult<()> {
        match a.datum_type() {
            DatumType::I32 => in_first::<i32>(a, b, i32::power),
            DatumType::I64 => in_first::<i64>(a, b, i64::power),
            other => bail!("expected integers, found {other:?}"),
        }
    }

    fn eval_out_of_place(&self, c: &mut Tensor, a: &Tensor, b: &Tensor) -> TractResult<()> {
        match c.datum_type() {
            DatumType::I32 => out_of_place::<i32>(c, a, b, i32::power),
            DatumType::I64 => out_of_place::<i64>(c, a, b, i64::power),
            other => bail!("expected integers, found {other:?}"),
        }
    }
}
