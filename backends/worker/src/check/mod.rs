//! `forebay-worker check PATH...`: models as they would be served, without serving them.
//!
//! A model is tried on the machine of the person who exports it, not in production: its operators and their
//! sets, the inputs and outputs, the build that is chosen, whether requests are joined and why not, memory and
//! time; or the reason for which it is refused. A path is a repository, a model's directory in one, or a file.
//! With `--against`, another engine's answers to the same inputs are put beside those of the chosen one.

mod against;
mod report;

use self::report::line;
use crate::config::model::ModelConfig;
use crate::engines;
use crate::repository::model_files::ModelFiles;
use clap::Parser;
use forebay_engine::{Engine, Engines, LoadError, Model, ModelFile};
use forebay_protocol::oip::TensorMetadata;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// The word that makes the program do this.
pub(crate) const WORD: &str = "check";
/// Longest model file, in bytes: protobuf's own limit.
const MAX_MODEL: u64 = 2 << 30;
/// Stack of the thread that loads: graphs are walked recursively.
const STACK: usize = 64 << 20;

/// Say how models would be served, and why they would not, without serving them.
#[derive(Debug, Parser)]
#[command(
    name = "forebay-worker check",
    after_help = "\
Exit codes:
  0  every model can be served (and agrees, with --against)
  1  a model can't be served, or differs
  2  there is none, or the command line is wrong"
)]
struct Cli {
    /// Model repositories, directories of models in one, or ONNX files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Compare the outputs with those of this engine, on inputs that are drawn
    #[arg(long, value_name = "ENGINE")]
    against: Option<String>,
    /// Shared library of ONNX Runtime, a folder with one, "auto" or "off" [default: off, with --against: auto]
    #[arg(long, value_name = "PATH|auto|off")]
    onnxruntime: Option<PathBuf>,
}

/// Engines, and the one of them that models are compared with.
struct Given {
    engines: Engines,
    against: Option<Arc<dyn Engine>>,
}

impl Given {
    fn new(cli: &Cli) -> Result<Self, String> {
        let default = PathBuf::from(if cli.against.is_some() { "auto" } else { "off" });
        let engines = engines::with(cli.onnxruntime.as_ref().unwrap_or(&default))
            .map_err(|why| format!("--onnxruntime: {why}"))?;
        let Some(name) = &cli.against else { return Ok(Self { engines, against: None }) };
        let known: Vec<_> = engines.names().collect();
        let known = known.join(" or ");
        let engine = engines.get(name).cloned();
        let engine =
            engine.ok_or_else(|| format!("--against: expected {known}, found \"{name}\""))?;
        match engine.missing() {
            Some(why) => Err(format!("--against: {why}")),
            None => Ok(Self { engines, against: Some(engine) }),
        }
    }
}

/// Checks each path; the status is 1 if a model can't be served, 2 if there is none. `args` begin with the
/// program's name.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // If the stream is closed, the text is lost.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let given = match Given::new(&cli) {
        Ok(given) => given,
        Err(error) => {
            say(&format!("forebay-worker check: {error}\n"));
            return ExitCode::from(2);
        }
    };
    let paths = cli.paths;
    let against = given.against.as_ref().map(|engine| engine.name());
    let all = move || {
        let mut all = Vec::new();
        for path in &paths {
            for (name, (text, verdict)) in of_path(path, &given) {
                say(&format!("{name}\n{text}\n"));
                all.push((name, verdict));
            }
        }
        all
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(all);
    let Some(all) = thread.ok().and_then(|thread| thread.join().ok()) else {
        return ExitCode::from(1);
    };
    say(&summary(&all, against.unwrap_or_default()));
    let is_right = all.iter().all(|(_, verdict)| *verdict == Verdict::Ready);
    ExitCode::from(if all.is_empty() { 2 } else { u8::from(!is_right) })
}

/// The last line.
fn summary(all: &[(String, Verdict)], against: &str) -> String {
    if all.is_empty() {
        return "expected models, found none\n".to_owned();
    }
    let those = |verdict: Verdict| {
        let names = all.iter().filter(|(_, own)| *own == verdict).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>()
    };
    let (failed, differ) = (those(Verdict::Failed), those(Verdict::Differs));
    let mut text = format!("{} of {} models can be served", all.len() - failed.len(), all.len());
    if !failed.is_empty() {
        text.push_str(&format!("; failed: {}", failed.join(", ")));
    }
    if !differ.is_empty() {
        let differ = differ.join(", ");
        text.push_str(&format!("; beyond their tolerance of {against}: {differ}"));
    }
    text.push('\n');
    text
}

/// To standard output; what is closed wants no text.
fn say(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// The outcome for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ready,
    /// It can be served, and answers otherwise than the engine that it is compared with.
    Differs,
    Failed,
}

/// The words on a model, and the outcome.
type Said = (String, Verdict);
/// With the model's name.
type Report = (String, Said);

fn failed(why: &dyn std::fmt::Display) -> Said {
    let mut text = String::new();
    line(&mut text, "refused", &why.to_string());
    (text, Verdict::Failed)
}

