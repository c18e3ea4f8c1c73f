//! Requests of several rows, taken apart and put together.
//!
//! Where the rows of a model are independent, the answer to a batch is the answers to its rows. So of a batch
//! only those rows need to be computed that are not known, and what is kept of a batch serves every other
//! batch that has one of its rows. Taking apart and putting together copies elements and computes nothing, so
//! that an answer is the same to the bit.

use forebay_protocol::oip::{InferRequest, InferResponse, Tensor};

/// Number of rows of a request: the first dimension, which all inputs must share. `None`: they do not, or
/// there is none.
pub fn count(request: &InferRequest) -> Option<usize> {
    let rows = *request.inputs.first()?.shape.first()?;
    let share = request.inputs.iter().all(|input| input.shape.first() == Some(&rows));
    (share && rows > 0).then_some(rows)
}

/// The request for these rows alone, in this order.
pub fn request_for(request: &InferRequest, rows: &[usize]) -> Option<InferRequest> {
    let inputs = request.inputs.iter().map(|input| gather(input, rows)).collect::<Option<_>>()?;
    let (id, parameters) = (request.id.clone(), request.parameters.clone());
    Some(InferRequest { id, parameters, inputs, outputs: request.outputs.clone() })
}

/// The answers to the single rows; `None` if an output has another number of rows.
pub fn split(response: &InferResponse, rows: usize) -> Option<Vec<InferResponse>> {
    let has_rows = |output: &Tensor| output.shape.first() == Some(&rows);
    if rows == 0 || !response.outputs.iter().all(has_rows) {
        return None;
    }
    let row = |row: usize| {
        let outputs = response.outputs.iter().map(|output| gather(output, &[row]));
        Some(InferResponse {
            model_name: response.model_name.clone(),
            model_version: response.model_version.clone(),
            id: None,
            parameters: response.parameters.clone(),
            outputs: outputs.collect::<Option<_>>()?,
        })
    };
    (0..rows).map(row).collect()
}

/// The answer to a batch, from the answers to its rows. `None` if they do not fit together.
pub fn join(rows: &[&InferResponse]) -> Option<InferResponse> {
    let (first, rest) = rows.split_first()?;
    let mut joined = InferResponse { id: None, ..(*first).clone() };
    for row in rest {
        let is_alike = row.model_name == first.model_name
            && row.model_version == first.model_version
            && row.parameters == first.parameters
            && row.outputs.len() == first.outputs.len();
        if !is_alike {
            return None;
        }
        for (output, more) in joined.outputs.iter_mut().zip(&row.outputs) {
            let is_alike = output.name == more.name && output.shape.get(1..) == more.shape.get(1..);
            if !is_alike || !output.data.append(more.data.clone()) {
                return None;
            }
            *output.shape.first_mut()? += more.shape.first()?;
        }
    }
    Some(joined)
}

/// Rows of a tensor.
fn gather(tensor: &Tensor, rows: &[usize]) -> Option<Tensor> {
    let length = tensor.shape.get(1..)?.iter().product::<usize>();
    let (&first, rest) = rows.split_first()?;
    let row = |row: usize| tensor.data.slice(row * length..(row + 1) * length);
    let mut data = row(first)?;
    for &next in rest {
        if !data.append(row(next)?) {
            return None;
        }
    }
    let mut shape = tensor.shape.clone();
    *shape.first_mut()? = rows.len();
    Tensor::new(tensor.name.clone(), shape, data).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use forebay_protocol::oip::Data;

    fn tensor(name: &str, shape: &[usize], data: Data) -> Tensor {
        Tensor::new(name, shape.to_vec(), data).unwrap()
    }

    fn request(inputs: Vec<Tensor>) -> InferRequest {
        InferRequest { inputs, ..InferRequest::default() }
    }

    fn batch() -> InferResponse {
        InferResponse {
            model_name: "m".to_owned(),
            outputs: vec![
                tensor(
                    "y",
                    &[3, 2],
                    Data::Fp32(vec![1.0, -0.0, f32::INFINITY, 4.0, 5.0, 6.0].into()),
                ),
                tensor("z", &[3], Data::Bytes(["a", "", "ccc"].into_iter().collect())),
            ],
            ..InferResponse::default()
        }
    }

    #[test]
    fn a_batch_is_its_rows_in_any_order_and_number() {
        let rows = split(&batch(), 3).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            rows[1].outputs[0],
            tensor("y", &[1, 2], Data::Fp32(vec![f32::INFINITY, 4.0].into()))
        );
        assert_eq!(join(&rows.iter().collect::<Vec<_>>()).unwrap(), batch());
        let turned = join(&[&rows[2], &rows[0], &rows[2]]).unwrap();
        assert_eq!(turned.outputs[1].data, Data::Bytes(["ccc", "a", "ccc"].into_iter().collect()));
        assert_eq!(turned.outputs[0].shape, [3, 2]);
    }

    #[test]
    fn a_request_for_some_rows_has_those_of_every_input() {
        let whole = request(vec![
            tensor("a", &[2, 2], Data::Int64(vec![1, 2, 3, 4].into())),
            tensor("b", &[2], Data::Bool(vec![true, false])),
        ]);
        assert_eq!(count(&whole), Some(2));
        let second = request_for(&whole, &[1]).unwrap();
        assert_eq!(second.inputs[0], tensor("a", &[1, 2], Data::Int64(vec![3, 4].into())));
        assert_eq!(second.inputs[1], tensor("b", &[1], Data::Bool(vec![false])));
        assert_eq!(request_for(&whole, &[0, 1]), Some(whole.clone()));
        assert_eq!(request_for(&whole, &[2]), None);
        assert_eq!(request_for(&whole, &[]), None);
    }

    #[test]
    fn what_has_no_common_rows_is_not_taken_apart() {
        let scalar = tensor("s", &[], Data::Int32(vec![1].into()));
        assert_eq!(count(&request(vec![scalar])), None);
        assert_eq!(count(&request(vec![])), None);
        let (two, three) = (
            tensor("a", &[2], Data::Int32(vec![1, 2].into())),
            tensor("b", &[3], Data::Int32(vec![1, 2, 3].into())),
        );
        assert_eq!(count(&request(vec![two, three])), None);
        assert_eq!(count(&request(vec![tensor("a", &[0, 2], Data::Int32(vec![].into()))])), None);
        assert!(split(&batch(), 2).is_none());
        let mut other = batch();
        other.model_version = Some("2".to_owned());
        assert!(join(&[&batch(), &other]).is_none(), "of two versions");
        let mut other = batch();
        other.outputs.pop();
        assert!(join(&[&batch(), &other]).is_none());
        assert!(join(&[]).is_none());
    }
}
