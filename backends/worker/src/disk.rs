//! Models on disk, `<model>/<version>/model.onnx`: read, but not believed.
//!
//! Whoever can write into the repository must not be able to make the worker read what lies outside
//! it, wait for a pipe, or swallow a disk. Names become paths and labels, so they are checked; links
//! are followed only as far as they stay inside; a file with a second name (a hard link) may be
//! anyone's and is refused; each file is read up to a bound.

use crate::model_config::{ModelConfig, Versions};
use forebay_config::file::contained;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most models in a repository, and most versions of one.
const MAX_ENTRIES: usize = 1000;
/// Longest model name.
const MAX_NAME: usize = 128;
/// Longest `model.toml`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Time that reading it may take.
const READING: Duration = Duration::from_secs(30);

/// Longest file of labels, in bytes: a vocabulary of a million.
const MAX_LABELS: u64 = 16 << 20;

/// Longest tokenizer, in bytes: one for a hundred languages has 17 MiB.
const MAX_TOKENIZER: u64 = 64 << 20;

/// Longest example, in bytes, and how many are read of one model.
const MAX_EXAMPLE: u64 = 16 << 20;
const MAX_EXAMPLES: usize = 16;

/// A request and the answer that a model has to give to it, as bodies in JSON.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) name: String,
    pub(crate) request: Vec<u8>,
    pub(crate) expected: Vec<u8>,
}

/// A directory that nothing is read outside of.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Without links.
    root: PathBuf,
    /// Longest model file, in bytes.
    max_model: u64,
}

/// What a model's directory says.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) config: ModelConfig,
    /// The versions that the configuration wants, rising; at least one.
    pub(crate) numbers: Vec<u64>,
}

/// What a model's files looked like: if it is the same later, they were not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(String, [u64; 5])>);

impl Disk {
    /// # Errors
    /// There is no such directory.
    pub(crate) fn new(root: &Path, max_model: u64) -> io::Result<Self> {
        Ok(Self { root: root.canonicalize()?, max_model })
    }

