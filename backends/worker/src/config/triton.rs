//! `config.pbtxt` beside a model, as Triton has it: read where a model has no `model.toml`.
//!
//! A repository that Triton serves should be served as it is. So the fields that mean something here are read;
//! a field whose absence would change answers is refused, and each other one is named in the log, once the
//! model is ready.

use crate::config::model::{MAX_BATCH, MAX_DELAY, MAX_QUEUE, ModelConfig, TensorConfig, Versions};
use forebay_engine::Batching;
use std::borrow::Cow;
use std::iter::Peekable;
use std::str::CharIndices;
use std::time::Duration;

/// Deepest nesting of messages.
const MAX_DEPTH: usize = 16;
/// Most fields that are named in the log, and most characters of a name there and in errors.
const MAX_NOTES: usize = 32;
const MAX_NAME: usize = 64;
/// Words for ONNX models as the field `platform` or `backend` has them.
const ONNX: [&str; 3] = ["onnxruntime_onnx", "onnxruntime", "onnx"];
/// Fields that tell only of what the file says itself, or that make no difference here.
const SILENT: [&str; 4] = ["name", "data_type", "format", "dynamic_batching"];
/// Fields without which a model would answer otherwise, or not at all.
const NEEDED: [(&str, &str); 3] = [
    ("ensemble_scheduling", "ensembles are not served"),
    ("sequence_batching", "state between requests is not kept"),
    ("model_operations", "libraries of operators are not opened"),
];

/// A message: its fields in the order of the file.
type Message = Vec<(String, Value)>;

#[derive(Debug, Clone, PartialEq)]
enum Value {
    /// A number, a name or a text.
    Word(String),
    Message(Message),
    List(Vec<Value>),
}

/// Reads the text of a file.
///
/// # Errors
/// In words, with the line where there is one: it is no such file, or asks for what is not there.
pub(crate) fn parse(text: &str) -> Result<ModelConfig, String> {
    let mut reader = Reader { chars: text.char_indices().peekable(), text };
    let fields = reader.message(0).map_err(|why| {
        let at = reader.chars.peek().map_or(text.len(), |(at, _)| *at);
        format!("line {}: {why}", text[..at].lines().count().max(1))
    })?;
    configured(&fields)
}

fn configured(fields: &Message) -> Result<ModelConfig, String> {
    let (mut config, mut notes) = (ModelConfig::default(), Notes::default());
    let max_batch = word(fields, "max_batch_size").map(|size| number("max_batch_size", size));
    let max_batch: Option<usize> = max_batch.transpose()?;
    let has_batch = max_batch.is_some_and(|size| size > 0);
    match max_batch {
        Some(0) => config.batching = Batching::Off,
        Some(size) => config.max_batch = size.min(MAX_BATCH),
        None => {}
    }
    for (name, value) in fields {
        if let Some((_, why)) = NEEDED.iter().find(|(needed, _)| needed == name) {
            return Err(format!("{name}: {why}"));
        }
        match (name.as_str(), value) {
            ("platform" | "backend", Value::Word(kind)) if !kind.is_empty() => {
                if !ONNX.contains(&kind.as_str()) {
                    return Err(format!(
                        "{name}: expected {}, found \"{}\"",
                        ONNX.join(" or "),
                        shortened(kind)
                    ));
                }
            }
            ("default_model_filename", Value::Word(file)) if !file.is_empty() => {
                if file != "model.onnx" {
                    let file = shortened(file);
                    return Err(format!("{name}: expected model.onnx, found \"{file}\""));
                }
            }
            ("max_batch_size", Value::Word(_) | Value::List(_)) => {}
            ("input" | "output", value) => {
                for tensor in messages(value) {
                    config.tensors.push(of_tensor(tensor, name == "output", has_batch)?);
                    notes.rest(tensor, name, &["name", "dims", "label_filename"]);
                }
            }
            ("version_policy", value) => {
                for policy in messages(value) {
                    config.versions = of_versions(policy)?;
                }
            }
            ("dynamic_batching", value) => {
                for batching in messages(value) {
                    of_batching(batching, &mut config, &mut notes)?;
                }
            }
            _ => notes.field(name, "", &[]),
        }
    }
    config.notes = notes.lines();
    Ok(config)
}

