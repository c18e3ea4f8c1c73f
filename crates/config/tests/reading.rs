//! Diagnostics for right and wrong files, as an operator sees them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use forebay_config::{ByteSize, Document, Rate, Ratio};
use std::net::SocketAddr;
use std::time::Duration;

#[test]
fn values_with_units_are_read() {
    let document = Document::parse(
        "a = \"250ms\"\nb = \"64KiB\"\nc = \"500/s\"\nd = \"20%\"\ne = \"[::1]:80\"\nf = \"1.5h\"\ng = [1, 2]\n",
    );
    {
        let root = document.root();
        assert_eq!(root.get("a"), Some(Duration::from_millis(250)));
        assert_eq!(root.get("b"), Some(ByteSize(65536)));
        assert_eq!(root.get("c"), Some(Rate(500.0)));
        assert_eq!(root.get("d"), Some(Ratio(0.2)));
        assert_eq!(root.get("e"), "[::1]:80".parse::<SocketAddr>().ok());
        assert_eq!(root.get("f"), Some(Duration::from_secs(5400)));
        assert_eq!(root.get("g"), Some(vec![1_u64, 2]));
        assert_eq!(root.or("absent", 7_u64), 7);
    }
    assert_eq!(document.finish(), Ok(()));
}

#[test]
fn every_error_is_reported_with_its_place() {
    let source = "\
timeout = 250
sise = \"64KiB\"
[probe]
interval = \"soon\"
rise = -1
kind = \"ftp\"
[[route]]
pool = 3
";
    let document = Document::parse(source);
    {
        let root = document.root();
        root.get::<Duration>("timeout");
        root.get::<ByteSize>("size");
        let probe = root.table_or_empty("probe");
        probe.get::<Duration>("interval");
        probe.within("rise", 1..=10_u64, 1);
        probe.choice("kind", &[("http", 1), ("tcp", 2)], 1);
        for route in root.tables("route") {
            route.required::<String>("pool");
            route.required::<String>("name");
        }
    }
    let found = document.finish().unwrap_err();
    let at: Vec<_> = found.iter().map(|d| (d.line, d.column)).collect();
    assert_eq!(at, [(1, 11), (2, 1), (4, 12), (5, 8), (6, 8), (7, 1), (8, 8)]);
    let text = found.render("x.toml");
    for expected in [
        "x.toml:1:11: timeout: expected a duration such as \"250ms\", \"10s\" or \"5m\", found the number 250",
        "sise: unknown key, did you mean \"size\"?",
        "probe.interval: expected a duration such as \"250ms\", \"10s\" or \"5m\", found \"soon\"",
        "probe.kind: expected \"http\" or \"tcp\", found \"ftp\"",
        "route.*.name: expected a string, found nothing",
        "  4 | interval = \"soon\"\n                 ^^^^^^",
    ] {
        assert!(text.contains(expected), "{expected}\n--- not in\n{text}");
    }
}

#[test]
fn syntax_errors_are_reported_beside_the_others() {
    let document = Document::parse("a = \nb = 3\nc = = 4\n");
    document.root().get::<String>("b");
    assert!(document.finish().unwrap_err().iter().len() >= 3);
}

#[test]
fn no_source_makes_it_panic() {
    for source in ["", "\u{feff}", "\"é = \n[é", "[[[[", "a = \"\u{1F600}\nb", "a.b.c = 1\n[a]\n"]
    {
        let document = Document::parse(source);
        drop(document.root());
        if let Err(found) = document.finish() {
            assert!(!found.render("x").is_empty());
        }
    }
}

#[test]
fn nonsense_amounts_are_refused() {
    for text in ["", "ms", "-1ms", "1e9s", "1.2.3s", "99999999d", "1 parsec", "NaNs"] {
        let source = format!("a = {text:?}");
        let document = Document::parse(&source);
        assert_eq!(document.root().get::<Duration>("a"), None, "{text}");
    }
}

#[test]
fn items_are_read_and_judged_one_by_one() {
    let document = Document::parse("a = [1, \"x\", 2]\nb = 3\n");
    {
        let root = document.root();
        let (items, span) = root.items::<u64>("a").unwrap();
        let values: Vec<_> = items.iter().map(|item| item.as_ref().map(|(n, _)| *n)).collect();
        assert_eq!(values, [Some(1), None, Some(2)]);
        assert_eq!((items[2].as_ref().unwrap().1.clone(), span), (13..14, 4..15));
        assert!(root.items::<u64>("b").is_none() && root.items::<u64>("c").is_none());
    }
    let errors = document.finish().unwrap_err();
    let errors: Vec<_> = errors.iter().map(|e| (e.line, e.column, e.message.as_str())).collect();
    assert_eq!(
        errors,
        [
            (1, 9, "a: expected a whole number of 0 or more, found \"x\""),
            (2, 5, "b: expected an array, found the number 3"),
        ]
    );
}
