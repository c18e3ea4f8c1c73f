//! Texts: normalised, cut into tokens, counted.
//!
//! How many tokens a text has is known once it is read, and the longest text of a request would decide on
//! the shape for all. So the tokenizer and the counting of n-grams behind it are one operator here, in which
//! each text stands alone.

use super::super::built::Built;
use super::super::native::{
    Attributes, Function, Kind, RowRule, bad, native, numbers, strings, texts,
};
use regex::Regex;
use std::collections::HashMap;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// Prefix of the attributes of a tokenizer that became a part of the node behind it.
pub(crate) const TOKENIZER: &str = "tokenizer_";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
    Kept,
}

impl Case {
    /// Letters whose other form is one letter too, as in the C library.
    fn of(self, text: &str) -> String {
        fn one(mut forms: impl Iterator<Item = char>, letter: char) -> char {
            match (forms.next(), forms.next()) {
                (Some(form), None) => form,
                _ => letter,
            }
        }
        match self {
            Self::Kept => text.to_owned(),
            Self::Lower => text.chars().map(|c| one(c.to_lowercase(), c)).collect(),
            Self::Upper => text.chars().map(|c| one(c.to_uppercase(), c)).collect(),
        }
    }
}

#[derive(Debug)]
struct Normalizer {
    case: Case,
}

pub(super) fn normalizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let case = match attributes.text("case_change_action").as_deref() {
        None | Some("NONE") => Case::Kept,
        Some("LOWER") => Case::Lower,
        Some("UPPER") => Case::Upper,
        Some(other) => bail!("expected case_change_action LOWER, UPPER or NONE, found {other}"),
    };
    ensure!(
        attributes.texts("stopwords")?.is_empty(),
        "expected no stopwords: the shape would depend on the texts"
    );
    native(Normalizer { case }, 1)
}

impl Function for Normalizer {
    fn name(&self) -> &'static str {
        "StringNormalizer"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        Ok(tvec!(inputs[0].clone()))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let made = strings(inputs[0])?.iter().map(|text| self.case.of(text)).collect();
        Ok(tvec!(texts(inputs[0].shape(), made)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::Any
    }
}

/// Cuts a text into tokens.
#[derive(Debug)]
enum Tokenizer {
    Letters,
    /// The parts that match.
    Tokens(Regex),
    /// The parts between matches.
    Separators(Regex),
}

#[derive(Debug)]
struct Cutter {
    tokenizer: Tokenizer,
    least: usize,
    has_marks: bool,
}

impl Cutter {
    fn of(attributes: &Attributes<'_>) -> TractResult<Option<Self>> {
        let name = |what: &str| format!("{TOKENIZER}{what}");
        if !attributes.has(&name("pad_value")) {
            return Ok(None);
        }
        let least = attributes.int(&name("mincharnum")).unwrap_or(1);
        let separators = attributes.texts(&name("separators"))?;
        let tokenizer = match (attributes.text(&name("tokenexp")), separators.as_slice()) {
            (Some(pattern), _) if !pattern.is_empty() => Tokenizer::Tokens(Regex::new(&pattern)?),
            (_, [only]) if only.is_empty() => Tokenizer::Letters,
            (_, []) => bail!("expected separators or tokenexp of a Tokenizer"),
            (_, all) => {
                let each: Vec<String> = all.iter().map(|one| format!("(?:{one})")).collect();
                Tokenizer::Separators(Regex::new(&each.join("|"))?)
            }
        };
        let has_marks = attributes.int(&name("mark")) == Some(1);
        Ok(Some(Self { tokenizer, least: usize::try_from(least).unwrap_or(0), has_marks }))
    }

