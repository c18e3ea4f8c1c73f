//! Configuration files that could harm their reader: each is an error with its place, for the command
//! line as for a proxy that runs.

use crate::client::{Load, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Folder, Proxy, eventually, pool_of};
use rustix::process::Signal;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes, and what is said of them.
fn texts() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut one_line = String::from("[pool.test]\nendpoints = [");
    for number in 0..3_700 {
        one_line += &format!("\"10.0.{}.{}:8000\", ", number / 250, number % 250 + 1);
    }
    let column = one_line.len() - "[pool.test]\n".len() + 1;
    one_line += "\"nowhere\"]\n";
    assert!(column > 65_535, "{column}");
    // As deep as the parser allows: dotted keys of the greatest length, one within the other.
    let keys = vec!["a"; 79].join(".");
    let deep = format!("{}1{}", format!("{{{keys} = ").repeat(78), "}".repeat(78));
    vec![
        ("thousands of endpoints on a line", one_line.into(), "forebay.toml:2:"),
        ("brackets", format!("a={}", "[".repeat(70_000)).into(), "forebay.toml:1:"),
        ("braces", format!("a={}", "{a=".repeat(70_000)).into(), "forebay.toml:1:"),
        ("tables", "[".repeat(70_000).into(), "forebay.toml:1:"),
        ("a long dotted key", format!("{}a = 1", "a.".repeat(70_000)).into(), "forebay.toml:1:"),
        ("deep keys", format!("x = {deep}").into(), "forebay.toml:1:1: x: unknown key"),
        ("a long string", format!("a = \"{}", "x".repeat(1_000_000)).into(), "forebay.toml:1:"),
        ("a long key", format!("{} = 1", "x".repeat(1_000_000)).into(), "forebay.toml:1:1:"),
        (
            "a hundred thousand keys",
            (0..100_000).map(|n| format!("k{n} = 1\n")).collect::<String>().into(),
            "more errors",
        ),
        ("a long line of errors", "= ".repeat(200_000).into(), "forebay.toml:1:1:"),
        (
            "bytes that are no text",
            b"[server]\na = \"\xff\"\n".into(),
            "forebay.toml:2:6: expected text in UTF-8, found the byte 0xff",
        ),
        ("zero bytes", b"[server]\n\0\0\0\n".into(), "forebay.toml:2:1:"),
        ("zero bytes only", vec![0; 1 << 20], "forebay.toml:1:"),
        ("control characters", b"\x1b[2J\x07 = \x08\n".into(), "forebay.toml:1:1:"),
        (
            "lines that end as on Windows",
            b"[server]\r\nthreds = 1\r\n".into(),
            "forebay.toml:2:1: server.threds: unknown key, did you mean \"threads\"?",
        ),
        (
            "tabs and wide characters",
            "[server]\n\t\u{65e5}\u{672c} = \u{1f600}\n".into(),
            "forebay.toml:2:2:",
        ),
        ("too long a file", vec![b'#'; (4 << 20) + 1], "expected at most 4194304 bytes"),
    ]
}

/// Puts something in the place of a file that is no file.
fn odd(kind: &str, place: &Path) {
    let _ = std::fs::remove_file(place);
    let _ = std::fs::remove_dir(place);
    match kind {
        "fifo" => assert!(Command::new("mkfifo").arg(place).status().unwrap().success()),
        "directory" => std::fs::create_dir(place).unwrap(),
        device => std::os::unix::fs::symlink(device, place).unwrap(),
    }
}

const ODD: [&str; 5] = ["fifo", "directory", "/dev/zero", "/dev/full", "/dev/stdin"];

#[test]
fn check_ends_with_words_for_any_file() {
    let folder = Folder::new();
    let file = folder.0.join("forebay.toml");
    let check = |case: &str, expected: &str| {
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output = command.arg("check").arg(&file).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{case}: {words}");
        assert!(words.contains(expected), "{case}: {expected} is not in\n{words}");
        assert!(!words.contains("panicked") && words.len() < 100_000, "{case}: {words}");
        assert!(words.lines().all(|line| line.chars().count() < 1200), "{case}: {words}");
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!words.contains(control), "{case}: {words:?}");
        assert!(started.elapsed() < Duration::from_secs(60), "{case}");
    };
    for (case, bytes, expected) in texts() {
        std::fs::write(&file, bytes).unwrap();
        check(case, expected);
    }
    for kind in ODD {
        odd(kind, &file);
        check(kind, "expected a file");
    }
}

// On threads of their own, the endpoint and the load go on while the test writes long files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_any_file_leaves_the_running_configuration() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let pool = pool_of(&[endpoint.address], "").replace("300ms", "2s");
    let proxy = Proxy::start(&pool).await;
    proxy.wait_ready(1).await;
    let good = std::fs::read_to_string(&proxy.config).unwrap();
    let load = Load::start(proxy.address, "/v2/models/m/infer", "x", 2);
    let mut refused = 0.0;
    let mut reload = async |case: &str, expected: &str| {
        let answer = post(proxy.admin, "/reload", "").await;
        assert_eq!(answer.status, 422, "{case}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{case}: {expected} is not in\n{error}");
        proxy.signal(Signal::HUP);
        refused += 2.0;
        eventually("both reloads", async || {
            (proxy.metric("forebay_reloads_total", &["refused"]).await >= refused).then_some(())
        })
        .await;
        assert_eq!(proxy.status().await["generation"], 1, "{case}");
    };
    for (case, bytes, expected) in texts() {
        std::fs::write(&proxy.config, bytes).unwrap();
        reload(case, expected).await;
    }
    for kind in ODD {
        odd(kind, &proxy.config);
        reload(kind, "expected a file").await;
    }
    std::fs::remove_file(&proxy.config).unwrap();
    std::fs::write(&proxy.config, good).unwrap();
    assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    assert!(!proxy.messages().contains("panicked"));
}

#[tokio::test]
async fn certificates_that_are_no_files_leave_the_running_ones() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let good = std::fs::read_to_string(&proxy.config).unwrap();
    let folder = Folder::new();
    let pair = ["certificate", "key"].map(|name| folder.0.join(name));
    let tls =
        format!("[listener.tls]\ncertificate = {:?}\nkey = {:?}\n[pool.test]", pair[0], pair[1]);
    std::fs::write(&proxy.config, good.replace("[pool.test]", &tls)).unwrap();
    for kind in ODD {
        pair.iter().for_each(|file| odd(kind, file));
        let answer = post(proxy.admin, "/reload", "").await;
        assert_eq!(answer.status, 422, "{kind}");
        let error = answer.text();
        assert!(
            error.contains("expected a file with") && error.contains("forebay.toml:"),
            "{error}"
        );
        assert_eq!(post(proxy.address, "/v2/models/m/infer", "x").await.status, 200);
    }
}
