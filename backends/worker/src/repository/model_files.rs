//! Models on disk, `<model>/<version>/FILE` with a file that an engine reads: read, but not trusted.
//!
//! A person who can write into the repository must not be able to make the worker read files outside it,
//! wait for a pipe, or swallow a disk. Names become paths and labels, so they are checked; links are
//! followed only as far as they stay inside; a file with a second name (a hard link) may be anyone's and is
//! refused. The length of a file is checked before a byte of it is read, and no more than that bound is read
//! of a file that grows meanwhile.
//!
//! A read that fails for a reason of the machine (no descriptor, no memory, a disk that does not answer)
//! says nothing about the model: it is tried again, and the served version stays.

use crate::config::model::{ModelConfig, Versions};
use crate::config::triton;
use crate::repository::error::LoadError;
use forebay_config::file::contained;
use forebay_engine::{Engine, Engines};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Most models in a repository, and most versions of one.
const MAX_ENTRIES: usize = 1000;
/// Longest model name.
const MAX_NAME: usize = 128;
/// Longest `model.toml` or `config.pbtxt`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Time that reading it may take.
const READING: Duration = Duration::from_secs(30);

/// Longest file of labels, in bytes, and most lines in it: a vocabulary of a million.
const MAX_LABELS: u64 = 16 << 20;
const MAX_LABEL_LINES: usize = 1 << 20;

/// Longest tokenizer, in bytes: one for a hundred languages has 17 MiB.
const MAX_TOKENIZER: u64 = 64 << 20;

/// Longest example, in bytes, how many are read of one model, and how long all may be together.
const MAX_EXAMPLE: u64 = 16 << 20;
const MAX_EXAMPLES: usize = 16;
const MAX_ALL_EXAMPLES: u64 = 64 << 20;

/// A request and the answer that a model has to give to it, as bodies in JSON.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) name: String,
    pub(crate) request: Vec<u8>,
    pub(crate) expected: Vec<u8>,
}

/// A directory that nothing is read outside of.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    /// Without links.
    root: PathBuf,
    /// Longest model file, in bytes.
    max_model: u64,
    engines: Engines,
}

/// A version's model: the file, and the engine that reads it.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) engine: Arc<dyn Engine>,
    /// The file's own name.
    pub(crate) file: &'static str,
    /// Within the repository.
    path: PathBuf,
}

/// The contents of a model's directory.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) config: ModelConfig,
    /// The versions that the configuration wants, rising; at least one.
    pub(crate) numbers: Vec<u64>,
}

/// The state of a model's files: if it is the same later, they were not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(String, [u64; 5])>);

impl ModelFiles {
    /// # Errors
    /// There is no such directory.
    pub(crate) fn new(root: &Path, max_model: u64, engines: Engines) -> io::Result<Self> {
        Ok(Self { root: root.canonicalize()?, max_model, engines })
    }

