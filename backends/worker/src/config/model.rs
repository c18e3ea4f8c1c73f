//! `<model>/model.toml`: what the file of a model does not say of itself. All of it is optional.

use forebay_config::{ByteSize, Diagnostics, Document, FromToml, Table};
use forebay_engine::{Batching, Engines, LoadOptions, Profile};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::de::DeValue;

/// The value of `engine` that leaves the choice to the worker.
const AUTO: &str = "auto";

/// Rows that a request may carry, where the model's rows are independent.
const DEFAULT_BATCH: usize = 32;
/// The values of `batching`: `"rows are independent"` is the operator's word for a graph that can't be
/// proved.
const BATCHING: [(&str, Batching); 3] = [
    ("proved", Batching::Proved),
    ("rows are independent", Batching::Trusted),
    ("off", Batching::Off),
];
/// More rows than this in one request would occupy an executor for minutes.
pub(super) const MAX_BATCH: usize = 4096;
/// See the same bound on the worker's own `queue`.
pub(super) const MAX_QUEUE: usize = 1 << 20;

/// Largest share: beyond it the others might as well not be there.
const MAX_WEIGHT: u32 = 1000;
/// An executor that waits longer than this does not wait for company.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(1);
/// Limits of a run that make sense.
const EXECUTION: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// Longer than any healthy run, shorter than an operator's patience.
const DEFAULT_EXECUTION: Duration = Duration::from_secs(60);
/// Other kernels, other order of sums; a wrong graph is off by far more.
const DEFAULT_TOLERANCE: f64 = 1e-3;

/// The length that most sentence encoders were trained on, and the longest that an encoder here takes.
const DEFAULT_TOKENS: usize = 512;
/// Tokens that an embedding model is warmed up and measured with: about a paragraph.
const WARM_UP_TOKENS: usize = 64;
const MAX_TOKENS: usize = 8192;
/// No encoder has more numbers.
const MAX_DIMENSIONS: usize = 1 << 16;

/// The contents of `model.toml`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelConfig {
    /// For people.
    pub(crate) description: String,
    /// The versions that are served.
    pub(crate) versions: Versions,
    /// Names that requests may use where a version's number stands.
    pub(crate) labels: BTreeMap<String, u64>,
    /// Most rows in one request, for models whose rows are independent; 1: no batches.
    pub(crate) max_batch: usize,
    /// The condition under which rows of several requests run together.
    pub(crate) batching: Batching,
    /// Requests that may wait, if not as the worker says.
    pub(crate) queue: Option<usize>,
    /// Share of the executors' time beside other models that want it.
    pub(crate) weight: u32,
    /// Time that a free executor may wait for a fuller batch; 0: none.
    pub(crate) max_delay: Duration,
    /// A run that takes longer is stopped.
    pub(crate) max_execution: Duration,
    /// Maximum deviation of outputs from those of the examples beside the model.
    pub(crate) tolerance: f64,
    /// Bytes of memory that it takes, where that is not to be measured.
    pub(crate) memory: Option<u64>,
    /// Take and give NaN and infinities.
    pub(crate) allow_non_finite: bool,
    /// Load quantised graphs, which the engine may fold wrongly.
    pub(crate) allow_quantized: bool,
    /// The engine to run it; none: the first that reads a file of the version and runs the model right.
    pub(crate) engine: Option<&'static str>,
    /// The build to run in; none: by the engine's rule.
    pub(crate) build: Option<&'static str>,
    /// The way from texts to embeddings, if the model has one.
    pub(crate) embedding: Option<EmbeddingConfig>,
    /// Narrows and describes inputs and outputs.
    pub(crate) tensors: Vec<TensorConfig>,
    /// Parts of the file that mean nothing here, in words.
    pub(crate) notes: Vec<String>,
}

