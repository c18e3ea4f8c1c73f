//! A library that is opened, and the process set up for it.
//!
//! The binding panics at some of what a file may be instead of this library, so it is looked at before.
#![allow(unsafe_code, reason = "calls of a library of C")]

use ort::logging::LogLevel;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The oldest library that has all that is called.
const OLDEST: u32 = ort::MINOR_VERSION;
/// A library that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    /// Such as `1.20.1`.
    pub(crate) version: String,
}

/// Opens the library and sets the process up for it.
///
/// # Errors
/// It can't be opened, is another library, or too old.
pub(crate) fn open(path: &Path) -> Result<Opened, String> {
    let shown = path.display();
    let version = version_of(path).map_err(|why| format!("{shown}: {why}"))?;
    // Its errors come with its answers; what it would print besides belongs into no log.
    let silent = Arc::new(|_: LogLevel, _: &str, _: &str, _: &str, _: &str| {});
    let begin = || {
        let builder = ort::init_from(path).map_err(|error| error.to_string())?;
        builder.with_name("forebay").with_telemetry(false).with_logger(silent).commit();
        ort::environment::Environment::current().map(drop).map_err(|error| error.to_string())
    };
    // The binding panics at some of what a library may be.
    let begun = catch_unwind(AssertUnwindSafe(begin));
    let begun = begun.unwrap_or_else(|_| Err("its binding panicked".to_owned()));
    begun.map_err(|why| format!("{shown}: {why}"))?;
    Ok(Opened { path: path.to_owned(), version })
}

/// The version that a library says it has.
fn version_of(path: &Path) -> Result<String, String> {
    type Base = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: the operator names the library, whose initialisers run; a child has run them before.
    let library = unsafe { libloading::Library::new(path) };
    let library = library.map_err(|error| with_causes(&error))?;
    // SAFETY: a function of this name is the library's entry, of this type since its first version.
    let base = unsafe { library.get::<Base>(b"OrtGetApiBase") };
    let base = base.map_err(|_| "expected ONNX Runtime, found another library".to_owned())?;
    // SAFETY: as above; a null pointer is asked for before it is read.
    let base = unsafe { base().as_ref() };
    let base = base.ok_or_else(|| "expected ONNX Runtime, found a broken one".to_owned())?;
    // SAFETY: it gives a text that lives as long as the library, which stays open until the text is copied.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    let version = version.to_string_lossy().into_owned();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < OLDEST) || !version.starts_with("1.") {
        return Err(format!("expected ONNX Runtime 1.{OLDEST} or newer, found {version}"));
    }
    // It stays open: the process opens it again at once.
    std::mem::forget(library);
    Ok(version)
}

/// An error with what has led to it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
