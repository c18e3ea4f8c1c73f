//! Small models that were once answered wrongly: see `cases/README.md`.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../examples/cases.rs"]
#[allow(dead_code, reason = "the example's own main function")]
mod runner;

use forebay_tract::LoadOptions;
use std::path::Path;

fn verdicts(options: &LoadOptions) -> Vec<(String, &'static str, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    let verdict = |path: &std::path::PathBuf| {
        let (verdict, why) = runner::case(path, options).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), verdict, why)
    };
    cases.iter().map(verdict).collect()
}

#[test]
fn each_case_is_answered_rightly() {
    let options = LoadOptions { max_batch: 32, allow_quantized: true, ..LoadOptions::default() };
    let verdicts = verdicts(&options);
    assert!(!verdicts.is_empty());
    let wrong: Vec<_> = verdicts.iter().filter(|(_, verdict, _)| *verdict != "ok").collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, by) in [
        ("autoscale", "reduces over rows"),
        ("autoif", "reduces over rows"),
        ("rows_data_dependent", "depends on values"),
        ("if_more_rows", "depends on the number of rows"),
        ("if_more_rows_shared", "depends on the number of rows"),
        ("five_rows", "depends on the number of rows"),
        ("five_rows_step", "depends on the number of rows"),
        ("columns_as_rows", "depends on the number of rows"),
    ] {
        let (.., why) = verdicts.iter().find(|(found, ..)| found == name).unwrap();
        assert!(why.contains("None") && why.contains(by), "{name}: {why}");
    }
}