/// `[embedding]`: how texts become a model's inputs, and its outputs one vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EmbeddingConfig {
    /// File beside the versions, as Hugging Face's tokenizers write it.
    pub(crate) tokenizer: String,
    /// The output to take; none: the first.
    pub(crate) output: Option<String>,
    pub(crate) pooling: Pooling,
    /// To a length of 1.
    pub(crate) normalize: bool,
    /// The smallest number of leading elements that serve as an embedding; none: only all of them.
    pub(crate) min_dimensions: Option<usize>,
    /// Most tokens of one input.
    pub(crate) max_tokens: usize,
    /// Cut off what is longer, rather than refuse it.
    pub(crate) truncate: bool,
}

/// The way in which the tokens' vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// The largest of each number.
    Max,
    /// The model has done it.
    None,
}

/// One `[[input]]` or `[[output]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TensorConfig {
    pub(crate) name: String,
    /// A shape within the file's; -1 stays open.
    pub(crate) shape: Option<Vec<i64>>,
    /// Input shape to warm up with, where 1 for each open dimension does not fit.
    pub(crate) warm_up: Option<Vec<usize>>,
    /// The padding value of an input, so that requests of similar lengths can be joined.
    pub(crate) pad: Option<i64>,
    pub(crate) description: String,
    /// File beside the versions with the names of an output's elements, a line each.
    pub(crate) label_file: Option<String>,
}

/// The versions that are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Versions {
    /// This many versions with the highest numbers.
    Latest(usize),
    /// Every one.
    All,
    /// These.
    Specific(Vec<u64>),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            description: String::new(),
            versions: Versions::Latest(1),
            labels: BTreeMap::new(),
            max_batch: DEFAULT_BATCH,
            batching: Batching::default(),
            queue: None,
            weight: 1,
            max_delay: Duration::ZERO,
            max_execution: DEFAULT_EXECUTION,
            tolerance: DEFAULT_TOLERANCE,
            memory: None,
            allow_non_finite: false,
            allow_quantized: false,
            engine: None,
            build: None,
            embedding: None,
            tensors: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl ModelConfig {
    /// Reads the file's text; every mistake in it is reported. Engines and their builds are those that
    /// there are.
    pub(crate) fn parse(text: &str, engines: &Engines) -> Result<Self, Diagnostics> {
        let document = Document::parse(text);
        let config = {
            let file = document.root();
            let default = Self::default();
            let engine = one_of(&file, "engine", engines.names().chain([AUTO]));
            let engine = engine.filter(|&engine| engine != AUTO);
            let queue = file.within("queue", 1..=MAX_QUEUE, 0);
            let mut tensors = Vec::new();
            for input in file.tables("input") {
                let own = TensorConfig {
                    warm_up: input.get("warm_up"),
                    pad: input.get("pad").map(|Integer(pad)| pad),
                    ..TensorConfig::default()
                };
                tensors.extend(TensorConfig::read(&input, own));
            }
            for output in file.tables("output") {
                let label_file = output.get("label_file").map(|FileName(name)| name);
                let own = TensorConfig { label_file, ..TensorConfig::default() };
                tensors.extend(TensorConfig::read(&output, own));
            }
            Self {
                description: file.or("description", default.description),
                versions: file.or("versions", default.versions),
                labels: file.or("labels", Labels(default.labels)).0,
                max_batch: file.within("max_batch", 1..=MAX_BATCH, default.max_batch),
                batching: file.choice("batching", &BATCHING, default.batching),
                queue: (queue > 0).then_some(queue),
                weight: file.within("weight", 1..=MAX_WEIGHT, default.weight),
                max_delay: within(
                    &file,
                    "max_delay",
                    Duration::ZERO..=MAX_DELAY,
                    default.max_delay,
                ),
                max_execution: within(&file, "max_execution", EXECUTION, default.max_execution),
                tolerance: file.within("tolerance", 0.0..=f64::MAX, default.tolerance),
                memory: file.get("memory").map(|ByteSize(bytes)| bytes),
                allow_non_finite: file.or("allow_non_finite", default.allow_non_finite),
                allow_quantized: file.or("allow_quantized", default.allow_quantized),
                build: one_of(&file, "build", engines.builds(engine)),
                engine,
                embedding: file.table("embedding").as_ref().map(EmbeddingConfig::read),
                tensors,
                notes: Vec::new(),
            }
        };
        document.finish().map(|()| config)
    }

    /// The engine's options; `profile` holds the measurements of an earlier load of the same content.
    pub(crate) fn load_options(&self, profile: Option<Profile>) -> LoadOptions {
        fn by_name<T>(
            tensors: &[TensorConfig],
            value: impl Fn(&TensorConfig) -> Option<T>,
        ) -> BTreeMap<String, T> {
            tensors.iter().filter_map(|t| Some((t.name.clone(), value(t)?))).collect()
        }
        LoadOptions {
            max_batch: self.max_batch,
            batching: self.batching,
            shapes: by_name(&self.tensors, |tensor| tensor.shape.clone()),
            warm_up: by_name(&self.tensors, |tensor| tensor.warm_up.clone()),
            pad: by_name(&self.tensors, |tensor| tensor.pad),
            allow_quantized: self.allow_quantized,
            open: self.embedding.as_ref().map_or(1, |e| WARM_UP_TOKENS.min(e.max_tokens)),
            build: self.build.map(str::to_owned),
            profile,
        }
    }
}

