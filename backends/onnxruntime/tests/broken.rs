//! Libraries that are none: in a process of its own, since a process opens one.
#![allow(clippy::unwrap_used, reason = "tests")]

use forebay_engine::{Engine, LoadError, LoadOptions, ModelFile};
use forebay_onnxruntime::{Library, OnnxRuntime};
use std::path::Path;

/// Why a sound model can't be loaded with this library.
fn refused(library: Library) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let bytes = std::fs::read(root.join("worker/tests/models/arith/1/model.onnx")).unwrap();
    let file = ModelFile { name: "model.onnx", bytes: &bytes };
    let engine = OnnxRuntime::new(library);
    match engine.load(file, &LoadOptions::default(), &|| false).unwrap_err() {
        LoadError::Unsupported(why) => why,
        other => format!("{other:?}"),
    }
}

#[test]
fn a_library_that_is_none_is_an_error_in_words() {
    let folder = std::env::temp_dir().join(format!("forebay-broken-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = folder.join("libonnxruntime.so");
    let at = || Library::find(&text).unwrap();
    std::fs::write(&text, "no library").unwrap();
    let why = refused(at());
    assert!(why.contains("libonnxruntime.so: ") && why.contains("file too short"), "{why}");
    std::fs::write(&text, [b"\x7fELF".as_slice(), &[2; 4096]].concat()).unwrap();
    assert!(refused(at()).contains("libonnxruntime.so: "));
    // A library that every program has open.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let other = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let other = other.into_iter().find(|path| path.contains("/libc.so"));
    if let Some(other) = other {
        std::fs::copy(other, &text).unwrap();
        let why = refused(Library::find(Path::new(other)).unwrap());
        assert!(why.contains("expected ONNX Runtime, found another library"), "{why}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_a_library_the_refusal_says_how_to_get_one() {
    for library in [Library::Off, Library::Absent] {
        let why = refused(library);
        assert!(why.contains("--onnxruntime"), "{why}");
    }
}
