//! From texts to embeddings: tokens, the model's inputs, and one vector out of its outputs.
//!
//! An encoder takes tokens and gives a vector for each of them; clients want one for a text. The steps
//! between differ from model to model, and a mistake in them is silent: so `model.toml` states them, and a
//! statement that does not fit the model keeps it from being served.
//!
//! Texts are padded to a few lengths, so that few plans are compiled and texts of similar length can share a
//! batch. The attention mask makes padding invisible to the model; a model without a mask gets each text at
//! its own length.

use crate::config::model::{EmbeddingConfig, Pooling};
use crate::refusal::Refusal;
use forebay_engine::Model;
use forebay_protocol::Reason;
use forebay_protocol::oip::{Data, Datatype, InferRequest, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{Tokenizer, TruncationParams};

/// Shortest length that texts are padded to; the others are its doublings, up to the model's own.
const MIN_LENGTH: usize = 16;
/// A text with more bytes for each allowed token is not even tokenized: no real text has so many.
const BYTES_A_TOKEN: usize = 256;

/// Turns texts into a model's inputs, and its outputs into embeddings.
#[derive(Debug)]
pub(crate) struct Embedder {
    config: EmbeddingConfig,
    tokenizer: Tokenizer,
    /// Of the tokenizer's file.
    pub(crate) digest: blake3::Hash,
    /// Tokens that there are.
    vocabulary: usize,
    inputs: Vec<Role>,
    output: String,
    /// Numbers of its vectors, if the model says.
    size: Option<usize>,
}

/// The role of a model's input.
#[derive(Debug)]
struct Role {
    name: String,
    is_long: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tokens,
    Mask,
    Types,
}

/// Inputs by the names that exporters give them.
const KINDS: [(&str, Kind); 3] =
    [("input_ids", Kind::Tokens), ("attention_mask", Kind::Mask), ("token_type_ids", Kind::Types)];

impl Embedder {
    /// # Errors
    /// In words: the tokenizer can't be read, or what the configuration says does not fit the model.
    pub(crate) fn new(
        config: &EmbeddingConfig,
        tokenizer: &[u8],
        model: &dyn Model,
    ) -> Result<Self, String> {
        let digest = blake3::hash(tokenizer);
        let tokenizer = read(config, tokenizer)
            .map_err(|error| format!("tokenizer {}: {error}", config.tokenizer))?;
        let inputs = model.inputs().iter().map(|input| {
            let known = KINDS.iter().find(|(name, _)| *name == input.name);
            let is_number = matches!(input.datatype, Datatype::Int64 | Datatype::Int32);
            let Some((_, kind)) = known.filter(|_| is_number && input.shape.len() == 2) else {
                let names = KINDS.map(|(name, _)| name).join(", ");
                let (name, shape) = (&input.name, &input.shape);
                return Err(format!(
                    "expected inputs of {names} as whole numbers of two dimensions for an \
                     embedding, found \"{name}\" of {} {shape:?}",
                    input.datatype
                ));
            };
            let is_long = input.datatype == Datatype::Int64;
            Ok(Role { name: input.name.clone(), is_long, kind: *kind })
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        if !inputs.iter().any(|input| input.kind == Kind::Tokens) {
            return Err("expected an input input_ids for an embedding, found none".to_owned());
        }
        let wanted = config.output.as_deref();
        let mut outputs = model.outputs().iter();
        let output = outputs.find(|output| wanted.is_none_or(|wanted| output.name == wanted));
        let output = output.ok_or_else(|| {
            format!("expected an output \"{}\" to embed with", wanted.unwrap_or_default())
        })?;
        let rank = if config.pooling == Pooling::None { 2 } else { 3 };
        if output.shape.len() != rank || output.datatype != Datatype::Fp32 {
            let (name, datatype, shape) = (&output.name, output.datatype, &output.shape);
            return Err(format!(
                "expected output \"{name}\" of FP32 in {rank} dimensions for this pooling, found \
                 {datatype} {shape:?}"
            ));
        }
        let vocabulary = tokenizer.get_vocab_size(true);
        let size = output.shape.last().and_then(|&size| usize::try_from(size).ok());
        if let (Some(size), Some(found)) = (size, config.min_dimensions)
            && found > size
        {
            return Err(format!("expected min_dimensions of at most {size}, found {found}"));
        }
        let (config, output) = (config.clone(), output.name.clone());
        Ok(Self { config, tokenizer, digest, vocabulary, inputs, output, size })
    }

    /// Each length that texts are padded to, to be warmed up; none if there is no mask.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        let lengths = std::iter::successors(Some(MIN_LENGTH), |length| Some(2 * length));
        let most = self.config.max_tokens;
        let below = lengths.take_while(|&length| length < most);
        if self.has_mask() { below.chain([most]).collect() } else { Vec::new() }
    }

    /// A text's tokens. Takes CPU time.
    ///
    /// # Errors
    /// It has more than the model may be given.
    pub(crate) fn tokens(&self, text: &str) -> Result<Vec<u32>, Refusal> {
        let most = self.config.max_tokens;
        let mut text = text;
        if text.len() > most * BYTES_A_TOKEN {
            if !self.config.truncate {
                let found = text.len();
                let text = format!("expected at most {most} tokens, found a text of {found} bytes");
                return Err(Refusal::input(text));
            }
            text = &text[..text.floor_char_boundary(most * BYTES_A_TOKEN)];
        }
        let encode = || self.tokenizer.encode_fast(text, true);
        let encoded = catch_unwind(AssertUnwindSafe(encode)).map_err(|_| "it panicked".into());
        let encoded = encoded.and_then(|encoded| encoded).map_err(|error| {
            Refusal::new(Reason::InferenceFailed, format!("the tokenizer failed: {error}"))
        })?;
        self.checked(encoded.get_ids().to_vec())
    }

    /// Tokens that the client has made itself, or those of a text.
    ///
    /// # Errors
    /// There are none, too many, or some that the tokenizer does not know.
    pub(crate) fn checked(&self, mut tokens: Vec<u32>) -> Result<Vec<u32>, Refusal> {
        let (most, found) = (self.config.max_tokens, tokens.len());
        if found > most && !self.config.truncate {
            return Err(Refusal::input(format!("expected at most {most} tokens, found {found}")));
        }
        tokens.truncate(most);
        if tokens.is_empty() {
            return Err(Refusal::input("expected at least one token in each input, found none"));
        }
        let unknown = tokens.iter().find(|&&token| token as usize >= self.vocabulary);
        if let Some(token) = unknown {
            let most = self.vocabulary;
            return Err(Refusal::input(format!("expected tokens below {most}, found {token}")));
        }
        Ok(tokens)
    }

    /// The model's inputs for these tokens, as one row.
    pub(crate) fn request(&self, tokens: &[u32]) -> InferRequest {
        let length = self.lengths().into_iter().find(|&length| length >= tokens.len());
        let length = length.unwrap_or(tokens.len());
        let input = |role: &Role| {
            let value = |index: usize| match (role.kind, tokens.get(index)) {
                (Kind::Tokens, Some(&token)) => token,
                (Kind::Mask, Some(_)) => 1,
                _ => 0,
            };
            let values = (0..length).map(value);
            let data = if role.is_long {
                Data::Int64(values.map(i64::from).collect())
            } else {
                Data::Int32(values.map(|value| i32::try_from(value).unwrap_or(0)).collect())
            };
            Tensor { name: role.name.clone(), shape: vec![1, length], data }
        };
        InferRequest { inputs: self.inputs.iter().map(input).collect(), ..InferRequest::default() }
    }

    /// Checks that embeddings can have this many numbers. If the model does not state how many it has, the
    /// check is repeated on its output.
    ///
    /// # Errors
    /// More than the model has, or fewer than it is trained to serve with.
    pub(crate) fn check_dimensions(&self, wanted: Option<usize>) -> Result<(), Refusal> {
        self.size.map_or(Ok(()), |size| self.check_of(size, wanted))
    }

    fn check_of(&self, size: usize, wanted: Option<usize>) -> Result<(), Refusal> {
        let Some(found) = wanted.filter(|&wanted| wanted != size) else { return Ok(()) };
        match self.config.min_dimensions {
            Some(least) if (least..=size).contains(&found) => Ok(()),
            Some(least) => Err(Refusal::input(format!(
                "expected dimensions of {} to {size}, found {found}",
                least.min(size)
            ))),
            None => Err(Refusal::input(format!(
                "expected dimensions of {size}, which the model has, found {found}: its model.toml \
                 does not say that fewer serve (min_dimensions)"
            ))),
        }
    }

    /// The embedding out of the model's outputs for one row, whose first `count` tokens are real; the
    /// first `wanted` numbers of it, if not all.
    ///
    /// # Errors
    /// The model gave another shape than it had said, or so many numbers are not to be had.
    pub(crate) fn pool(
        &self,
        outputs: &[Tensor],
        count: usize,
        wanted: Option<usize>,
    ) -> Result<Vec<f32>, Refusal> {
        let output = outputs.iter().find(|output| output.name == self.output);
        let pooled = output.and_then(|output| match (&output.data, &output.shape[..]) {
            (Data::Fp32(data), [1, size]) if *size > 0 => Some(data.to_vec()),
            (Data::Fp32(data), [1, length, size]) if *size > 0 && count <= *length => {
                pool(self.config.pooling, data.chunks_exact(*size).take(count))
            }
            _ => None,
        });
        let mut pooled = pooled.ok_or_else(|| {
            let text = format!("expected a row of vectors in output \"{}\"", self.output);
            Refusal::new(Reason::InferenceFailed, text)
        })?;
        self.check_of(pooled.len(), wanted)?;
        pooled.truncate(wanted.unwrap_or(usize::MAX));
        if self.config.normalize {
            normalize(&mut pooled);
        }
        Ok(pooled)
    }

    fn has_mask(&self) -> bool {
        self.inputs.iter().any(|input| input.kind == Kind::Mask)
    }
}

fn read(config: &EmbeddingConfig, bytes: &[u8]) -> Result<Tokenizer, String> {
    let read = || -> tokenizers::Result<Tokenizer> {
        let mut tokenizer = Tokenizer::from_bytes(bytes)?;
        // The file's settings of these are for training.
        tokenizer.with_padding(None);
        let cut = TruncationParams { max_length: config.max_tokens, ..TruncationParams::default() };
        tokenizer.with_truncation(config.truncate.then_some(cut))?;
        Ok(tokenizer)
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("it panicked".to_owned()),
    }
}

/// `None`: there are no vectors.
fn pool<'a>(pooling: Pooling, mut vectors: impl Iterator<Item = &'a [f32]>) -> Option<Vec<f32>> {
    match pooling {
        Pooling::Cls => vectors.next().map(<[f32]>::to_vec),
        Pooling::Last => vectors.last().map(<[f32]>::to_vec),
        Pooling::Max => {
            let first = vectors.next()?.to_vec();
            Some(
                vectors.fold(first, |most, v| most.iter().zip(v).map(|(a, b)| a.max(*b)).collect()),
            )
        }
        Pooling::None | Pooling::Mean => {
            let mut sums: Vec<f64> = vectors.next()?.iter().copied().map(f64::from).collect();
            let mut count = 1.0;
            for vector in vectors {
                count += 1.0;
                sums.iter_mut().zip(vector).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            #[allow(clippy::cast_possible_truncation, reason = "a mean of them is one of them")]
            Some(sums.into_iter().map(|sum| (sum / count) as f32).collect())
        }
    }
}

/// To a length of 1, so that a scalar product is a cosine; zeros stay.
fn normalize(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let length = squares.sqrt();
    if length > 0.0 && length.is_finite() {
        #[allow(clippy::cast_possible_truncation, reason = "of the size of 1")]
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_makes_one_vector_of_the_real_tokens() {
        let data = [1.0, -2.0, 3.0, 6.0, 5.0, 2.0];
        for (pooling, expected) in [
            (Pooling::Mean, [3.0, 2.0]),
            (Pooling::Cls, [1.0, -2.0]),
            (Pooling::Last, [5.0, 2.0]),
            (Pooling::Max, [5.0, 6.0]),
        ] {
            let found = pool(pooling, data.chunks_exact(2));
            assert_eq!(found.as_deref(), Some(&expected[..]), "{pooling:?}");
            assert_eq!(pool(pooling, [].into_iter()), None);
        }
    }

    #[test]
    fn a_vector_gets_the_length_of_1_and_zeros_stay() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zeros = [0.0; 2];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
    }
}