/// One of these words, if there is the key.
fn one_of(
    file: &Table<'_, '_>,
    key: &str,
    words: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    let words: Vec<_> = words.into_iter().map(|word| (word, Some(word))).collect();
    if words.is_empty()
        && let Some((found, span)) = file.spanned::<String>(key)
    {
        file.note(span, key, format!("expected no {key}: there is no choice, found {found:?}"));
        return None;
    }
    file.choice(key, &words, None)
}

fn within(
    file: &Table<'_, '_>,
    key: &str,
    range: RangeInclusive<Duration>,
    default: Duration,
) -> Duration {
    let Some((value, span)) = file.spanned::<Duration>(key) else { return default };
    if range.contains(&value) {
        return value;
    }
    let (least, most) = (range.start(), range.end());
    file.note(span, key, format!("expected {least:?} to {most:?}, found {value:?}"));
    default
}

impl EmbeddingConfig {
    fn read(table: &Table<'_, '_>) -> Self {
        let poolings = [
            ("mean", Pooling::Mean),
            ("cls", Pooling::Cls),
            ("last", Pooling::Last),
            ("max", Pooling::Max),
            ("none", Pooling::None),
        ];
        let tokenizer = table.or("tokenizer", FileName("tokenizer.json".to_owned()));
        Self {
            tokenizer: tokenizer.0,
            output: table.get("output"),
            pooling: table.choice("pooling", &poolings, Pooling::Mean),
            normalize: table.or("normalize", true),
            // Out of the range, so it stands for "not there" (or noted as wrong).
            min_dimensions: Some(table.within("min_dimensions", 1..=MAX_DIMENSIONS, 0))
                .filter(|&least| least > 0),
            max_tokens: table.within("max_tokens", 1..=MAX_TOKENS, DEFAULT_TOKENS),
            truncate: table.or("truncate", false),
        }
    }
}

impl TensorConfig {
    /// Reads the keys common to inputs and outputs; the rest is in `own`.
    fn read(table: &Table<'_, '_>, own: Self) -> Option<Self> {
        let shape = table.get::<Vec<Dimension>>("shape");
        let description = table.or("description", String::new());
        let name = table.required("name")?;
        let shape = shape.map(|shape| shape.into_iter().map(|Dimension(dim)| dim).collect());
        Some(Self { name, shape, description, ..own })
    }
}

/// Of a file in the model's own directory.
struct FileName(String);

