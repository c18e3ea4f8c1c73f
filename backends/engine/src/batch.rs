//! Rows of several requests, run as one: joined before the engine, split exactly behind it.

use crate::RunError;
use forebay_protocol::oip::{Data, Tensor};
use std::borrow::Cow;
use std::ops::Range;

/// Requests whose rows stand one below the other.
#[derive(Debug)]
pub struct Joined<'a> {
    /// Inputs of each request in the model's order.
    requests: Vec<Vec<&'a Tensor>>,
    /// Rows of each request.
    rows: Vec<usize>,
}

/// One input of joined requests.
#[derive(Debug)]
pub struct Input<'a> {
    /// The tensor that holds its elements: a request's own where nothing had to be joined.
    pub data: Cow<'a, Data>,
    /// Those of them that belong to it.
    pub elements: Range<usize>,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl<'a> Joined<'a> {
    /// Requests with the inputs of each in the model's order; at least one.
    ///
    /// # Errors
    /// Inputs of one request differ in their number of rows, or requests in the shape of a row.
    pub fn new(requests: Vec<Vec<&'a Tensor>>) -> Result<Self, RunError> {
        let rows = requests.iter().map(|inputs| rows(inputs)).collect::<Result<Vec<_>, _>>()?;
        let fits = |inputs: &Vec<&Tensor>| {
            inputs.iter().zip(&requests[0]).all(|(a, b)| a.shape[1..] == b.shape[1..])
        };
        if !requests.iter().all(fits) {
            let text = "expected requests of one shape in a batch";
            return Err(RunError::Input(text.to_owned()));
        }
        Ok(Self { requests, rows })
    }

    /// Rows of all requests together.
    pub fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Shape of input `index` with so many rows.
    pub fn shape(&self, index: usize, rows: usize) -> Vec<usize> {
        let mut shape = self.requests[0][index].shape.clone();
        shape[0] = rows;
        shape
    }

    /// The rows `range` of input `index`; the last of them is repeated until there are `bucket`.
    ///
    /// # Errors
    /// The requests' datatypes differ.
    pub fn input(
        &self,
        index: usize,
        range: Range<usize>,
        bucket: usize,
    ) -> Result<Input<'a>, RunError> {
        let shape = self.shape(index, bucket);
        let row: usize = shape[1..].iter().product();
        let parts = self.parts(index, range.clone());
        if let [(only, elements)] = parts.as_slice()
            && range.len() == bucket
        {
            // Nothing to join: the engine reads it where it is.
            let (data, elements) = (Cow::Borrowed(&only.data), elements.clone());
            return Ok(Input { data, elements, shape });
        }
        let mut whole: Option<Data> = None;
        let padding = parts.last().map(|(tensor, elements)| {
            let last = elements.end - row..elements.end;
            std::iter::repeat_n((*tensor, last), bucket - range.len())
        });
        for (tensor, elements) in parts.iter().cloned().chain(padding.into_iter().flatten()) {
            let part = tensor.data.slice(elements);
            let part = part.ok_or_else(|| RunError::Input("expected whole rows".to_owned()))?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    if !whole.append(part) {
                        let text = "expected inputs of one datatype in one batch";
                        return Err(RunError::Input(text.to_owned()));
                    }
                }
            }
        }
        let whole = whole.ok_or_else(|| RunError::Input("expected a row or more".to_owned()))?;
        Ok(Input { elements: 0..whole.len(), data: Cow::Owned(whole), shape })
    }

    /// Gives each request its rows of the outputs.
    ///
    /// # Errors
    /// The outputs do not have as many rows as the requests.
    pub fn split(&self, outputs: Vec<Tensor>) -> Result<Vec<Vec<Tensor>>, RunError> {
        if self.rows.len() == 1 {
            return Ok(vec![outputs]);
        }
        let mut start = 0;
        let mut share = |rows: usize| {
            let range = start..start + rows;
            start += rows;
            outputs.iter().map(|output| cut(output, range.clone())).collect()
        };
        self.rows.iter().map(|&rows| share(rows)).collect()
    }

    /// The tensors that hold the rows `range` of input `index`, and the elements of each.
    fn parts(&self, index: usize, range: Range<usize>) -> Vec<(&'a Tensor, Range<usize>)> {
        let row: usize = self.requests[0][index].shape[1..].iter().product();
        let mut first = 0;
        let mut parts = Vec::new();
        for (inputs, &rows) in self.requests.iter().zip(&self.rows) {
            let (from, to) = (range.start.max(first), range.end.min(first + rows));
            if from < to {
                parts.push((inputs[index], (from - first) * row..(to - first) * row));
            }
            first += rows;
        }
        parts
    }
}

