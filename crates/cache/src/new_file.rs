//! Files that have their name when they are whole.
//!
//! A process may be killed at any moment, and several may write at once: two that meet when one takes the other's place,
//! or two tasks of one. So each file is written under a name of its own, and gets its real one when all of it is on the disk.
//! Those of killed processes stay under the former name and would fill the disk. One that is still written is locked
//! by its process, so that the others are known and can be removed.

use crate::sealed;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The end of the name of a file that is being written, before a random number.
const NEW: &str = "new-";

/// A file that is being written. It is removed if it gets no other name.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    /// An empty one beside `path`, for this user alone.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let random = sealed::random().ok_or(ErrorKind::Unsupported)?;
        let path = path.with_extension(format!("{NEW}{random:016x}"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let new = Self { file, path };
        match new.file.try_lock() {
            // Another process takes it for a left-over one at this very moment.
            Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            // Where a file system has no locks, nothing is removed either.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(new),
        }
    }

    /// The file, to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Lets it take the place of `path`. Its bytes should be on the disk; the name is after [`sync_folder`].
    ///
    /// # Errors
    /// It can't be renamed.
    pub fn replace(&self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)
    }

    /// Gives it the name `path` as well, if there is no such file.
    ///
    /// # Errors
    /// There is one (`AlreadyExists`), or it can't be linked.
    pub fn link(&self, path: &Path) -> io::Result<()> {
        std::fs::hard_link(&self.path, path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After it was renamed, there is none.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the names in the folder of `path` to the disk.
///
/// # Errors
/// It can't be written.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes what killed processes have left of new files for `path`; returns the number of files.
pub fn remove_left_over(path: &Path) -> usize {
    let (Some(folder), Some(stem)) = (path.parent(), path.file_stem()) else { return 0 };
    let Ok(found) = std::fs::read_dir(folder) else { return 0 };
    let is_new = |path: &PathBuf| {
        let end = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        path.file_stem() == Some(stem) && end.starts_with(NEW)
    };
    // Opening anything but a file could wait without end.
    let files = found.flatten().filter(|it| it.file_type().is_ok_and(|kind| kind.is_file()));
    let is_left_over = |path: &PathBuf| File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    let left_over = files.map(|it| it.path()).filter(is_new).filter(is_left_over);
    left_over.filter(|path| std::fs::remove_file(path).is_ok()).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("forebay-new-file-{:x}", sealed::random().unwrap());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            let name = |it: io::Result<std::fs::DirEntry>| it.unwrap().file_name();
            let mut names: Vec<_> = entries.map(|it| name(it).into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn new(path: &Path, text: &str) -> NewFile {
        let new = NewFile::create(path).unwrap();
        new.file().write_all(text.as_bytes()).unwrap();
        new
    }

    #[test]
    fn each_has_a_name_of_its_own_until_it_is_whole() {
        let folder = Folder::new();
        let path = folder.0.join("answers");
        let (one, two) = (new(&path, "one"), new(&path, "two"));
        assert_eq!(folder.names().len(), 2);
        two.replace(&path).unwrap();
        drop(two);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(one.link(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        one.link(&folder.0.join("secret")).unwrap();
        sync_folder(&path).unwrap();
        drop(one);
        assert_eq!(folder.names(), ["answers", "secret"]);
        assert_eq!(std::fs::read(folder.0.join("secret")).unwrap(), b"one");
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_nothing_else() {
        let folder = Folder::new();
        let path = folder.0.join("answers");
        for name in ["answers", "answers.new-17", "answers.new-0a", "answers.old", "other.new-1"] {
            std::fs::write(folder.0.join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.0.join("answers.new-folder")).unwrap();
        let written = new(&path, "it is written now");
        assert_eq!(remove_left_over(&path), 2);
        let names = folder.names();
        assert_eq!(names.len(), 5, "{names:?}");
        written.replace(&path).unwrap();
        assert_eq!(remove_left_over(&path), 0);
        let rest = ["answers", "answers.new-folder", "answers.old", "other.new-1"];
        assert_eq!(folder.names(), rest);
        assert_eq!(remove_left_over(&folder.0.join("nowhere/answers")), 0);
    }
}
