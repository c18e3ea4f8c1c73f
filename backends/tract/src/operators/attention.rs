//! `Attention` of the domain `ai.onnx`: scaled products of queries and keys, a softmax, and the values that it
//! weighs.
//!
//! Inputs are [batch, heads, length, size], or [batch, length, heads * size] where the attributes say how many
//! heads there are; keys and values may have fewer heads, each of which several queries share. Earlier keys and
//! values stand before the given ones.

use super::built::Built;
use super::native::{Attributes, Function, Kind, RowRule, bad, native, numbers};
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

const NAME: &str = "Attention";

/// Attributes that are followed; later versions have others.
const KNOWN: [&str; 7] = [
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
    "scale",
    "softcap",
    "softmax_precision",
];

#[derive(Debug)]
struct Attention {
    heads: Option<usize>,
    key_heads: Option<usize>,
    scale: Option<f32>,
    softcap: f32,
    is_causal: bool,
    /// Of the fourth output: the products, capped, with the mask, or the softmax.
    mode: i64,
    /// Places of the mask, of earlier keys and values, and of the lengths of keys.
    mask: Option<usize>,
    past: Option<(usize, usize)>,
    lengths: Option<usize>,
    /// Which of the four outputs there are.
    outputs: [bool; 4],
}

pub(super) fn build(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    if let Some(other) = node.attribute.iter().find(|a| !KNOWN.contains(&a.name.as_str())) {
        bail!("expected an attribute of attention that is known here, found {}", other.name);
    }
    let count = |name: &str| attributes.int(name).and_then(|n| usize::try_from(n).ok());
    let places: Vec<Option<usize>> = optional_inputs(node).take(7).collect();
    let outputs = [0, 1, 2, 3].map(|slot| node.output.get(slot).is_some_and(|o| !o.is_empty()));
    let op = Attention {
        heads: count("q_num_heads").filter(|&heads| heads > 0),
        key_heads: count("kv_num_heads").filter(|&heads| heads > 0),
        scale: attributes.float("scale"),
        softcap: attributes.float("softcap").unwrap_or(0.0),
        is_causal: attributes.int("is_causal") == Some(1),
        mode: attributes.int("qk_matmul_output_mode").unwrap_or(0),
        mask: places[3],
        past: places[4].zip(places[5]),
        lengths: places[6],
        outputs,
    };
    ensure!(outputs[0], "expected an output of attention");
    native(op, outputs.iter().filter(|&&is_there| is_there).count())
}

/// A tensor as [batch, heads, length, size].
struct Heads {
    shape: [usize; 4],
    data: Vec<f32>,
}

impl Heads {
    fn of(tensor: &Tensor, heads: Option<usize>) -> TractResult<Self> {
        let data = numbers::<f32>(tensor)?;
        match (*tensor.shape()).as_ref() {
            &[batch, heads, length, size] => Ok(Self { shape: [batch, heads, length, size], data }),
            &[batch, length, wide] => {
                let heads = heads.filter(|&heads| wide.is_multiple_of(heads));
                let heads = heads.context("expected q_num_heads and kv_num_heads that fit")?;
                let size = wide / heads;
                let mut turned = Vec::with_capacity(data.len());
                for b in 0..batch {
                    for head in 0..heads {
                        for place in 0..length {
                            let start = ((b * length + place) * heads + head) * size;
                            turned.extend_from_slice(&data[start..start + size]);
                        }
                    }
                }
                Ok(Self { shape: [batch, heads, length, size], data: turned })
            }
            other => bail!("expected three or four axes, found {}", other.len()),
        }
    }

    /// Behind earlier ones.
    fn after(self, past: &Self) -> TractResult<Self> {
        let [batch, heads, before, size] = past.shape;
        let [_, _, length, _] = self.shape;
        if [batch, heads, size] != [self.shape[0], self.shape[1], self.shape[3]] {
            let expected = format!("earlier keys and values that fit {:?}", self.shape);
            return Err(bad(NAME, expected, &format!("{:?}", past.shape)));
        }
        let mut data = Vec::with_capacity(past.data.len() + self.data.len());
        for row in 0..batch * heads {
            data.extend_from_slice(&past.data[row * before * size..(row + 1) * before * size]);
            data.extend_from_slice(&self.data[row * length * size..(row + 1) * length * size]);
        }
        Ok(Self { shape: [batch, heads, before + length, size], data })
    }

