//! The shared library of ONNX Runtime: which file it is, and when it is opened.
//!
//! A process opens one library, once, and keeps it. The search only looks for files; opening one runs code of
//! it, so that waits until a model needs it.

use crate::open::{Opened, open};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The values of the setting that are no path.
const OFF: &str = "off";
const AUTO: &str = "auto";
/// A path of the library that other programs know as well, and the search path of the system's loader.
const PATH: &str = "ORT_DYLIB_PATH";
const SEARCH: &str = "LD_LIBRARY_PATH";
/// Folders of libraries, those of the system's own packages last.
const FOLDERS: [&str; 9] = [
    "/opt/onnxruntime/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];
/// Name of the library; behind it may stand its version, such as `.1.20.1`.
const NAME: &str = "libonnxruntime.so";

/// The library that models may be run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// None is wanted.
    Off,
    /// None was found.
    Absent,
    /// This file.
    At(PathBuf),
}

impl Library {
    /// The library of a setting: `off`, `auto`, or the path of the library or of a folder with one.
    ///
    /// # Errors
    /// There is none at the path.
    pub fn find(setting: &Path) -> Result<Self, String> {
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
        match setting.to_str() {
            Some(OFF) => Ok(Self::Off),
            Some(AUTO) => {
                let search = variable(SEARCH);
                let folders = std::env::split_paths(&search).filter(|path| path.is_absolute());
                let own = PathBuf::from(variable(PATH));
                let places = [own].into_iter().chain(folders).chain(FOLDERS.map(PathBuf::from));
                Ok(search_in(places).map_or(Self::Absent, Self::At))
            }
            _ => {
                let found = search_in([setting.to_owned()]).map(Self::At);
                found.ok_or_else(|| {
                    let path = setting.display();
                    format!("expected {NAME}, or a folder with it, found none at {path}")
                })
            }
        }
    }

    /// Why there is none, and how that is mended; `None` if there is one.
    pub(crate) fn missing(&self) -> Option<String> {
        match self {
            Self::Off => Some(
                "--onnxruntime auto, or the path of libonnxruntime.so (it is in the Python package \
                 onnxruntime, for one), lets ONNX Runtime run it"
                    .to_owned(),
            ),
            Self::Absent => Some(
                "ONNX Runtime was not found; --onnxruntime with the path of libonnxruntime.so (it is in \
                 the Python package onnxruntime, for one) lets it run it"
                    .to_owned(),
            ),
            Self::At(_) => None,
        }
    }

    /// Opens it, unless that has been done.
    ///
    /// # Errors
    /// It can't be opened, is no library of ONNX Runtime, or one that is too old.
    pub(crate) fn open(&self) -> Result<&'static Opened, String> {
        static OPENED: OnceLock<Opened> = OnceLock::new();
        static OPENING: Mutex<()> = Mutex::new(());
        let path = match (self, self.missing()) {
            (Self::At(path), None) => path,
            (_, why) => return Err(why.unwrap_or_default()),
        };
        let opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match OPENED.get() {
            Some(opened) => opened,
            // One that fails may be mended.
            None => {
                let opened = open(path)?;
                OPENED.get_or_init(|| opened)
            }
        };
        drop(opening);
        if opened.path == *path {
            return Ok(opened);
        }
        let (path, other) = (path.display(), opened.path.display());
        Err(format!("expected {path}, found {other} opened already by this process"))
    }
}

/// The first of these that is a file, or a folder with a library in it.
fn search_in(places: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    places.into_iter().find_map(|place| {
        if place.is_file() {
            return place.canonicalize().ok();
        }
        let entries = std::fs::read_dir(&place).ok()?.flatten().map(|entry| entry.path());
        let version = |path: &PathBuf| {
            let rest = path.file_name()?.to_str()?.strip_prefix(NAME)?;
            let numbers = rest.split('.').skip(1).map(|part| part.parse::<u32>().ok());
            numbers.collect::<Option<Vec<u32>>>().filter(|_| path.is_file())
        };
        let found = entries.filter_map(|path| Some((version(&path)?, path)));
        found.max().and_then(|(_, path)| path.canonicalize().ok())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_found_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("forebay-library-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(search_in([folder.clone()]), None);
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.20.1", "libonnxruntime.so.old"]
        {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let real = folder.canonicalize().unwrap();
        let newest = real.join("libonnxruntime.so.1.20.1");
        assert_eq!(search_in([PathBuf::new(), folder.clone()]), Some(newest));
        let file = folder.join("libonnxruntime.so.1.9.0");
        let own = real.join("libonnxruntime.so.1.9.0");
        assert_eq!(Library::find(&file), Ok(Library::At(own)));
        std::fs::remove_dir_all(&folder).unwrap();
        let error = Library::find(&file).unwrap_err();
        assert!(error.starts_with("expected libonnxruntime.so, or a folder with it"), "{error}");
        assert_eq!(Library::find(Path::new("off")), Ok(Library::Off));
    }
}