/// Joins the outputs of consecutive rows.
///
/// # Errors
/// They differ in more than their number of rows.
pub fn concatenate(parts: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, RunError> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().unwrap_or_default();
    for part in parts {
        for (whole, part) in whole.iter_mut().zip(part) {
            let fits = !whole.shape.is_empty() && whole.shape.get(1..) == part.shape.get(1..);
            if !fits || !whole.data.append(part.data) {
                let name = &whole.name;
                let text = format!("output \"{name}\" differs in shape between rows of a batch");
                return Err(RunError::Engine(text));
            }
            whole.shape[0] += part.shape[0];
        }
    }
    Ok(whole)
}

/// Outputs are cut by the rows of the inputs only if there are as many.
///
/// # Errors
/// An output has more rows, or fewer.
pub fn check_rows(outputs: &[Tensor], rows: usize) -> Result<(), RunError> {
    let other = outputs.iter().find(|output| output.shape.first() != Some(&rows));
    other.map_or(Ok(()), |output| {
        let (name, shape) = (output.name.escape_debug(), &output.shape);
        Err(RunError::Engine(format!("expected {rows} rows of \"{name}\", found {shape:?}")))
    })
}

/// The rows `range` of an output.
///
/// # Errors
/// It does not have so many.
pub fn cut(output: &Tensor, range: Range<usize>) -> Result<Tensor, RunError> {
    let row: usize = output.shape.iter().skip(1).product();
    let data = output.data.slice(range.start * row..range.end * row);
    let (Some(data), false) = (data, output.shape.is_empty()) else {
        let (name, shape) = (&output.name, &output.shape);
        let text = format!("expected {} rows or more of \"{name}\", found {shape:?}", range.end);
        return Err(RunError::Engine(text));
    };
    let mut shape = output.shape.clone();
    shape[0] = range.len();
    Ok(Tensor { name: output.name.clone(), shape, data })
}

/// Rows of one request: the first dimension of all its inputs.
fn rows(inputs: &[&Tensor]) -> Result<usize, RunError> {
    let rows = inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or(0);
    if rows == 0 || inputs.iter().any(|input| input.shape.first() != Some(&rows)) {
        let expected = "expected the same first dimension, of 1 or more, in all inputs";
        return Err(RunError::Input(expected.to_owned()));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn tensor(first: u8, rows: usize) -> Tensor {
        let data = (0..rows * 2).map(|i| first + u8::try_from(i).unwrap()).collect();
        Tensor::new("x", vec![rows, 2], Data::Uint8(data)).unwrap()
    }

    fn bytes(joined: &Joined<'_>, range: Range<usize>, bucket: usize) -> Vec<u8> {
        let input = joined.input(0, range, bucket).unwrap();
        assert_eq!(input.shape, [bucket, 2]);
        input.data.slice(input.elements).unwrap().into_binary().to_vec()
    }

    #[test]
    fn rows_are_taken_across_requests_and_padded_with_the_last() {
        let (a, b) = (tensor(0, 2), tensor(10, 3));
        let joined = Joined::new(vec![vec![&a], vec![&b]]).unwrap();
        assert_eq!(joined.rows(), 5);
        assert_eq!(bytes(&joined, 0..1, 1), [0, 1]);
        assert_eq!(bytes(&joined, 1..4, 3), [2, 3, 10, 11, 12, 13]);
        assert_eq!(bytes(&joined, 4..5, 4), [14, 15, 14, 15, 14, 15, 14, 15]);
        assert_eq!(bytes(&joined, 1..3, 4), [2, 3, 10, 11, 10, 11, 10, 11]);
    }

    #[test]
    fn outputs_are_split_as_the_requests_were_joined() {
        let (a, b) = (tensor(0, 2), tensor(10, 3));
        let joined = Joined::new(vec![vec![&a], vec![&b]]).unwrap();
        let whole = concatenate(vec![vec![tensor(0, 2)], vec![tensor(10, 3)]]).unwrap();
        assert_eq!(joined.split(whole.clone()).unwrap(), [[tensor(0, 2)], [tensor(10, 3)]]);
        let short = vec![cut(&whole[0], 0..4).unwrap()];
        assert!(check_rows(&whole, 5).is_ok() && check_rows(&short, 5).is_err());
        assert!(check_rows(&whole, 4).is_err(), "a row too many");
        assert!(joined.split(short).is_err());
    }

    #[test]
    fn requests_that_do_not_fit_together_are_refused() {
        let (a, mut b) = (tensor(0, 2), tensor(10, 2));
        let two = Joined::new(vec![vec![&a, &tensor(0, 1)]]).err();
        assert!(matches!(two, Some(RunError::Input(_))));
        b.shape = vec![1, 4];
        assert!(matches!(Joined::new(vec![vec![&a], vec![&b]]).err(), Some(RunError::Input(_))));
    }
}