    fn cut<'a>(&self, text: &'a str, to: &mut Vec<&'a str>) {
        if self.has_marks {
            to.push("\u{2}");
        }
        let is_long = |token: &&str| !token.is_empty() && token.chars().count() >= self.least;
        match &self.tokenizer {
            Tokenizer::Letters => {
                to.extend(text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]));
            }
            Tokenizer::Tokens(pattern) => {
                to.extend(pattern.find_iter(text).map(|found| found.as_str()).filter(is_long));
            }
            Tokenizer::Separators(pattern) => to.extend(pattern.split(text).filter(is_long)),
        }
        if self.has_marks {
            to.push("\u{3}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Counts,
    Presence,
    WeightedCounts,
}

/// Counts n-grams of tokens.
#[derive(Debug)]
struct Vectorizer {
    cutter: Option<Cutter>,
    mode: Mode,
    lengths: std::ops::RangeInclusive<usize>,
    /// The most tokens between two of an n-gram.
    skips: usize,
    /// Numbers of tokens that are in n-grams.
    words: HashMap<String, u32>,
    integers: HashMap<i64, u32>,
    /// Places of n-grams in the output.
    grams: HashMap<Vec<u32>, usize>,
    weights: Vec<f32>,
    width: usize,
}

pub(super) fn vectorizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let cutter = Cutter::of(&attributes)?;
    let size = |name: &str| {
        let found = attributes.int(name).and_then(|found| usize::try_from(found).ok());
        found.with_context(|| format!("expected {name} of 0 or more"))
    };
    let mode = match attributes.text("mode").as_deref() {
        Some("TF") => Mode::Counts,
        Some("IDF") => Mode::Presence,
        Some("TFIDF") => Mode::WeightedCounts,
        other => bail!("expected mode TF, IDF or TFIDF, found {other:?}"),
    };
    let lengths = size("min_gram_length")?..=size("max_gram_length")?;
    ensure!(*lengths.start() > 0 && !lengths.is_empty(), "expected lengths of n-grams from 1 on");
    let (pool, numbers) = (attributes.texts("pool_strings")?, attributes.ints("pool_int64s"));
    let (mut words, mut integers) = (HashMap::new(), HashMap::new());
    let mut number = |place: usize| -> TractResult<u32> {
        Ok(if let Some(word) = pool.get(place) {
            let next = u32::try_from(words.len())?;
            *words.entry(word.clone()).or_insert(next)
        } else {
            let next = u32::try_from(integers.len())?;
            *integers.entry(numbers[place]).or_insert(next)
        })
    };
    let (starts, total) = (attributes.ints("ngram_counts"), pool.len().max(numbers.len()));
    let indexes = attributes.ints("ngram_indexes");
    let given = attributes.floats("weights");
    ensure!(
        given.is_empty() || given.len() == indexes.len(),
        "expected as many weights as indexes"
    );
    let width = indexes.iter().max().map_or(0, |&most| usize::try_from(most).unwrap_or(0) + 1);
    // Weights are those of n-grams in the order of the pool.
    let mut weights = vec![1.0; if given.is_empty() { 0 } else { width }];
    for (&index, &weight) in indexes.iter().zip(given) {
        *weights.get_mut(usize::try_from(index)?).context("expected an index")? = weight;
    }
    let mut indices = indexes.iter();
    let mut grams = HashMap::new();
    for (place, start) in starts.iter().enumerate() {
        let start = usize::try_from(*start)?;
        let end = starts.get(place + 1).map_or(Ok(total), |&end| usize::try_from(end))?;
        ensure!(start <= end && end <= total, "expected ngram_counts within the pool of {total}");
        ensure!((end - start).is_multiple_of(place + 1), "expected whole n-grams in the pool");
        for first in (start..end).step_by(place + 1) {
            let index = indices.next().context("expected ngram_indexes for each n-gram")?;
            let index = usize::try_from(*index)?;
            let gram = (first..=first + place).map(&mut number).collect::<TractResult<Vec<_>>>()?;
            if lengths.contains(&(place + 1)) {
                grams.insert(gram, index);
            }
        }
    }
    let skips = size("max_skip_count")?;
    native(Vectorizer { cutter, mode, lengths, skips, words, integers, grams, weights, width }, 1)
}

