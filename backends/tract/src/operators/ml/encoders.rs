//! Operators that look values up: labels, categories, and their places.

use super::super::built::Built;
use super::super::native::{
    Attributes, Function, Kind, RowRule, Trial, bad, native, numbers, strings, texts,
};
use std::collections::HashMap;
use std::hash::Hash;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// Values that are looked for, each with its place.
#[derive(Debug)]
enum Keys {
    Texts(HashMap<String, usize>),
    Integers(HashMap<i64, usize>),
    /// By their bits; all that is no number is one, and so are both zeros.
    Floats(HashMap<u64, usize>),
}

fn bits(x: f64) -> u64 {
    if x.is_nan() {
        f64::NAN.to_bits()
    } else if x == 0.0 {
        0
    } else {
        x.to_bits()
    }
}

/// The first of equal keys counts.
fn places<K: Hash + Eq>(keys: impl Iterator<Item = K>) -> HashMap<K, usize> {
    let mut found = HashMap::new();
    for (place, key) in keys.enumerate() {
        found.entry(key).or_insert(place);
    }
    found
}

impl Keys {
    fn texts(keys: Vec<String>) -> Self {
        Self::Texts(places(keys.into_iter()))
    }

    fn integers(keys: &[i64]) -> Self {
        Self::Integers(places(keys.iter().copied()))
    }

    fn floats(keys: impl Iterator<Item = f64>) -> Self {
        Self::Floats(places(keys.map(bits)))
    }