fn of_tensor(fields: &Message, is_output: bool, has_batch: bool) -> Result<TensorConfig, String> {
    let name = word(fields, "name").unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err("expected a name of each input and output, found none".to_owned());
    }
    let dims = words(fields, "dims").map(|dim| number::<i64>("dims", dim));
    let dims = dims.collect::<Result<Vec<_>, _>>()?;
    if let Some(dim) = dims.iter().find(|&&dim| dim < -1 || dim == 0) {
        return Err(format!("dims: expected sizes, or -1 for any, found {dim}"));
    }
    let shape = has_batch.then_some(-1).into_iter().chain(dims.iter().copied()).collect();
    // With `reshape`, the graph has other sizes than clients.
    let is_own = !dims.is_empty() && find(fields, "reshape").next().is_none();
    let label_file = word(fields, "label_filename").filter(|_| is_output);
    let label_file = label_file.filter(|file| !file.is_empty()).map(str::to_owned);
    if label_file.as_ref().is_some_and(|file| file.contains(['/', '\\']) || file == "..") {
        return Err("label_filename: expected the name of a file beside config.pbtxt".to_owned());
    }
    Ok(TensorConfig { name, shape: is_own.then_some(shape), label_file, ..TensorConfig::default() })
}

fn of_versions(fields: &Message) -> Result<Versions, String> {
    for (kind, value) in fields {
        let Some(policy) = messages(value).next() else { continue };
        match kind.as_str() {
            "all" => return Ok(Versions::All),
            "latest" => {
                let count = word(policy, "num_versions").unwrap_or("1");
                return Ok(Versions::Latest(number::<usize>("num_versions", count)?.max(1)));
            }
            "specific" => {
                let numbers = words(policy, "versions").map(|v| number::<u64>("versions", v));
                return Ok(Versions::Specific(numbers.collect::<Result<_, _>>()?));
            }
            _ => {}
        }
    }
    Ok(Versions::Latest(1))
}

fn of_batching(
    fields: &Message,
    config: &mut ModelConfig,
    notes: &mut Notes,
) -> Result<(), String> {
    const DELAY: &str = "max_queue_delay_microseconds";
    const POLICY: &str = "default_queue_policy";
    if let Some(delay) = word(fields, DELAY) {
        config.max_delay = Duration::from_micros(number(DELAY, delay)?).min(MAX_DELAY);
    }
    for policy in find(fields, POLICY).flat_map(messages) {
        if let Some(size) = word(policy, "max_queue_size") {
            let size = number::<usize>("max_queue_size", size)?;
            config.queue = (size > 0).then_some(size.min(MAX_QUEUE));
        }
        notes.rest(policy, POLICY, &["max_queue_size"]);
    }
    notes.rest(fields, "dynamic_batching", &[DELAY, POLICY]);
    Ok(())
}

/// Fields that are not read, each named once; the file may have any number of them.
#[derive(Debug, Default)]
struct Notes {
    named: Vec<String>,
    /// How many more there are.
    more: usize,
}

impl Notes {
    /// Notes the fields that are not among those that were read.
    fn rest(&mut self, fields: &Message, of: &str, read: &[&str]) {
        fields.iter().for_each(|(name, _)| self.field(name, of, read));
    }

    fn field(&mut self, name: &str, of: &str, read: &[&str]) {
        if read.contains(&name) || SILENT.contains(&name) {
            return;
        }
        let name = shortened(name);
        let name = if of.is_empty() { name.into_owned() } else { format!("{of}.{name}") };
        if self.named.contains(&name) {
            return;
        }
        if self.named.len() < MAX_NOTES {
            self.named.push(name);
        } else {
            self.more += 1;
        }
    }

    fn lines(self) -> Vec<String> {
        let line = |name: &String| format!("config.pbtxt: {name} is not read");
        let more = format!("config.pbtxt: and {} more fields are not read", self.more);
        self.named.iter().map(line).chain((self.more > 0).then_some(more)).collect()
    }
}

/// A word of the file as the log and errors have it.
fn shortened(word: &str) -> Cow<'_, str> {
    match word.char_indices().nth(MAX_NAME) {
        Some((end, _)) => Cow::Owned(format!("{}…", &word[..end])),
        None => Cow::Borrowed(word),
    }
}

fn number<T: std::str::FromStr>(name: &str, word: &str) -> Result<T, String> {
    let expected = "expected a number in its range";
    word.parse().map_err(|_| format!("{name}: {expected}, found \"{}\"", shortened(word)))
}

fn find<'a>(fields: &'a Message, name: &str) -> impl Iterator<Item = &'a Value> {
    fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
}

/// The words of a field that may be written as a list, or several times.
fn words<'a>(fields: &'a Message, name: &str) -> impl Iterator<Item = &'a str> {
    let each = |value: &'a Value| match value {
        Value::List(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    find(fields, name).flat_map(each).filter_map(|value| match value {
        Value::Word(word) => Some(word.as_str()),
        _ => None,
    })
}

