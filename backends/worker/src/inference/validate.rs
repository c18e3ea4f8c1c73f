//! Checks that the tensors fit the model. Every refusal names the tensor, the expected and the found value,
//! so that the author of the client need not guess.

use crate::refusal::Refusal;
use crate::repository::version::Version;
use bytes::Bytes;
use forebay_engine::Model;
use forebay_protocol::oip::{
    Data, InferRequest, Tensor, TensorMetadata, can_classify, element_count,
};

/// Checks names, datatypes, shapes and values of a request.
pub(crate) fn request(
    request: &InferRequest,
    model: &dyn Model,
    version: &Version,
) -> Result<(), Refusal> {
    for (index, input) in request.inputs.iter().enumerate() {
        if request.inputs[..index].iter().any(|other| other.name == input.name) {
            return Err(Refusal::input(format!(
                "expected input {} once, found twice",
                quoted(&input.name)
            )));
        }
        let Some(wanted) = model.inputs().iter().find(|wanted| wanted.name == input.name) else {
            let names = names(model.inputs());
            let text = format!("expected inputs {names}, found {}", quoted(&input.name));
            return Err(Refusal::input(text));
        };
        check_input(input, wanted, model)?;
        if let Some(index) = input.data.first_non_finite()
            && !version.config.allow_non_finite
        {
            let name = quoted(&input.name);
            let text = format!(
                "input {name}: expected finite numbers, found NaN or an infinity at element {index}"
            );
            return Err(Refusal::input(text));
        }
    }
    for wanted in model.inputs() {
        if !request.inputs.iter().any(|input| input.name == wanted.name) {
            return Err(Refusal::input(format!(
                "expected inputs {}, found no {}",
                names(model.inputs()),
                quoted(&wanted.name)
            )));
        }
    }
    check_outputs(request, model)
}

/// The tensor of a raw request: the body is the one input's data, with a batch of 1.
pub(crate) fn raw_request(model: &dyn Model, body: &Bytes) -> Result<InferRequest, Refusal> {
    let [input] = model.inputs() else {
        let found = model.inputs().len();
        let text =
            format!("expected a model with one input for a raw request, found {found} inputs");
        return Err(Refusal::input(text));
    };
    let mut shape: Vec<i64> = input.shape.clone();
    if let (Some(_), Some(batch)) = (model.max_batch(), shape.first_mut()) {
        *batch = 1;
    }
    // One open dimension follows from the length.
    let known: Vec<_> = shape.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
    let row = element_count(&known).unwrap_or(0).saturating_mul(input.datatype.size().unwrap_or(0));
    let mut open = shape.iter_mut().filter(|dim| **dim == -1);
    if let (Some(dim), None, true) = (open.next(), open.next(), row > 0) {
        *dim = i64::try_from(body.len() / row).unwrap_or(i64::MAX);
    }
    let shape = shape.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| {
        let shape = &input.shape;
        Refusal::input(format!("expected a shape that follows from the body, found {shape:?}"))
    })?;
    let tensor = element_count(&shape)
        .ok_or_else(|| Refusal::input(format!("expected a smaller shape, found {shape:?}")))
        .and_then(|count| {
            Data::from_shared(input.datatype, count, body.clone())
                .and_then(|data| Tensor::new(&input.name, shape, data))
                .map_err(|problem| {
                    Refusal::input(format!("input {}: {problem}", quoted(&input.name)))
                })
        })?;
    Ok(InferRequest { inputs: vec![tensor], ..InferRequest::default() })
}

fn check_input(input: &Tensor, wanted: &TensorMetadata, model: &dyn Model) -> Result<(), Refusal> {
    let name = quoted(&input.name);
    let found = input.data.datatype();
    if found != wanted.datatype {
        let wanted = wanted.datatype;
        return Err(Refusal::input(format!(
            "input {name}: expected datatype {wanted}, found {found}"
        )));
    }
    // Nothing of a row may be there, as of an empty cache; rows there are.
    let has_rows = model.max_batch().is_none() || input.shape.first() != Some(&0);
    let fits = |(&dim, &wanted): (&usize, &i64)| wanted == -1 || usize::try_from(wanted) == Ok(dim);
    let mut dims = input.shape.iter().zip(&wanted.shape);
    if input.shape.len() != wanted.shape.len() || !has_rows || !dims.all(fits) {
        let (wanted, found) = (&wanted.shape, &input.shape);
        return Err(Refusal::input(format!(
            "input {name}: expected shape {wanted:?}, found {found:?}"
        )));
    }
    if let (Some(most), Some(&rows)) = (model.max_batch(), input.shape.first())
        && rows > most
    {
        return Err(Refusal::input(format!(
            "input {name}: expected at most {most} rows, found {rows}"
        )));
    }
    Ok(())
}

fn check_outputs(request: &InferRequest, model: &dyn Model) -> Result<(), Refusal> {
    for (index, output) in request.outputs.iter().enumerate() {
        let known = model.outputs().iter().find(|known| known.name == output.name);
        let known = known.ok_or_else(|| {
            let names = names(model.outputs());
            Refusal::input(format!("expected outputs {names}, found {}", quoted(&output.name)))
        })?;
        if request.outputs[..index].iter().any(|other| other.name == output.name) {
            let name = quoted(&output.name);
            return Err(Refusal::input(format!("expected output {name} once, found twice")));
        }
        request.wants_binary(&output.name)?;
        let datatype = known.datatype;
        if request.classes(&output.name)?.is_some() && !can_classify(datatype) {
            let name = quoted(&output.name);
            return Err(Refusal::input(format!(
                "expected an output of numbers for \"classification\", found {name} of {datatype}"
            )));
        }
    }
    Ok(())
}

fn quoted(name: &str) -> String {
    /// A name longer than this is the client's joke, not ours to repeat.
    const MAX_QUOTED: usize = 200;
    let short: String = name.chars().take(MAX_QUOTED).collect();
    format!("\"{}\"", short.escape_debug())
}

fn names(tensors: &[TensorMetadata]) -> String {
    tensors.iter().map(|tensor| quoted(&tensor.name)).collect::<Vec<_>>().join(", ")
}
