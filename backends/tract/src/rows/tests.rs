#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use tract_onnx::tract_core::ops::array::{Gather, Slice, TypedConcat};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax};

/// A graph of one input `[rows, 6]`, made by a function that is told the rows.
fn proof(
    make: impl Fn(&mut TypedModel, OutletId, usize) -> TractResult<OutletId>,
) -> Result<(), String> {
    prove(&Made(make), 8).map_err(|mixing| mixing.to_string())
}

struct Made<F>(F);

impl<F> Graphs for Made<F>
where
    F: Fn(&mut TypedModel, OutletId, usize) -> TractResult<OutletId>,
{
    fn typed(&self, rows: usize) -> TractResult<TypedModel> {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([rows, 6]))?;
        let y = self.0(&mut model, x, rows)?;
        model.select_output_outlets(&[y])?;
        Ok(model)
    }

    // There is no file that it was made of.
    fn analysed(&self, _: usize) -> TractResult<InferenceModel> {
        bail!("expected a file")
    }
}

fn constant(model: &mut TypedModel, name: &str, value: Tensor) -> OutletId {
    model.add_const(name, value).unwrap()
}

fn reshape(from: &[usize], to: &[usize]) -> AxisOp {
    let dims = |dims: &[usize]| dims.iter().map(|dim| dim.to_dim()).collect();
    AxisOp::Reshape(0, dims(from), dims(to))
}

fn refused(result: &Result<(), String>, by: &str) {
    assert!(result.as_ref().is_err_and(|why| why.contains(by)), "{by}: {result:?}");
}

#[test]
fn operations_within_a_row_keep_rows_apart() {
    let within = proof(|model, x, _| {
        let w = constant(model, "w", Tensor::zero::<f32>(&[6, 6])?);
        let product = EinSum::new("mk,kn->mn".parse()?, f32::datum_type());
        let y = model.wire_node("product", product, &[x, w])?[0];
        let softmax = Softmax { axes: tvec!(1), ..Softmax::default() };
        let y = model.wire_node("softmax", softmax, &[y])?[0];
        let mean = model.wire_node("sum", Reduce::new(tvec!(1), Reducer::Sum), &[y])?[0];
        Ok(model.wire_node("sub", math::sub(), &[y, mean])?[0])
    });
    assert_eq!(within, Ok(()));
}

#[test]
fn heads_of_attention_are_rows_in_blocks() {
    let attention = proof(|model, x, rows| {
        let y = model.wire_node("split", reshape(&[rows, 6], &[rows, 3, 2]), &[x])?[0];
        let y = model.wire_node("heads", AxisOp::Move(1, 2), &[y])?[0];
        let y = model.wire_node("fold", reshape(&[rows, 2, 3], &[rows * 2, 3]), &[y])?[0];
        let softmax = Softmax { axes: tvec!(1), ..Softmax::default() };
        let y = model.wire_node("softmax", softmax, &[y])?[0];
        Ok(model.wire_node("unfold", reshape(&[rows * 2, 3], &[rows, 6]), &[y])?[0])
    });
    assert_eq!(attention, Ok(()));
}

#[test]
fn whatever_looks_at_other_rows_is_named() {
    refused(
        &proof(|model, x, _| {
            let max = model.wire_node("max", Reduce::new(tvec!(0), Reducer::Max), &[x])?[0];
            Ok(model.wire_node("div", math::div(), &[x, max])?[0])
        }),
        "\"max\" reduces over rows",
    );
    refused(
        &proof(|model, x, _| {
            let turned = model.wire_node("turned", AxisOp::Move(1, 0), &[x])?[0];
            let product = EinSum::new("mk,kn->mn".parse()?, f32::datum_type());
            Ok(model.wire_node("pairs", product, &[x, turned])?[0])
        }),
        "\"pairs\" brings different rows together",
    );
    refused(
        &proof(|model, x, _| Ok(model.wire_node("join", TypedConcat::new(0), &[x, x])?[0])),
        "\"join\" joins or picks along rows",
    );
    refused(
        &proof(|model, x, _| {
            let first = constant(model, "first", tensor1(&[0_i64]));
            Ok(model.wire_node("pick", Gather::new(0), &[x, first])?[0])
        }),
        "\"pick\" picks among rows",
    );
    refused(
        &proof(|model, x, rows| Ok(model.wire_node("most", Slice::new(0, 0, rows - 1), &[x])?[0])),
        "\"most\" gives another number of rows",
    );
    refused(
        &proof(|model, x, rows| {
            let y = model.wire_node("mixed", reshape(&[rows, 6], &[6, rows]), &[x])?[0];
            Ok(model.wire_node("turned", AxisOp::Move(1, 0), &[y])?[0])
        }),
        "\"mixed\" reshapes the rows",
    );
}

#[test]
fn constants_may_not_depend_on_the_row_or_on_the_number_of_rows() {
    let beside = |value: fn(usize, usize) -> f32| {
        proof(move |model, x, rows| {
            let values: Vec<f32> = (0..rows * 6).map(|i| value(i / 6, rows)).collect();
            let value = constant(model, "c", Tensor::from_shape(&[rows, 6], &values)?);
            Ok(model.wire_node("add", math::add(), &[x, value])?[0])
        })
    };
    assert_eq!(beside(|_, _| 7.0), Ok(()));
    refused(&beside(|row, _| if row == 3 { 1.0 } else { 0.0 }), "another one for each row");
    refused(&beside(|_, rows| if rows == ROWS[0] { 1.0 } else { 2.0 }), "number of rows");
    let scalar = proof(|model, x, rows| {
        #[allow(clippy::cast_precision_loss, reason = "few rows")]
        let rows = constant(model, "rows", Tensor::from_shape(&[1, 1], &[rows as f32])?);
        Ok(model.wire_node("div", math::div(), &[x, rows])?[0])
    });
    refused(&scalar, "number of rows");
}

#[test]
fn what_is_decided_by_the_number_of_rows_ends_the_proof() {
    let decided = |is_so: fn(usize) -> bool| {
        proof(move |model, x, rows| {
            let value = tensor2(&[[if is_so(rows) { 2_f32 } else { 3.0 }]]);
            let scale = constant(model, "scale", value);
            Ok(model.wire_node("mul", math::mul(), &[x, scale])?[0])
        })
    };
    assert_eq!(decided(|_| true), Ok(()));
    let by = "has a value that depends on the number of rows";
    for is_so in [
        |rows| rows > 1,
        |rows| rows > 2,
        |rows| rows > 100,
        |rows| rows % 2 == 0,
        |rows| rows == 5,
        |rows| rows == 8,
    ] {
        refused(&decided(is_so), by);
    }
    // No more than eight rows are run.
    assert_eq!(decided(|rows| rows == 9), Ok(()));
}