impl Vectorizer {
    /// Adds the n-grams of a row of tokens, of which unknown ones have no number.
    fn count(&self, tokens: &[Option<u32>], to: &mut [f32]) {
        let mut gram = Vec::new();
        for length in self.lengths.clone() {
            // One token has no gaps: it counts once.
            let distances = if length == 1 { 1..=1 } else { 1..=self.skips + 1 };
            for distance in distances {
                let span = (length - 1).saturating_mul(distance);
                for first in 0..tokens.len().saturating_sub(span) {
                    gram.clear();
                    gram.extend((0..length).map_while(|place| tokens[first + place * distance]));
                    if gram.len() == length
                        && let Some(&index) = self.grams.get(&gram)
                    {
                        to[index] += 1.0;
                    }
                }
            }
        }
    }

    fn weigh(&self, row: &mut [f32]) {
        let weight = |place: usize| self.weights.get(place).copied().unwrap_or(1.0);
        for (place, count) in row.iter_mut().enumerate() {
            *count = match self.mode {
                Mode::Counts => *count,
                Mode::Presence if *count > 0.0 => weight(place),
                Mode::Presence => 0.0,
                Mode::WeightedCounts => *count * weight(place),
            };
        }
    }

    /// The numbers of the tokens of a row.
    fn numbered(
        &self,
        input: &Tensor,
        range: std::ops::Range<usize>,
    ) -> TractResult<Vec<Option<u32>>> {
        if input.datum_type() != String::datum_type() {
            let found = numbers::<i64>(input)?;
            return Ok(found[range]
                .iter()
                .map(|token| self.integers.get(token).copied())
                .collect());
        }
        let found = &strings(input)?[range];
        let mut tokens = Vec::new();
        match &self.cutter {
            Some(cutter) => found.iter().for_each(|text| cutter.cut(text, &mut tokens)),
            None => tokens.extend(found.iter().map(String::as_str)),
        }
        Ok(tokens.into_iter().map(|token| self.words.get(token).copied()).collect())
    }

    /// Rows, and values of each, in a shape.
    fn sizes(&self, shape: &[usize]) -> TractResult<(usize, usize)> {
        match (*shape).as_ref() {
            // Of texts that are cut here, each is a row.
            [rows] if self.cutter.is_some() => Ok((*rows, 1)),
            [rows, 1] if self.cutter.is_some() => Ok((*rows, 1)),
            _ if self.cutter.is_some() => {
                Err(bad("Tokenizer", "one text in each row", &format!("{shape:?}")))
            }
            [columns] => Ok((1, *columns)),
            [rows, columns] => Ok((*rows, *columns)),
            _ => Err(bad("TfIdfVectorizer", "one axis or two", &format!("{shape:?}"))),
        }
    }
}

impl Function for Vectorizer {
    fn name(&self) -> &'static str {
        "TfIdfVectorizer"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let wide = self.width.to_dim();
        let shape: TVec<TDim> = match (inputs[0].shape.as_slice(), &self.cutter) {
            ([_], None) => tvec!(wide),
            ([rows] | [rows, _], _) => tvec!(rows.clone(), wide),
            (other, _) => bail!("TfIdfVectorizer: expected one axis or two, found {}", other.len()),
        };
        Ok(tvec!(Kind::new(f32::datum_type(), shape)))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let (rows, columns) = self.sizes(shape)?;
        let mut made = vec![0.0; rows * self.width];
        for (row, to) in made.chunks_exact_mut(self.width.max(1)).enumerate() {
            let tokens = self.numbered(inputs[0], row * columns..(row + 1) * columns)?;
            self.count(&tokens, to);
            self.weigh(to);
        }
        let is_flat = shape.len() == 1 && self.cutter.is_none();
        let shape = if is_flat { vec![self.width] } else { vec![rows, self.width] };
        Ok(tvec!(Tensor::from_shape(&shape, &made)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }

    fn bytes(&self) -> usize {
        let words: usize = self.words.keys().map(|word| word.len() + 48).sum();
        words + 24 * self.integers.len() + 64 * self.grams.len() + 4 * self.weights.len()
    }
}