    /// The places of the elements of a tensor; none for what is no key.
    fn find(&self, operator: &str, tensor: &Tensor) -> TractResult<Vec<Option<usize>>> {
        let is_text = tensor.datum_type() == String::datum_type();
        if is_text != matches!(self, Self::Texts(_)) {
            let expected = if is_text { "numbers" } else { "texts" };
            bail!("{operator}: expected {expected}, found {:?}", tensor.datum_type());
        }
        Ok(match self {
            Self::Texts(keys) => {
                strings(tensor)?.iter().map(|key| keys.get(key).copied()).collect()
            }
            Self::Integers(keys) => {
                numbers::<i64>(tensor)?.iter().map(|key| keys.get(key).copied()).collect()
            }
            Self::Floats(keys) => {
                let found = numbers::<f64>(tensor)?;
                found.iter().map(|&key| keys.get(&bits(key)).copied()).collect()
            }
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Texts(keys) => keys.keys().map(|key| key.len() + 48).sum(),
            Self::Integers(keys) => 24 * keys.len(),
            Self::Floats(keys) => 24 * keys.len(),
        }
    }
}

/// The form that values get.
#[derive(Debug)]
enum Values {
    Texts(Vec<String>),
    Integers(DatumType, Vec<i64>),
    Floats(DatumType, Vec<f64>),
}

impl Values {
    fn of_tensor(tensor: &Tensor) -> TractResult<Self> {
        let datum_type = tensor.datum_type();
        Ok(if datum_type == String::datum_type() {
            Self::Texts(strings(tensor)?.to_vec())
        } else if datum_type.is_float() {
            Self::Floats(datum_type, numbers::<f64>(tensor)?)
        } else {
            Self::Integers(datum_type, numbers::<i64>(tensor)?)
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(values) => values.len(),
            Self::Integers(_, values) => values.len(),
            Self::Floats(_, values) => values.len(),
        }
    }

    fn datum_type(&self) -> DatumType {
        match self {
            Self::Texts(_) => String::datum_type(),
            Self::Integers(datum_type, _) | Self::Floats(datum_type, _) => *datum_type,
        }
    }

    /// The value for what is no key.
    fn usual(&self) -> Self {
        match self {
            Self::Texts(_) => Self::Texts(vec!["_Unused".to_owned()]),
            Self::Integers(datum_type, _) => Self::Integers(*datum_type, vec![-1]),
            Self::Floats(datum_type, _) => Self::Floats(*datum_type, vec![-0.0]),
        }
    }

    fn tensor(
        &self,
        shape: &[usize],
        found: &[Option<usize>],
        missing: &Self,
    ) -> TractResult<Tensor> {
        let pick = |place: &Option<usize>| *place;
        match (self, missing) {
            (Self::Texts(values), Self::Texts(missing)) => {
                let made = found.iter().map(|f| pick(f).map_or(&missing[0], |p| &values[p]));
                texts(shape, made.cloned().collect())
            }
            (Self::Integers(to, values), Self::Integers(_, missing)) => {
                let made = found.iter().map(|f| pick(f).map_or(missing[0], |p| values[p]));
                let made: Vec<i64> = made.collect();
                Ok(Tensor::from_shape(shape, &made)?.cast_to_dt(*to)?.into_owned())
            }
            (Self::Floats(to, values), Self::Floats(_, missing)) => {
                let made = found.iter().map(|f| pick(f).map_or(missing[0], |p| values[p]));
                let made: Vec<f64> = made.collect();
                Ok(Tensor::from_shape(shape, &made)?.cast_to_dt(*to)?.into_owned())
            }
            _ => bail!("expected a default of the type of the values"),
        }
    }
}

/// A value for each key.
#[derive(Debug)]
struct Lookup {
    name: &'static str,
    keys: Keys,
    values: Values,
    missing: Values,
}

impl Lookup {
    fn build(name: &'static str, keys: Keys, values: Values, missing: Option<Values>) -> Built {
        let missing = missing.unwrap_or_else(|| values.usual());
        let is_one = missing.len() == 1 && missing.datum_type() == values.datum_type();
        ensure!(is_one, "expected one default of the type of the values");
        let places = match &keys {
            Keys::Texts(keys) => keys.values().max(),
            Keys::Integers(keys) => keys.values().max(),
            Keys::Floats(keys) => keys.values().max(),
        };
        let most = places.map_or(0, |place| place + 1);
        ensure!(most <= values.len(), "expected {most} values, as many as keys");
        native(Self { name, keys, values, missing }, 1)
    }
}

/// The default of an attribute in the type of the values.
fn usual_of(attributes: &Attributes<'_>, values: &Values) -> Option<Values> {
    match values {
        Values::Texts(_) => attributes.text("default_string").map(|text| Values::Texts(vec![text])),
        Values::Integers(to, _) => {
            attributes.int("default_int64").map(|x| Values::Integers(*to, vec![x]))
        }
        Values::Floats(to, _) => {
            let found = attributes.float("default_float");
            found.map(|x| Values::Floats(*to, vec![f64::from(x)]))
        }
    }
}

/// Version of the operator set that these operators are of.
fn version(context: &ParsingContext) -> i64 {
    let mut sets = context.model.opset_import.iter();
    sets.find(|set| set.domain == "ai.onnx.ml").map_or(1, |set| set.version)
}

pub(super) fn label(context: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let name = "LabelEncoder";
    let classes = attributes.texts("classes_strings")?;
    if !classes.is_empty() {
        let ints: Vec<i64> = (0..i64::try_from(classes.len())?).collect();
        return native(Both::new(&attributes, name, &classes, &ints), 1);
    }
    let keys = if let Some(keys) = attributes.tensor(context, "keys_tensor")? {
        match Values::of_tensor(&keys)? {
            Values::Texts(keys) => Keys::texts(keys),
            Values::Integers(_, keys) => Keys::integers(&keys),
            Values::Floats(_, keys) => Keys::floats(keys.into_iter()),
        }
    } else if attributes.has("keys_strings") {
        Keys::texts(attributes.texts("keys_strings")?)
    } else if attributes.has("keys_int64s") {
        Keys::integers(attributes.ints("keys_int64s"))
    } else {
        let keys = attributes.floats("keys_floats").iter().map(|&x| f64::from(x));
        let mut keys = Keys::floats(keys);
        if let Keys::Floats(keys) = &mut keys
            && version(context) < 4
        {
            // Before that version, what is no number equals nothing.
            keys.remove(&bits(f64::NAN));
        }
        keys
    };
    let values = if let Some(values) = attributes.tensor(context, "values_tensor")? {
        Values::of_tensor(&values)?
    } else if attributes.has("values_strings") {
        Values::Texts(attributes.texts("values_strings")?)
    } else if attributes.has("values_int64s") {
        Values::Integers(i64::datum_type(), attributes.ints("values_int64s").to_vec())
    } else {
        let floats = attributes.floats("values_floats").iter().map(|&x| f64::from(x));
        Values::Floats(f32::datum_type(), floats.collect())
    };
    let given = attributes.tensor(context, "default_tensor")?;
    let missing = match given {
        Some(given) => Some(Values::of_tensor(&given)?),
        None => usual_of(&attributes, &values),
    };
    Lookup::build(name, keys, values, missing)
}

pub(super) fn category(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let (ints, classes) = (attributes.ints("cats_int64s"), attributes.texts("cats_strings")?);
    ensure!(ints.len() == classes.len(), "expected as many cats_int64s as cats_strings");
    native(Both::new(&attributes, "CategoryMapper", &classes, ints), 1)
}

impl Function for Lookup {
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        Ok(tvec!(Kind::new(self.values.datum_type(), inputs[0].shape.iter().cloned())))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let found = self.keys.find(self.name, inputs[0])?;
        Ok(tvec!(self.values.tensor(inputs[0].shape(), &found, &self.missing)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::Any
    }

    fn bytes(&self) -> usize {
        self.keys.bytes() + 16 * self.values.len()
    }
}

/// Texts to numbers, or numbers to texts, as the input is.
#[derive(Debug)]
struct Both {
    name: &'static str,
    to_numbers: Lookup,
    to_texts: Lookup,
}

impl Both {
    fn new(
        attributes: &Attributes<'_>,
        name: &'static str,
        classes: &[String],
        ints: &[i64],
    ) -> Self {
        let numbers = Values::Integers(i64::datum_type(), ints.to_vec());
        let texts = Values::Texts(classes.to_vec());
        let lookup = |keys: Keys, values: Values| {
            let missing = usual_of(attributes, &values).unwrap_or_else(|| values.usual());
            Lookup { name, keys, values, missing }
        };
        let to_numbers = lookup(Keys::texts(classes.to_vec()), numbers);
        Self { name, to_numbers, to_texts: lookup(Keys::integers(ints), texts) }
    }

