//! Operations that only put values elsewhere.

use super::array::Array;

/// From one value along each axis to the next.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// A value for each place of a shape; `None` if one has none.
fn each(shape: &[usize], value: impl Fn(&[usize]) -> Option<f64>) -> Option<Vec<f64>> {
    let strides = strides(shape);
    let one = |flat: usize| {
        let place: Vec<_> =
            strides.iter().zip(shape).map(|(step, size)| flat / step % size).collect();
        value(&place)
    };
    (0..shape.iter().product()).map(one).collect()
}

/// The value at a place; `None` if there is no such place.
fn at(x: &Array, place: impl Iterator<Item = usize>) -> Option<f64> {
    let place: Vec<_> = place.collect();
    let is_inside =
        place.len() == x.shape.len() && place.iter().zip(&x.shape).all(|(at, size)| at < size);
    let flat = strides(&x.shape).iter().zip(&place).map(|(step, at)| step * at).sum::<usize>();
    if is_inside { x.values.get(flat).copied() } else { None }
}

pub(super) fn moved(from: usize, to: usize, x: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    each(shape, |place| {
        let mut place = place.to_vec();
        let moved = (to < place.len()).then(|| place.remove(to))?;
        (from <= place.len()).then(|| place.insert(from, moved))?;
        at(x, place.into_iter())
    })
}

pub(super) fn broadcast(x: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    each(shape, |place| {
        at(x, place.iter().zip(&x.shape).map(|(&at, &size)| if size == 1 { 0 } else { at }))
    })
}

pub(super) fn concat(axis: usize, parts: &[&Array], shape: &[usize]) -> Option<Vec<f64>> {
    each(shape, |place| {
        let mut left = *place.get(axis)?;
        for part in parts {
            let size = *part.shape.get(axis)?;
            if left < size {
                let place = place.iter().enumerate();
                return at(part, place.map(|(i, &at)| if i == axis { left } else { at }));
            }
            left -= size;
        }
        None
    })
}

pub(super) fn slice(
    axis: usize,
    [start, step]: [usize; 2],
    x: &Array,
    shape: &[usize],
) -> Option<Vec<f64>> {
    each(shape, |place| {
        let place = place.iter().enumerate();
        at(x, place.map(|(i, &at)| if i == axis { start + at * step } else { at }))
    })
}

pub(super) fn pad(before: &[usize], value: f64, x: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    each(shape, |place| {
        let inner = place.iter().zip(before).map(|(at, before)| at.checked_sub(*before));
        let inner: Option<Vec<_>> = inner.collect();
        Some(inner.and_then(|place| at(x, place.into_iter())).unwrap_or(value))
    })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "places")]
#[allow(clippy::cast_sign_loss, reason = "negative ones are counted from the end first")]
pub(super) fn gather(axis: usize, x: &Array, wanted: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    let (size, rank) = (*x.shape.get(axis)?, wanted.shape.len());
    each(shape, |place| {
        let found = at(wanted, place.get(axis..axis + rank)?.iter().copied())?;
        let found = if found < 0.0 { found + size as f64 } else { found };
        let before = place[..axis].iter().copied();
        let found = (found >= 0.0).then_some(found as usize)?;
        at(x, before.chain([found]).chain(place[axis + rank..].iter().copied()))
    })
}

pub(super) fn repeat(scales: [usize; 2], x: &Array, shape: &[usize]) -> Option<Vec<f64>> {
    each(shape, |place| {
        let &[image, row, column, channel] = place else { return None };
        let [row, column] = [row.checked_div(scales[0])?, column.checked_div(scales[1])?];
        at(x, [image, row, column, channel].into_iter())
    })
}