    /// The engines that run models.
    pub(crate) fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Names of all models, sorted.
    ///
    /// # Errors
    /// The directory can't be read, or holds too much.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for name in entries(&self.root)? {
            match std::fs::metadata(self.root.join(&name)) {
                Ok(data) if data.is_dir() => names.push(name),
                Ok(_) => {}
                // Gone meanwhile, or a link to nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // It may be there: no model is taken away because the disk does not answer.
                Err(error) => return Err(error),
            }
        }
        names.retain(|name| {
            let fits = is_name(name);
            if !fits {
                tracing::debug!(name, "skipped: expected a name of letters, digits, '-', '_', '.'");
            }
            fits
        });
        Ok(names)
    }

    /// Whether there is a directory of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        is_name(name) && !name.starts_with('.') && self.root.join(name).is_dir()
    }

    /// Reads a model's configuration, and which versions there are.
    ///
    /// # Errors
    /// The configuration is wrong, or there is no version that it wants.
    pub(crate) fn model(&self, name: &str) -> Result<Found, LoadError> {
        let config = self.config(name)?;
        let numbers = self.numbers(name, &config.versions)?;
        Ok(Found { config, numbers })
    }

    /// Finds the files of one version's model, and the engines for them: the one of the name `wanted`, or
    /// else those that read a file that is there, the preferred first. There is at least one.
    ///
    /// # Errors
    /// There is no such file.
    pub(crate) fn locate(
        &self,
        name: &str,
        number: u64,
        wanted: Option<&str>,
    ) -> Result<Vec<Located>, LoadError> {
        let folder = Path::new(name).join(number.to_string());
        let has = |file: &str| match self.root.join(&folder).join(file).symlink_metadata() {
            Ok(_) => true,
            // Opening it reports any other error.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        let found = self.engines.choose(wanted, has).into_iter().map(|(engine, file)| Located {
            engine: Arc::clone(engine),
            file,
            path: folder.join(file),
        });
        let found: Vec<_> = found.collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let path = folder.join(self.engines.files(wanted).join(" or "));
        Err(LoadError::of_io(&path.display(), &rustix::io::Errno::NOENT.into()))
    }

    /// Bytes that a version's model has.
    ///
    /// # Errors
    /// It is missing, too long, or not inside the repository.
    pub(crate) fn length(&self, located: &Located) -> Result<u64, LoadError> {
        self.open(&located.path, self.max_model).map(|(_, length)| length)
    }

    /// BLAKE3 of a version's model, in hexadecimal.
    ///
    /// # Errors
    /// It is missing, too long, or not inside the repository.
    pub(crate) fn digest(&self, located: &Located) -> Result<String, LoadError> {
        Ok(blake3::hash(&self.bytes(located)?).to_hex().to_string())
    }

    /// The bytes of a version's model, with what its file leaves to others beside it.
    ///
    /// # Errors
    /// One of the files is missing, too long, or not inside the repository.
    pub(crate) fn bytes(&self, located: &Located) -> Result<Vec<u8>, LoadError> {
        let bytes = self.read(&located.path, self.max_model)?;
        let folder = located.path.parent().unwrap_or(Path::new(""));
        let left = std::cell::Cell::new(self.max_model.saturating_sub(bytes.len() as u64));
        let beside = |name: &str| {
            let path = folder.join(name);
            let is_link = |data: std::fs::Metadata| data.file_type().is_symlink();
            if self.root.join(&path).symlink_metadata().is_ok_and(is_link) {
                let path = path.display();
                let text = format!("{path}: expected a file of the model's own, found a link");
                return Err(forebay_engine::LoadError::Refused(text));
            }
            let read = self.read(&path, left.get()).map_err(|error| match error {
                LoadError::Bad(text) | LoadError::Unsupported(text) => {
                    forebay_engine::LoadError::Refused(text)
                }
                other => forebay_engine::LoadError::Passing(other.to_string()),
            })?;
            left.set(left.get().saturating_sub(read.len() as u64));
            Ok(read)
        };
        Ok(located.engine.whole(bytes, &beside)?)
    }

    /// Requests and the answers expected to them, that lie beside the model's versions:
    /// `examples/NAME.json` and `examples/NAME.expected.json`. Empty if there are none.
    ///
    /// # Errors
    /// One of them can't be read, or all together are too long.
    pub(crate) fn examples(&self, name: &str) -> Result<Vec<Example>, LoadError> {
        let folder = Path::new(name).join("examples");
        let names = match entries(&self.root.join(&folder)) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(LoadError::of_io(&folder.display(), &error)),
        };
        let mut left = MAX_ALL_EXAMPLES;
        let mut read = |file: String| {
            let bytes = self.read(&folder.join(file), MAX_EXAMPLE)?;
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                let (folder, most) = (folder.display(), MAX_ALL_EXAMPLES);
                LoadError::Bad(format!("{folder}: expected at most {most} bytes in all examples"))
            })?;
            Ok::<_, LoadError>(bytes)
        };
        let mut examples = Vec::new();
        let stems = names.iter().filter_map(|name| name.strip_suffix(".expected.json"));
        for stem in stems.take(MAX_EXAMPLES) {
            examples.push(Example {
                request: read(format!("{stem}.json"))?,
                expected: read(format!("{stem}.expected.json"))?,
                name: stem.to_owned(),
            });
        }
        Ok(examples)
    }

    /// The lines of a file beside the model's versions, as names of an output's elements.
    ///
    /// # Errors
    /// It can't be read, is no text, or has too many lines.
    pub(crate) fn labels(&self, name: &str, file: &str) -> Result<Vec<String>, LoadError> {
        let bytes = self.read(&Path::new(name).join(file), MAX_LABELS)?;
        let text = String::from_utf8(bytes).map_err(|error| format!("{file}: {error}"))?;
        let labels: Vec<_> =
            text.lines().take(MAX_LABEL_LINES + 1).map(|line| line.trim().to_owned()).collect();
        if labels.len() > MAX_LABEL_LINES {
            return Err(format!("{file}: expected at most {MAX_LABEL_LINES} lines").into());
        }
        Ok(labels)
    }

    /// The bytes of a tokenizer beside the model's versions.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) fn tokenizer(&self, name: &str, file: &str) -> Result<Vec<u8>, LoadError> {
        self.read(&Path::new(name).join(file), MAX_TOKENIZER)
    }

    /// Reads a file, its path relative to the repository.
    ///
    /// # Errors
    /// It is missing, longer than `most` bytes, no plain file, or not inside.
    fn read(&self, path: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
        let (file, length) = self.open(path, most)?;
        let failed = |error: &io::Error| LoadError::of_io(&path.display(), error);
        let mut bytes = Vec::new();
        // As much as it has: a vector that doubles takes three times a large model.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(length).map_err(|_| failed(&io::ErrorKind::OutOfMemory.into()))?;
        file.take(most + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        if bytes.len() as u64 > most {
            return Err(too_long(path, most, "more"));
        }
        Ok(bytes)
    }

    /// The current state of the model's files: those beside the versions, and the versions' own.
    ///
    /// # Errors
    /// The directory can't be read.
    pub(crate) fn stamp(&self, name: &str) -> io::Result<Stamp> {
        let folder = self.root.join(name);
        let mut files = entries(&folder)?;
        let (versions, mut files): (Vec<_>, Vec<_>) =
            files.drain(..).partition(|file| number(file).is_some());
        // A model may leave parts to any file beside it.
        for version in &versions {
            let beside = entries(&folder.join(version)).unwrap_or_default();
            files.extend(beside.into_iter().map(|file| format!("{version}/{file}")));
        }
        let look = |file: String| {
            let data = std::fs::metadata(folder.join(&file)).ok()?;
            let time = |seconds: i64, nanos: i64| {
                seconds.cast_unsigned().wrapping_mul(1_000_000_000) ^ nanos.cast_unsigned()
            };
            let modified = time(data.mtime(), data.mtime_nsec());
            let changed = time(data.ctime(), data.ctime_nsec());
            // A directory's own times change with any file in it.
            let stamp = [data.len(), modified, changed, data.ino(), data.dev()];
            Some((file, if data.is_dir() { [0; 5] } else { stamp }))
        };
        Ok(Stamp(files.into_iter().filter_map(look).collect()))
    }

    fn config(&self, name: &str) -> Result<ModelConfig, LoadError> {
        let path = Path::new(name).join("model.toml");
        match self.root.join(&path).symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.of_triton(name),
            // It may be there, and then the default would be wrong.
            Err(error) => return Err(LoadError::of_io(&path.display(), &error)),
        }
        let failed = |error: &dyn Display| format!("model.toml: {error}");
        let bytes = self.read(&path, MAX_CONFIG)?;
        let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
        // The thread that loads models survives any fault that the file causes in its reader.
        let engines = self.engines.clone();
        let parsed = contained(READING, move || ModelConfig::parse(&text, &engines));
        let parsed = parsed.map_err(|failure| failed(&failure))?;
        Ok(parsed.map_err(|error| failed(&error))?)
    }

    /// The configuration that another server has for the model, or the default.
    fn of_triton(&self, name: &str) -> Result<ModelConfig, LoadError> {
        let path = Path::new(name).join("config.pbtxt");
        match self.root.join(&path).symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(ModelConfig::default());
            }
            Err(error) => return Err(LoadError::of_io(&path.display(), &error)),
        }
        let text = String::from_utf8(self.read(&path, MAX_CONFIG)?);
        let text = text.map_err(|error| format!("config.pbtxt: {error}"))?;
        Ok(triton::parse(&text).map_err(|error| format!("config.pbtxt: {error}"))?)
    }

    /// The numbers that are there and wanted; at least one.
    fn numbers(&self, name: &str, wanted: &Versions) -> Result<Vec<u64>, LoadError> {
        let names =
            entries(&self.root.join(name)).map_err(|error| LoadError::of_io(&name, &error))?;
        let mut found: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
        found.sort_unstable();
        if let Versions::Specific(wanted) = wanted
            && let Some(missing) = wanted.iter().find(|number| !found.contains(number))
        {
            return Err(format!("expected version {missing}, found only {found:?}").into());
        }
        match wanted {
            Versions::Latest(count) => {
                found.drain(..found.len().saturating_sub(*count));
            }
            Versions::All => {}
            Versions::Specific(wanted) => found.retain(|number| wanted.contains(number)),
        }
        if found.is_empty() {
            let files = self.engines.files(None).join(" or ");
            let text = format!("expected a directory such as 1/ with a {files}, found none");
            return Err(text.into());
        }
        Ok(found)
    }

    /// Opens a plain file with one name and of at most `most` bytes, inside the repository once all
    /// links are followed; gives its length too.
    fn open(&self, path: &Path, most: u64) -> Result<(File, u64), LoadError> {
        let short = path.display();
        let failed = |error: &io::Error| LoadError::of_io(&short, error);
        let real = self.root.join(path).canonicalize().map_err(|error| failed(&error))?;
        let Ok(inner) = real.strip_prefix(&self.root) else {
            return Err(format!("{short} leads out of the repository").into());
        };
        // Opening a device may do something: it is looked at before, and the open file once more.
        let data = real.symlink_metadata().map_err(|error| failed(&error))?;
        let is_plain = data.is_file();
        let opened = is_plain.then(|| self.open_beneath(inner)).transpose();
        let opened = opened.map_err(|error| failed(&error))?;
        let looked = opened.map(|file| file.metadata().map(|data| (file, data))).transpose();
        let looked = looked.map_err(|error| failed(&error))?;
        let Some((file, data)) = looked.filter(|(_, data)| data.is_file()) else {
            return Err(format!("{short}: expected a plain file, found something else").into());
        };
        if data.nlink() > 1 {
            let links = data.nlink();
            return Err(LoadError::Bad(format!(
                "{short}: expected a file with one name, found {links} hard links: \
                 the others may lie outside the repository"
            )));
        }
        if data.len() > most {
            return Err(too_long(path, most, data.len()));
        }
        Ok((file, data.len()))
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

fn too_long(path: &Path, most: u64, found: impl Display) -> LoadError {
    let path = path.display();
    LoadError::Bad(format!("{path}: expected at most {most} bytes, found {found}"))
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