impl FromToml for FileName {
    const EXPECTED: &'static str = "the name of a file in the model's directory, without a path";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let name = value.as_str().ok_or(None)?;
        let is_plain = !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.');
        if is_plain { Ok(Self(name.to_owned())) } else { Err(None) }
    }
}

struct Integer(i64);

impl FromToml for Integer {
    const EXPECTED: &'static str = "an integer";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let integer = value.as_integer().ok_or(None)?;
        i64::from_str_radix(integer.as_str(), integer.radix()).map(Self).map_err(|_| None)
    }
}

struct Dimension(i64);

impl FromToml for Dimension {
    const EXPECTED: &'static str = "a dimension of 1 or more, or -1 for an open one";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let Integer(dim) = Integer::from_toml(value)?;
        if dim == -1 || dim > 0 { Ok(Self(dim)) } else { Err(None) }
    }
}

impl FromToml for Versions {
    const EXPECTED: &'static str = "\"latest\", \"all\", a list of versions such as [1, 3], or \
        { kind = \"latest\", count = 2 }, { kind = \"all\" }, { kind = \"specific\", versions = [1, 3] }";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        match value {
            DeValue::String(kind) => Self::of_kind(kind, None, None),
            DeValue::Array(_) => Vec::from_toml(value).map(Self::Specific),
            DeValue::Table(table) => {
                let known = ["kind", "count", "versions"];
                if let Some(key) = table.keys().find(|key| !known.contains(&&**key.get_ref())) {
                    return Err(Some(format!("the key {:?}", key.get_ref())));
                }
                let value = |key: &str| table.get(key).map(toml::Spanned::get_ref);
                let count = value("count").map(usize::from_toml).transpose()?;
                let versions = value("versions").map(Vec::from_toml).transpose()?;
                let kind = value("kind").and_then(DeValue::as_str).unwrap_or_default();
                Self::of_kind(kind, count, versions)
            }
            _ => Err(None),
        }
    }
}

impl Versions {
    fn of_kind(
        kind: &str,
        count: Option<usize>,
        versions: Option<Vec<u64>>,
    ) -> Result<Self, Option<String>> {
        match (kind, count, versions) {
            ("latest", None, None) => Ok(Self::Latest(1)),
            ("latest", Some(count @ 1..), None) => Ok(Self::Latest(count)),
            ("all", None, None) => Ok(Self::All),
            ("specific", None, Some(versions)) => Ok(Self::Specific(versions)),
            _ => Err(None),
        }
    }
}

/// Names of versions.
struct Labels(BTreeMap<String, u64>);