    fn line(&self, batch: usize, head: usize, place: usize) -> &[f32] {
        let [_, heads, length, size] = self.shape;
        let start = ((batch * heads + head) * length + place) * size;
        &self.data[start..start + size]
    }
}

/// The mask that is added to scores, and its place for each of them.
struct Mask {
    data: Vec<f32>,
    shape: [usize; 4],
}

impl Mask {
    fn of(tensor: &Tensor, wanted: [usize; 4]) -> TractResult<Self> {
        let mut data = numbers::<f32>(tensor)?;
        if tensor.datum_type() == bool::datum_type() {
            data.iter_mut().for_each(|x| *x = if *x == 0.0 { f32::NEG_INFINITY } else { 0.0 });
        }
        let given = tensor.shape();
        let mut shape = [1; 4];
        let fits = given.len() <= 4;
        if fits {
            shape[4 - given.len()..].copy_from_slice(given);
        }
        // Keys beyond the mask are not seen.
        let is_like = |(axis, (&own, &wanted)): (usize, (&usize, &usize))| {
            own == 1 || own == wanted || (axis == 3 && own < wanted)
        };
        if !fits || !shape.iter().zip(&wanted).enumerate().all(is_like) {
            return Err(bad(NAME, format!("a mask within {wanted:?}"), &format!("{given:?}")));
        }
        Ok(Self { data, shape })
    }

    fn at(&self, places: [usize; 4]) -> f32 {
        let mut index = 0;
        for (axis, (&size, place)) in self.shape.iter().zip(places).enumerate() {
            if axis == 3 && size > 1 && place >= size {
                return f32::NEG_INFINITY;
            }
            index = index * size + if size == 1 { 0 } else { place };
        }
        self.data[index]
    }
}

