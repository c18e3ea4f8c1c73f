//! Configuration files: whatever they hold, all that is wrong is said and shown.
#![no_main]
use forebay_config::{Document, Section, Table};
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use libfuzzer_sys::fuzz_target;

fn read(root: &Table<'_, '_>) {
    let _ = Queue::read(&root.table_or_empty("queue"));
    let _ = Retry::read(&root.table_or_empty("retry"));
    let _ = Hedge::read(&root.table_or_empty("hedge"));
    let _ = Ejection::read(&root.table_or_empty("ejection"));
    let _ = ProbeSchedule::checked(&root.table_or_empty("probe"));
    let _ = root.named("pool");
    let _ = root.names_or_tables("endpoints");
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let document = Document::parse(source);
    read(&document.root());
    if let Err(diagnostics) = document.finish() {
        let text = diagnostics.render("forebay.toml");
        assert!(!text.is_empty());
        // A terminal shows what is printed, so nothing of the file may steer it.
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
});
