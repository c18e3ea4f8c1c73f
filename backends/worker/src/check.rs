//! `forebay-worker check PATH...`: models as they would be served, without serving them.
//!
//! A model is tried on the machine of the person who exports it, not in production: its operators and their
//! sets, the inputs and outputs, the build that is chosen, whether requests are joined and why not, memory and
//! time; or the reason for which it is refused. A path is a repository, a model's directory in one, or a file.

use crate::config::model::ModelConfig;
use crate::engines;
use crate::repository::model_files::ModelFiles;
use forebay_engine::{Engines, ModelFile};
use forebay_protocol::oip::TensorMetadata;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// The word that makes the program do this.
pub(crate) const WORD: &str = "check";
/// Longest model file, in bytes: protobuf's own limit.
const MAX_MODEL: u64 = 2 << 30;
/// Stack of the thread that loads: graphs are walked recursively.
const STACK: usize = 64 << 20;

/// Checks each path; the status is 1 if a model can't be served, 2 if there is none.
pub(crate) fn main(paths: &[OsString]) -> ExitCode {
    let paths = paths.to_vec();
    let all = move || {
        let engines = engines::all();
        let (mut ready, mut failed) = (0, Vec::new());
        for path in &paths {
            for (name, report) in of_path(Path::new(path), &engines) {
                let (text, is_ready) = match report {
                    Ok(text) => (text, true),
                    Err(text) => (text, false),
                };
                say(&format!("{name}\n{text}\n"));
                if is_ready { ready += 1 } else { failed.push(name) }
            }
        }
        (ready, failed)
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(all);
    let Some((ready, failed)) = thread.ok().and_then(|thread| thread.join().ok()) else {
        return ExitCode::from(1);
    };
    let all = ready + failed.len();
    let failed_names = failed.join(", ");
    say(&match (all, failed.as_slice()) {
        (0, _) => "expected models, found none\n".to_owned(),
        (_, []) => format!("{ready} of {all} models can be served\n"),
        _ => format!("{ready} of {all} models can be served; failed: {failed_names}\n"),
    });
    ExitCode::from(if all == 0 { 2 } else { u8::from(!failed.is_empty()) })
}

/// To standard output; what is closed wants no text.
fn say(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

type Report = (String, Result<String, String>);

fn of_path(path: &Path, engines: &Engines) -> Vec<Report> {
    let name = path.display().to_string();
    let Ok(path) = path.canonicalize() else {
        return vec![(name, Err("  expected a file or folder, found none".to_owned()))];
    };
    if path.is_file() {
        return vec![(name, of_file(&path, engines))];
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
    let files = match ModelFiles::new(root, MAX_MODEL, engines.clone()) {
        Ok(files) => files,
        Err(error) => return vec![(name, Err(format!("  {error}")))],
    };
    let names = match only {
        Some(only) => vec![only],
        None => files.names().unwrap_or_default(),
    };
    names.into_iter().flat_map(|name| of_model(&files, &name)).collect()
}

fn of_model(files: &ModelFiles, name: &str) -> Vec<Report> {
    let found = match files.model(name) {
        Ok(found) => found,
        Err(error) => return vec![(name.to_owned(), Err(format!("  refused: {error}")))],
    };
    let report = |&number: &u64| {
        let checked = || -> Result<String, String> {
            let text = |error: &dyn std::fmt::Display| format!("  refused: {error}");
            let located = files.locate(name, number, found.config.engine).map_err(|e| text(&e))?;
            let bytes = files.bytes(&located).map_err(|e| text(&e))?;
            let file = ModelFile { name: located.file, bytes: &bytes };
            of_bytes(&*located.engine, file, &found.config)
        };
        (format!("{name}/{number}"), checked())
    };
    found.numbers.iter().map(report).collect()
}

/// A file that is in no repository, as it would be with the defaults.
fn of_file(path: &Path, engines: &Engines) -> Result<String, String> {
    let engine = engines.iter().next().ok_or("  expected an engine, found none")?;
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("  refused: {error}"));
    let beside = |name: &str| {
        let file = path.with_file_name(name);
        std::fs::read(&file).map_err(|error| {
            forebay_engine::LoadError::Refused(format!("{}: {error}", file.display()))
        })
    };
    let bytes = engine.whole(read(path)?, &beside).map_err(|e| format!("  refused: {e}"))?;
    let name = engine.files().first().copied().unwrap_or_default();
    of_bytes(&**engine, ModelFile { name, bytes: &bytes }, &ModelConfig::default())
}

fn of_bytes(
    engine: &dyn forebay_engine::Engine,
    file: ModelFile<'_>,
    config: &ModelConfig,
) -> Result<String, String> {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| text.push_str(&format!("  {what:14} {value}\n"));
    match engine.outline(file) {
        Ok(facts) => facts.iter().for_each(|(what, value)| line(what, value)),
        Err(error) => return Err(format!("  refused        {error}")),
    }
    let started = Instant::now();
    let loaded = engine.load(file, &config.load_options(None), &|| false);
    let took = started.elapsed();
    match loaded {
        Err(error) => {
            line("refused", &error.to_string());
            Err(text)
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
            Ok(text)
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