    /// Names of all models, sorted.
    ///
    /// # Errors
    /// The directory can't be read, or holds too much.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = entries(&self.root)?;
        names.retain(|name| self.root.join(name).is_dir());
        names.retain(|name| {
            let fits = is_name(name);
            if !fits {
                tracing::debug!(name, "skipped: expected a name of letters, digits, '-', '_', '.'");
            }
            fits
        });
        Ok(names)
    }

    /// Is there a directory of this name?
    pub(crate) fn has(&self, name: &str) -> bool {
        is_name(name) && !name.starts_with('.') && self.root.join(name).is_dir()
    }

    /// Reads a model's configuration, and which versions there are.
    ///
    /// # Errors
    /// In words: the configuration is wrong, or there is no version that it wants.
    pub(crate) fn model(&self, name: &str) -> Result<Found, String> {
        let config = self.config(name)?;
        let numbers = self.numbers(name, &config.versions)?;
        Ok(Found { config, numbers })
    }

    /// The bytes of one version's model.
    ///
    /// # Errors
    /// In words: it is missing, too long, or not inside the repository.
    pub(crate) fn onnx(&self, name: &str, number: u64) -> Result<Vec<u8>, String> {
        let path = Path::new(name).join(number.to_string()).join("model.onnx");
        self.read(&path, self.max_model)
    }

    /// Requests and the answers expected to them, that lie beside the model's versions:
    /// `examples/NAME.json` and `examples/NAME.expected.json`. Empty if there are none.
    ///
    /// # Errors
    /// In words: one of them can't be read.
    pub(crate) fn examples(&self, name: &str) -> Result<Vec<Example>, String> {
        let folder = Path::new(name).join("examples");
        let Ok(names) = entries(&self.root.join(&folder)) else { return Ok(Vec::new()) };
        let stems = names.iter().filter_map(|name| name.strip_suffix(".expected.json"));
        let read = |stem: &str| {
            Ok(Example {
                request: self.read(&folder.join(format!("{stem}.json")), MAX_EXAMPLE)?,
                expected: self.read(&folder.join(format!("{stem}.expected.json")), MAX_EXAMPLE)?,
                name: stem.to_owned(),
            })
        };
        stems.take(MAX_EXAMPLES).map(read).collect()
    }

    /// The lines of a file beside the model's versions, as names of an output's elements.
    ///
    /// # Errors
    /// In words: it can't be read, or is no text.
    pub(crate) fn labels(&self, name: &str, file: &str) -> Result<Vec<String>, String> {
        let bytes = self.read(&Path::new(name).join(file), MAX_LABELS)?;
        let text = String::from_utf8(bytes).map_err(|error| format!("{file}: {error}"))?;
        Ok(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// The bytes of a tokenizer beside the model's versions.
    ///
    /// # Errors
    /// In words: it can't be read.
    pub(crate) fn tokenizer(&self, name: &str, file: &str) -> Result<Vec<u8>, String> {
        self.read(&Path::new(name).join(file), MAX_TOKENIZER)
    }

    /// Reads a file, its path relative to the repository.
    ///
    /// # Errors
    /// In words: it is missing, longer than `most` bytes, no plain file, or not inside.
    pub(crate) fn read(&self, path: &Path, most: u64) -> Result<Vec<u8>, String> {
        let short = path.display();
        let file = self.open(path)?;
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes).map_err(|error| format!("{short}: {error}"))?;
        if bytes.len() as u64 > most {
            return Err(format!("{short}: expected at most {most} bytes, found more"));
        }
        Ok(bytes)
    }

    /// What the model's files look like now: those beside the versions, and the versions' own.
    pub(crate) fn stamp(&self, name: &str) -> Stamp {
        let folder = self.root.join(name);
        let mut files = entries(&folder).unwrap_or_default();
        for file in &mut files {
            if number(file).is_some() {
                file.push_str("/model.onnx");
            }
        }
        let look = |file: String| {
            let data = std::fs::metadata(folder.join(&file)).ok()?;
            let time = |seconds: i64, nanos: i64| {
                seconds.cast_unsigned().wrapping_mul(1_000_000_000) ^ nanos.cast_unsigned()
            };
            let modified = time(data.mtime(), data.mtime_nsec());
            let changed = time(data.ctime(), data.ctime_nsec());
            // A directory's own times change with whatever lies in it.
            let stamp = [data.len(), modified, changed, data.ino(), data.dev()];
            Some((file, if data.is_dir() { [0; 5] } else { stamp }))
        };
        Stamp(files.into_iter().filter_map(look).collect())
    }

    fn config(&self, name: &str) -> Result<ModelConfig, String> {
        let path = Path::new(name).join("model.toml");
        if self.root.join(&path).symlink_metadata().is_err() {
            return Ok(ModelConfig::default());
        }
        let failed = |error: &dyn Display| format!("model.toml: {error}");
        let bytes = self.read(&path, MAX_CONFIG)?;
        let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
        // Whatever the file does to its reader, the thread that loads models goes on.
        let parsed = contained(READING, move || ModelConfig::parse(&text));
        parsed.map_err(|failure| failed(&failure))?.map_err(|error| failed(&error))
    }

    /// The numbers that are there and wanted; at least one.
    fn numbers(&self, name: &str, wanted: &Versions) -> Result<Vec<u64>, String> {
        let names = entries(&self.root.join(name)).map_err(|error| error.to_string())?;
        let mut found: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
        found.sort_unstable();
        if let Versions::Specific(wanted) = wanted
            && let Some(missing) = wanted.iter().find(|number| !found.contains(number))
        {
            return Err(format!("expected version {missing}, found only {found:?}"));
        }
        match wanted {
            Versions::Latest(count) => {
                found.drain(..found.len().saturating_sub(*count));
            }
            Versions::All => {}
            Versions::Specific(wanted) => found.retain(|number| wanted.contains(number)),
        }
        if found.is_empty() {
            return Err("expected a directory such as 1/ with a model.onnx, found none".to_owned());
        }
        Ok(found)
    }

    /// Opens a plain file with one name, inside the repository once all links are followed.
    fn open(&self, path: &Path) -> Result<File, String> {
        let short = path.display();
        let failed = |error: &dyn Display| format!("{short}: {error}");
        let real = self.root.join(path).canonicalize().map_err(|error| failed(&error))?;
        let Ok(inner) = real.strip_prefix(&self.root) else {
            return Err(format!("{short} leads out of the repository"));
        };
        let file = self.open_beneath(inner).map_err(|error| failed(&error))?;
        let data = file.metadata().map_err(|error| failed(&error))?;
        if !data.is_file() {
            return Err(format!("{short}: expected a plain file, found something else"));
        }
        if data.nlink() > 1 {
            let links = data.nlink();
            return Err(format!(
                "{short}: expected a file with one name, found {links} hard links: \
                 the others may lie outside the repository"
            ));
        }
        Ok(file)
    }

    /// Between following the links and opening, a link could be put in: the kernel refuses any here.
    fn open_beneath(&self, inner: &Path) -> io::Result<File> {
        // A pipe is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let root = File::open(&self.root)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&root, inner, flags, Mode::empty(), resolve) {
            Ok(file) => Ok(file.into()),
            // Kernels before 5.6, and sandboxes that do not know the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                let flags = flags | OFlags::NOFOLLOW;
                Ok(rustix::fs::openat(&root, inner, flags, Mode::empty())?.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Names in a directory, sorted; hidden ones and those that are not UTF-8 are passed over.
fn entries(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        if names.len() == MAX_ENTRIES {
            let text = format!("expected at most {MAX_ENTRIES} entries in {}", path.display());
            return Err(io::Error::other(text));
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= MAX_NAME && !name.is_empty() && name.chars().all(fits)
}

/// A version as Triton writes it: digits without leading zeros, from 1.
fn number(name: &str) -> Option<u64> {
    let digits = name.bytes().all(|b| b.is_ascii_digit()) && !name.starts_with('0');
    if digits { name.parse().ok() } else { None }
}