    fn of(&self, from: DatumType) -> &Lookup {
        if from == String::datum_type() { &self.to_numbers } else { &self.to_texts }
    }
}

impl Function for Both {
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        self.of(inputs[0].datum_type).outputs(inputs)
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        self.of(inputs[0].datum_type()).run(inputs)
    }

    fn rows(&self) -> RowRule {
        RowRule::Any
    }

    fn bytes(&self) -> usize {
        2 * self.to_numbers.bytes()
    }
}

/// A one in the place of the category, zeros elsewhere, along a new last axis.
#[derive(Debug)]
struct OneHot {
    keys: Keys,
    count: usize,
    /// Whether what is no category is all zeros.
    allows_others: bool,
}

pub(super) fn one_hot(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let (classes, ints) = (attributes.texts("cats_strings")?, attributes.ints("cats_int64s"));
    ensure!(classes.is_empty() != ints.is_empty(), "expected cats_strings or cats_int64s");
    let allows_others = attributes.int("zeros").unwrap_or(1) != 0;
    let count = classes.len().max(ints.len());
    let keys = if classes.is_empty() { Keys::integers(ints) } else { Keys::texts(classes) };
    native(OneHot { keys, count, allows_others }, 1)
}

impl Function for OneHot {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let shape = inputs[0].shape.iter().cloned().chain([self.count.to_dim()]);
        Ok(tvec!(Kind::new(f32::datum_type(), shape)))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let found = self.keys.find("OneHotEncoder", inputs[0])?;
        let mut made = vec![0.0_f32; found.len() * self.count];
        for (place, found) in found.iter().enumerate() {
            match found {
                Some(category) => made[place * self.count + category] = 1.0,
                None if self.allows_others || Trial::is_on() => {}
                None => {
                    let expected = format!("one of {} categories", self.count);
                    return Err(bad("OneHotEncoder", expected, &format!("another at {place}")));
                }
            }
        }
        let shape: Vec<usize> = inputs[0].shape().iter().copied().chain([self.count]).collect();
        Ok(tvec!(Tensor::from_shape(&shape, &made)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::Any
    }

    fn bytes(&self) -> usize {
        self.keys.bytes()
    }
}