fn of_path(path: &Path, given: &Given) -> Vec<Report> {
    let name = path.display().to_string();
    let Ok(path) = path.canonicalize() else {
        return vec![(name, failed(&"expected a file or folder, found none"))];
    };
    if path.is_file() {
        return vec![(name, of_file(&path, given))];
    }
    let has_versions = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u64>().is_ok()))
    };
    let (root, only) = match (has_versions(&path), path.parent(), path.file_name()) {
        (true, Some(parent), Some(own)) => (parent, own.to_str().map(str::to_owned)),
        _ => (path.as_path(), None),
    };
    let files = match ModelFiles::new(root, MAX_MODEL, given.engines.clone()) {
        Ok(files) => files,
        Err(error) => return vec![(name, failed(&error))],
    };
    let names = match only {
        Some(only) => vec![only],
        None => files.names().unwrap_or_default(),
    };
    names.into_iter().flat_map(|name| of_model(&files, &name, given)).collect()
}

fn of_model(files: &ModelFiles, name: &str, given: &Given) -> Vec<Report> {
    let found = match files.model(name) {
        Ok(found) => found,
        Err(error) => return vec![(name.to_owned(), failed(&error))],
    };
    let report = |&number: &u64| {
        let read = || -> Result<Vec<Candidate>, Said> {
            let located =
                files.locate(name, number, found.config.engine).map_err(|e| failed(&e))?;
            let read = located.into_iter().map(|located| {
                let bytes = files.bytes(&located).map_err(|e| failed(&e))?;
                Ok((located.engine, located.file, bytes))
            });
            read.collect()
        };
        let said = match read() {
            Ok(read) => of_engines(&read, &found.config, given),
            Err(said) => said,
        };
        (format!("{name}/{number}"), said)
    };
    found.numbers.iter().map(report).collect()
}

/// A file that is in no repository, as it would be with the defaults.
fn of_file(path: &Path, given: &Given) -> Said {
    let beside = |name: &str| {
        let file = path.with_file_name(name);
        std::fs::read(&file)
            .map_err(|error| LoadError::Refused(format!("{}: {error}", file.display())))
    };
    let mut all = Vec::new();
    for engine in given.engines.iter().filter(|engine| engine.missing().is_none()) {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => engine.whole(bytes, &beside),
            Err(error) => return failed(&error),
        };
        let name = engine.files().first().copied().unwrap_or_default();
        match bytes {
            Ok(bytes) => all.push((Arc::clone(engine), name, bytes)),
            Err(error) => return failed(&error),
        }
    }
    of_engines(&all, &ModelConfig::default(), given)
}

/// An engine, the name of the file that it reads, and the whole of that.
type Candidate = (Arc<dyn Engine>, &'static str, Vec<u8>);

/// A model in the first of these engines that runs it.
fn of_engines(candidates: &[Candidate], config: &ModelConfig, given: &Given) -> Said {
    let mut report = String::new();
    for (engine, name, bytes) in candidates {
        let file = ModelFile { name, bytes };
        let (text, model) = of_bytes(&**engine, file, config);
        report.push_str(&text);
        match model {
            Ok(model) => {
                let Some(other) = &given.against else { return (report, Verdict::Ready) };
                let (text, agrees) = against::compare(&*model, &**other, file, config);
                report.push_str(&text);
                return (report, if agrees { Verdict::Ready } else { Verdict::Differs });
            }
            Err(LoadError::Unsupported(_)) => {}
            Err(_) => return (report, Verdict::Failed),
        }
    }
    if config.engine.is_none()
        && let Some(missing) = given.engines.iter().find_map(|engine| engine.missing())
    {
        line(&mut report, "cure", &missing);
    }
    (report, Verdict::Failed)
}

fn of_bytes(
    engine: &dyn Engine,
    file: ModelFile<'_>,
    config: &ModelConfig,
) -> (String, Result<Arc<dyn Model>, LoadError>) {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| line(&mut text, what, value);
    match engine.outline(file) {
        Ok(facts) => facts.iter().for_each(|(what, value)| line(what, value)),
        Err(error) => {
            line("refused", &error.to_string());
            return (text, Err(error));
        }
    }
    let started = Instant::now();
    let loaded = engine.load(file, &config.load_options(None), &|| false);
    let took = started.elapsed();
    match loaded {
        Err(error) => {
            line("engine", engine.name());
            line("refused", &error.to_string());
            (text, Err(error))
        }
        Ok(model) => {
            line("inputs", &tensors(model.inputs()));
            line("outputs", &tensors(model.outputs()));
            let compared = model.compared();
            let compared: Vec<_> =
                compared.iter().map(|(name, s)| format!("{name} {:.3} ms", s * 1e3)).collect();
            line("engine", engine.name());
            line("build", &format!("{} ({})", model.build(), compared.join(", ")));
            let batching = match (model.max_batch(), model.unbatched()) {
                (Some(most), _) => format!("up to {most} rows; best {}", model.curve().best()),
                (None, Some(why)) => format!("each request runs alone: {why}"),
                (None, None) => {
                    "each request runs alone: its first dimensions are fixed, or there \
                                 is no batch"
                        .to_owned()
                }
            };
            line("batching", &batching);
            if let Some(why) = model.closed() {
                line("sizes", &format!("a plan for each: {why}"));
            }
            line("memory", &format!("{:.1} MiB", mebibytes(model.memory())));
            let phases = model.phases();
            let phases: Vec<_> = phases
                .iter()
                .map(|(phase, took)| format!("{phase} {}", took.as_millis()))
                .collect();
            line("loaded in", &format!("{} ms ({})", took.as_millis(), phases.join(", ")));
            (text, Ok(model))
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "to be read")]
fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn tensors(tensors: &[TensorMetadata]) -> String {
    let each = tensors.iter().map(|t| format!("{} {} {:?}", t.name, t.datatype, t.shape));
    each.collect::<Vec<_>>().join(", ")
}