fn softmax(scores: &mut [f32]) {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if greatest == f32::NEG_INFINITY {
        // Nothing may be seen.
        scores.fill(0.0);
        return;
    }
    scores.iter_mut().for_each(|score| *score = (*score - greatest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

impl Attention {
    /// The result [batch, heads, length, size], and the scores that are asked for.
    fn attend(&self, inputs: &[&Tensor]) -> TractResult<(Heads, Heads, Heads, Vec<f32>)> {
        let q = Heads::of(inputs[0], self.heads)?;
        let (mut k, mut v) =
            (Heads::of(inputs[1], self.key_heads)?, Heads::of(inputs[2], self.key_heads)?);
        let mut before = 0;
        if let Some((keys, values)) = self.past {
            let past = Heads::of(inputs[keys], None)?;
            before = past.shape[2];
            k = k.after(&past)?;
            v = v.after(&Heads::of(inputs[values], None)?)?;
        }
        let [batch, heads, length, size] = q.shape;
        let [_, shared, keys, _] = k.shape;
        if k.shape[0] != batch
            || k.shape[3] != size
            || v.shape[..3] != k.shape[..3]
            || shared == 0
            || !heads.is_multiple_of(shared)
        {
            let expected = format!("keys and values that fit queries of {:?}", q.shape);
            return Err(bad(NAME, expected, &format!("{:?} and {:?}", k.shape, v.shape)));
        }
        let wanted = [batch, heads, length, keys];
        let mask = self.mask.map(|place| Mask::of(inputs[place], wanted)).transpose()?;
        let lengths = self.lengths.map(|place| numbers::<i64>(inputs[place])).transpose()?;
        if lengths.as_ref().is_some_and(|lengths| lengths.len() != batch) {
            return Err(bad(NAME, format!("{batch} lengths of keys"), &"others"));
        }
        #[allow(clippy::cast_precision_loss, reason = "sizes are small")]
        let scale = self.scale.unwrap_or_else(|| 1.0 / (size as f32).sqrt());
        let wide = v.shape[3];
        let mut y = Heads { shape: [batch, heads, length, wide], data: Vec::new() };
        let mut told = Vec::new();
        let mut scores = vec![0.0; keys];
        for b in 0..batch {
            let seen = lengths.as_ref().map_or(i64::MAX, |lengths| lengths[b]);
            // Where lengths are given, the last query stands at the last key that is seen.
            let offset = match lengths {
                Some(_) => seen - i64::try_from(length)?,
                None => i64::try_from(before)?,
            };
            for head in 0..heads {
                let group = head / (heads / shared);
                for place in 0..length {
                    let query = q.line(b, head, place);
                    for (key, score) in scores.iter_mut().enumerate() {
                        let pairs = query.iter().zip(k.line(b, group, key));
                        *score = scale * pairs.map(|(a, b)| a * b).sum::<f32>();
                    }
                    if self.outputs[3] && self.mode == 0 {
                        told.extend_from_slice(&scores);
                    }
                    if self.softcap > 0.0 {
                        let cap = self.softcap;
                        scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
                    }
                    if self.outputs[3] && self.mode == 1 {
                        told.extend_from_slice(&scores);
                    }
                    for (key, score) in scores.iter_mut().enumerate() {
                        let at = i64::try_from(key)?;
                        let is_later = self.is_causal && at > i64::try_from(place)? + offset;
                        if is_later || at >= seen {
                            *score = f32::NEG_INFINITY;
                        } else if let Some(mask) = &mask {
                            *score += mask.at([b, head, place, key]);
                        }
                    }
                    if self.outputs[3] && self.mode == 2 {
                        told.extend_from_slice(&scores);
                    }
                    softmax(&mut scores);
                    if self.outputs[3] && self.mode == 3 {
                        told.extend_from_slice(&scores);
                    }
                    let start = y.data.len();
                    y.data.resize(start + wide, 0.0);
                    for (key, &score) in scores.iter().enumerate().filter(|(_, s)| **s != 0.0) {
                        let to = &mut y.data[start..];
                        to.iter_mut().zip(v.line(b, group, key)).for_each(|(y, v)| *y += score * v);
                    }
                }
            }
        }
        Ok((y, k, v, told))
    }

    /// Sizes of queries, keys and values, as four axes.
    fn sizes(&self, inputs: &[Kind]) -> TractResult<[[TDim; 4]; 3]> {
        let of = |kind: &Kind, heads: Option<usize>| -> TractResult<[TDim; 4]> {
            Ok(match kind.shape.as_slice() {
                [b, h, l, s] => [b.clone(), h.clone(), l.clone(), s.clone()],
                [b, l, wide] => {
                    let heads = heads.context("expected q_num_heads and kv_num_heads")?;
                    [b.clone(), heads.to_dim(), l.clone(), wide.clone() / heads]
                }
                other => bail!("expected three or four axes, found {}", other.len()),
            })
        };
        ensure!(inputs.len() > 2, "expected queries, keys and values");
        let q = of(&inputs[0], self.heads)?;
        let (mut k, mut v) = (of(&inputs[1], self.key_heads)?, of(&inputs[2], self.key_heads)?);
        if let Some((keys, values)) = self.past {
            k[2] = k[2].clone() + of(&inputs[keys], None)?[2].clone();
            v[2] = v[2].clone() + of(&inputs[values], None)?[2].clone();
        }
        Ok([q, k, v])
    }
}

impl Function for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let [q, k, v] = self.sizes(inputs)?;
        let kind = inputs[0].datum_type;
        let [b, h, l, _] = q;
        let y = if inputs[0].shape.len() == 3 {
            Kind::new(kind, [b.clone(), l.clone(), h.clone() * &v[3]])
        } else {
            Kind::new(kind, [b.clone(), h.clone(), l.clone(), v[3].clone()])
        };
        let scores = Kind::new(kind, [b, h, l, k[2].clone()]);
        let all = [y, Kind::new(kind, k), Kind::new(inputs[2].datum_type, v), scores];
        let there = all.into_iter().zip(self.outputs).filter(|(_, is_there)| *is_there);
        Ok(there.map(|(kind, _)| kind).collect())
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let (y, k, v, scores) = self.attend(inputs)?;
        let kind = inputs[0].datum_type();
        let tensor = |heads: &Heads| Tensor::from_shape(&heads.shape, &heads.data);
        let [batch, heads, length, wide] = y.shape;
        let result = if inputs[0].rank() == 3 {
            let mut turned = Vec::with_capacity(y.data.len());
            for b in 0..batch {
                for place in 0..length {
                    (0..heads).for_each(|head| turned.extend_from_slice(y.line(b, head, place)));
                }
            }
            Tensor::from_shape(&[batch, length, heads * wide], &turned)?
        } else {
            tensor(&y)?
        };
        let mut made = tvec!(result);
        if self.outputs[1] {
            made.push(tensor(&k)?);
        }
        if self.outputs[2] {
            made.push(tensor(&v)?);
        }
        if self.outputs[3] {
            made.push(Tensor::from_shape(&[batch, heads, length, k.shape[2]], &scores)?);
        }
        made.into_iter().map(|tensor| Ok(tensor.cast_to_dt(kind)?.into_owned())).collect()
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }
}