fn word<'a>(fields: &'a Message, name: &str) -> Option<&'a str> {
    words(fields, name).last()
}

fn messages(value: &Value) -> impl Iterator<Item = &Message> {
    let values = match value {
        Value::List(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    values.iter().filter_map(|value| match value {
        Value::Message(message) => Some(message),
        _ => None,
    })
}

/// Reads protobuf's text format.
struct Reader<'a> {
    chars: Peekable<CharIndices<'a>>,
    text: &'a str,
}

impl Reader<'_> {
    /// The next character that is neither blank nor in a comment; it is not taken.
    fn peek(&mut self) -> Option<char> {
        while let Some(&(_, next)) = self.chars.peek() {
            if next == '#' {
                while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
            } else if next.is_whitespace() {
                self.chars.next();
            } else {
                return Some(next);
            }
        }
        None
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_next = self.peek() == Some(wanted);
        if is_next {
            self.chars.next();
        }
        is_next
    }

    /// Fields until the end of the message, which is not taken.
    fn message(&mut self, depth: usize) -> Result<Message, String> {
        if depth > MAX_DEPTH {
            return Err(format!("expected at most {MAX_DEPTH} nested messages"));
        }
        let mut fields = Vec::new();
        while let Some(next) = self.peek() {
            if next == '}' || next == '>' {
                if depth == 0 {
                    return Err(format!("expected a field, found \"{next}\""));
                }
                break;
            }
            let name = self.bare()?;
            let has_colon = self.take(':');
            let is_open = matches!(self.peek(), Some('{' | '<' | '['));
            if !has_colon && !is_open {
                let name = shortened(&name);
                return Err(format!("expected \":\" or \"{{\" behind {name}"));
            }
            fields.push((name, self.value(depth)?));
            while self.take(',') || self.take(';') {}
        }
        Ok(fields)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!("expected at most {MAX_DEPTH} nested messages"));
        }
        match self.peek() {
            Some(open @ ('{' | '<')) => {
                self.chars.next();
                let message = self.message(depth + 1)?;
                let close = if open == '{' { '}' } else { '>' };
                if !self.take(close) {
                    return Err(format!("expected \"{close}\""));
                }
                Ok(Value::Message(message))
            }
            Some('[') => {
                self.chars.next();
                let mut values = Vec::new();
                while !self.take(']') {
                    values.push(self.value(depth + 1)?);
                    if !self.take(',') && self.peek() != Some(']') {
                        return Err("expected \",\" or \"]\"".to_owned());
                    }
                }
                Ok(Value::List(values))
            }
            Some('"' | '\'') => {
                let mut whole = String::new();
                // Texts that follow each other are one.
                while let Some(quote @ ('"' | '\'')) = self.peek() {
                    self.chars.next();
                    whole.push_str(&self.quoted(quote)?);
                }
                Ok(Value::Word(whole))
            }
            _ => self.bare().map(Value::Word),
        }
    }

    /// A name or a number.
    fn bare(&mut self) -> Result<String, String> {
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
        self.peek();
        let start = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        while self.chars.next_if(|(_, c)| is_of_word(*c)).is_some() {}
        let end = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        match &self.text[start..end] {
            "" => Err("expected a name or a value".to_owned()),
            word => Ok(word.to_owned()),
        }
    }

    /// A text up to its closing quote.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        loop {
            let next = self.chars.next().map(|(_, c)| c).filter(|&c| c != '\n');
            match next.ok_or_else(|| format!("expected {quote} at the end of a text"))? {
                '\\' => match self.chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, c @ ('"' | '\'' | '\\'))) => text.push(c),
                    _ => return Err("expected \\n, \\t or an escaped quote".to_owned()),
                },
                c if c == quote => return Ok(text),
                c => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const WHOLE: &str = r#"
        # As Triton's documentation has it.
        name: "digits"
        platform: "onnxruntime_onnx"
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 28, -1 ] } ]
        output {
          name: "y"; data_type: TYPE_FP32, dims: 10
          label_filename: "labels" '.txt'
        }
        instance_group [ { count: 2 kind: KIND_CPU } ]
        version_policy: { specific: { versions: [1, 3] } }
        dynamic_batching {
          preferred_batch_size: [ 4 ]
          max_queue_delay_microseconds: 500
          default_queue_policy < max_queue_size: 16 timeout_action: REJECT >
        }
    "#;

    #[test]
    fn fields_that_mean_something_here_are_read_and_the_others_named() {
        let config = parse(WHOLE).unwrap();
        assert_eq!((config.max_batch, config.queue), (8, Some(16)));
        assert_eq!(config.max_delay, Duration::from_micros(500));
        assert_eq!(config.versions, Versions::Specific(vec![1, 3]));
        let shapes: Vec<_> = config.tensors.iter().map(|t| t.shape.clone().unwrap()).collect();
        assert_eq!(shapes, [vec![-1, 28, -1], vec![-1, 10]]);
        assert_eq!(config.tensors[1].label_file.as_deref(), Some("labels.txt"));
        let notes = [
            "config.pbtxt: instance_group is not read",
            "config.pbtxt: default_queue_policy.timeout_action is not read",
            "config.pbtxt: dynamic_batching.preferred_batch_size is not read",
        ];
        assert_eq!(config.notes, notes);
    }

    #[test]
    fn notes_are_few_and_short_however_many_fields_there_are() {
        let fields = |range: std::ops::Range<u32>| -> String {
            range.map(|field| format!("f{field}: 1 f{field} {{}} ")).collect()
        };
        let notes = |text: &str| parse(text).unwrap().notes;
        assert_eq!(notes(&fields(0..32)).len(), 32, "each once");
        let many = notes(&fields(0..1000));
        assert_eq!((many.len(), many[31].as_str()), (33, "config.pbtxt: f31 is not read"));
        assert_eq!(many[32], format!("config.pbtxt: and {} more fields are not read", 2 * 968));
        let long = "a".repeat(1000);
        let short = format!("config.pbtxt: {}… is not read", "a".repeat(64));
        assert_eq!(notes(&format!("{long}: 1")), [short]);
        for text in [long.clone(), format!("max_batch_size: {long}"), format!("backend: {long}")] {
            assert!(parse(&text).unwrap_err().len() < 200);
        }
    }

    #[test]
    fn the_size_of_batches_is_a_number_and_the_last_one_holds() {
        let batch = |size: &str| {
            let text = format!("max_batch_size: {size} input {{ name: \"x\" dims: 2 }}");
            let config = parse(&text).unwrap();
            (config.batching != Batching::Off, config.tensors[0].shape.clone().unwrap())
        };
        for size in ["0", "00", "+0", "[0]", "8 max_batch_size: 0"] {
            assert_eq!(batch(size), (false, vec![2]), "{size}");
        }
        for size in ["8", "+8", "0 max_batch_size: 8"] {
            assert_eq!(batch(size), (true, vec![-1, 2]), "{size}");
        }
    }

    #[test]
    fn a_model_without_batches_has_all_its_sizes() {
        let config = parse("max_batch_size: 0 input { name: \"x\" dims: [2, 3] }").unwrap();
        assert_eq!(config.batching, Batching::Off);
        assert_eq!(config.tensors[0].shape, Some(vec![2, 3]));
        assert_eq!(parse("").unwrap(), ModelConfig::default());
        let policy = |text: &str| parse(text).unwrap().versions;
        assert_eq!(policy("version_policy { all {} }"), Versions::All);
        assert_eq!(policy("version_policy { latest { num_versions: 2 } }"), Versions::Latest(2));
    }

    #[test]
    fn mistakes_and_what_would_change_answers_are_refused_in_words() {
        let deep = "a {".repeat(5000);
        for (text, part) in [
            ("name \"x\"", "line 1: expected \":\""),
            ("\n\ninput [ { name: \"x\" ", "line 3: expected \"}\""),
            ("name: \"x\n\"", "at the end of a text"),
            ("}", "expected a field"),
            ("max_batch_size: many", "max_batch_size: expected a number"),
            ("max_batch_size: -1", "max_batch_size: expected a number"),
            ("platform: \"tensorrt_plan\"", "expected onnxruntime_onnx or onnxruntime"),
            ("ensemble_scheduling { }", "ensembles are not served"),
            ("sequence_batching { }", "state between requests is not kept"),
            ("default_model_filename: \"m.onnx\"", "expected model.onnx, found \"m.onnx\""),
            ("output { name: \"y\" label_filename: \"../x\" }", "label_filename: expected"),
            ("input { dims: 1 }", "expected a name"),
            ("input { name: \"x\" dims: -2 }", "dims: expected sizes"),
            (deep.as_str(), "nested messages"),
            (&"[".repeat(5000), "expected a name"),
            (&format!("a: {}", "[".repeat(5000)), "nested messages"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