impl FromToml for Labels {
    const EXPECTED: &'static str =
        "names that are no numbers, each with a version: { stable = 1, canary = 2 }";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let table = value.as_table().ok_or(None)?;
        let read = |(name, version): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Some(format!("the name {name:?}")));
            }
            Ok((name.to_string(), u64::from_toml(version.get_ref())?))
        };
        table.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::engines;

    fn parse(text: &str) -> Result<ModelConfig, Diagnostics> {
        ModelConfig::parse(text, &engines::default())
    }

    #[test]
    fn what_is_written_is_what_the_engine_is_told() {
        let config = parse(
            "versions = [1, 3]\nmax_batch = 8\n[[input]]\nname = \"x\"\nshape = [-1, 3]\n\
             warm_up = [2, 3]\n[[output]]\nname = \"y\"\ndescription = \"text\"\n\
             label_file = \"labels.txt\"",
        )
        .unwrap();
        assert_eq!(config.versions, Versions::Specific(vec![1, 3]));
        let options = config.load_options(None);
        assert_eq!((options.max_batch, options.allow_quantized), (8, false));
        assert_eq!(options.shapes, BTreeMap::from([("x".to_owned(), vec![-1, 3])]));
        assert_eq!(config.tensors[1].label_file.as_deref(), Some("labels.txt"));
        assert_eq!(options.warm_up, BTreeMap::from([("x".to_owned(), vec![2, 3])]));
        assert_eq!(parse("").unwrap(), ModelConfig::default());
    }

    #[test]
    fn rows_are_joined_if_that_is_proved_or_on_the_operators_word() {
        for (text, expected) in [
            ("", Batching::Proved),
            ("batching = \"proved\"", Batching::Proved),
            ("batching = \"rows are independent\"", Batching::Trusted),
            ("batching = \"off\"", Batching::Off),
        ] {
            let config = parse(text).unwrap();
            assert_eq!(config.load_options(None).batching, expected, "{text}");
        }
        assert!(parse("batching = true").is_err());
    }

    #[test]
    fn how_a_model_is_run_is_bounded() {
        let text = "weight = 3\nmax_delay = \"2ms\"\nmax_execution = \"5s\"\ntolerance = 0.1";
        let config = parse(text).unwrap();
        assert_eq!((config.weight, config.tolerance), (3, 0.1));
        assert_eq!(config.max_delay, Duration::from_millis(2));
        assert_eq!(config.max_execution, Duration::from_secs(5));
        for text in [
            "weight = 0",
            "weight = 1001",
            "max_delay = \"2s\"",
            "max_execution = \"0s\"",
            "max_execution = 5",
            "tolerance = -1.0",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_and_labels_can_be_said_in_short_and_in_full() {
        let versions = |text: &str| parse(&format!("versions = {text}"));
        for (text, expected) in [
            ("\"latest\"", Versions::Latest(1)),
            ("{ kind = \"latest\" }", Versions::Latest(1)),
            ("{ kind = \"latest\", count = 3 }", Versions::Latest(3)),
            ("{ kind = \"all\" }", Versions::All),
            ("{ kind = \"specific\", versions = [2] }", Versions::Specific(vec![2])),
        ] {
            assert_eq!(versions(text).unwrap().versions, expected, "{text}");
        }
        for text in [
            "{ kind = \"latest\", count = 0 }",
            "{ kind = \"all\", count = 1 }",
            "{ kind = \"specific\" }",
            "{ kind = \"latest\", cuont = 1 }",
            "{}",
            "5",
        ] {
            let found = versions(text).unwrap_err().to_string();
            assert!(found.contains("kind = \"latest\", count = 2"), "{text}: {found}");
        }
        let config = parse("labels = { stable = 1, canary = 12 }").unwrap();
        assert_eq!(config.labels, BTreeMap::from([("stable".into(), 1), ("canary".into(), 12)]));
        for text in ["{ 1 = 2 }", "{ stable = \"1\" }", "[1]"] {
            assert!(parse(&format!("labels = {text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let found = parse(
            "versions = \"newest\"\nmax_batch = 0\nmax_batches = 3\n[[input]]\nshape = [0]\n\
             [[output]]\nname = \"y\"\nwarm_up = [1]\n\
             label_file = \"../labels.txt\"\n",
        )
        .unwrap_err();
        let lines: Vec<_> = found.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 8, 9], "{found}");
    }

    #[test]
    fn an_engine_or_a_build_that_there_is_not_is_refused_with_those_that_there_are() {
        let config = parse("engine = \"tract\"\nbuild = \"own\"").unwrap();
        assert_eq!(config.engine, Some("tract"));
        assert_eq!(config.load_options(None).build.as_deref(), Some("own"));
        let found = parse("engine = \"tracd\"\nbuild = \"fast\"").unwrap_err().to_string();
        assert_eq!(parse("engine = \"auto\"").unwrap().engine, None);
        assert_eq!(parse("engine = \"onnxruntime\"").unwrap().engine, Some("onnxruntime"));
        for part in ["expected \"tract\"", "found \"tracd\"", "\"plain\"", "found \"fast\""] {
            assert!(found.contains(part), "expected {part}, found {found}");
        }
    }
}
