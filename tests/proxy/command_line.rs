//! The command line as a person meets it.

use crate::harness::Folder;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().unwrap()
}

fn check(text: &str) -> (Option<i32>, String) {
    let folder = Folder::new();
    let file = folder.0.join("test.toml");
    std::fs::write(&file, text).unwrap();
    let output = forebay(&["check", file.to_str().unwrap()]);
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(words).unwrap())
}

const TEN_ERRORS: &str = r#"
[server]
admin = "localhost"
drain_timeout = 30

[[listener]]
addres = "127.0.0.1:8080"
protocols = ["spdy"]

[limits]
body = "1MiB"
buffer = "2MiB"

[pool.a]
endpoints = ["127.0.0.1:8001", "not an address"]
policy = "fastest"

[pool.b]
endpoints = ["127.0.0.1:8002"]
probe = { fall = 0, path = "ready" }

[[route]]
name = "all"
pool = "c"
"#;

#[test]
fn ten_errors_are_all_reported_with_their_places() {
    let (code, words) = check(TEN_ERRORS);
    assert_eq!(code, Some(1));
    for expected in [
        "test.toml:3:9: server.admin: expected an address and a port such as \"127.0.0.1:9090\", or \"off\", found \"localhost\"",
        "test.toml:4:17: server.drain_timeout: expected a duration such as \"250ms\", \"10s\" or \"5m\", found the number 30",
        "listener.*.address: expected an address and a port such as \"127.0.0.1:8080\", found nothing",
        "test.toml:7:1: listener.*.addres: unknown key, did you mean \"address\"?",
        "test.toml:8:13: listener.*.protocols: expected [\"http/1.1\"] or [\"http/1.1\", \"h2c\"], found [\"spdy\"]",
        "test.toml:12:10: limits.buffer: expected at most limits.body (\"1MiB\"), found \"2MiB\"",
        "test.toml:15:32: pool.*.endpoints: expected an address and a port such as \"127.0.0.1:8080\", found \"not an address\"",
        "test.toml:16:10: pool.*.policy: expected \"adaptive\" or",
        "test.toml:20:18: pool.*.probe.fall: expected 1 to 100, found 0",
        "test.toml:20:28: pool.*.probe.path: expected a path that begins with /, found \"ready\"",
        "test.toml:24:8: route.*.pool: expected a pool (\"a\", \"b\"), found \"c\"",
        "3 | admin = \"localhost\"",
    ] {
        assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
    }
}

#[test]
fn a_file_that_is_fine_is_said_to_be() {
    for file in ["forebay.toml", "demo.toml", "reference.toml"] {
        let path = format!("{}/conf/{file}", env!("CARGO_MANIFEST_DIR"));
        let output = forebay(&["check", &path]);
        let words = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(words.contains(": fine ("), "{words}");
    }
}

#[test]
fn what_can_not_be_read_is_an_error_and_not_a_crash() {
    let output = forebay(&["check", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't read /no/such/file"));
    let output = forebay(&["check", "/dev/zero"]);
    assert_eq!(output.status.code(), Some(1));
    for text in ["", "\u{0}", "[[[", "a", "[pool]\na = 1", "pool = 3\nroute = 4\nlistener = []"] {
        let (code, words) = check(text);
        assert_eq!(code, Some(1), "{text:?}: {words}");
        assert!(!words.contains("panicked"), "{words}");
    }
}

#[test]
fn names_that_are_used_twice_are_errors() {
    let (code, words) = check(
        "[[listener]]\naddress = \"127.0.0.1:8080\"\n[[listener]]\naddress = \"127.0.0.1:8080\"\n\
         [pool.a]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n\
         [[route]]\nname = \"r\"\npool = \"a\"\n[[route]]\nname = \"r\"\npool = \"a\"\n",
    );
    assert_eq!(code, Some(1));
    assert_eq!(words.matches("expected each once").count(), 3, "{words}");
}

#[test]
fn nonsense_is_an_error_where_it_stands() {
    let fine = "[[listener]]\naddress = \"127.0.0.1:8080\"\n";
    let route = "\n[[route]]\nname = \"r\"\npool = \"a\"\n";
    let pool = "[pool.a]\nendpoints = [\"127.0.0.1:1\"]\n";
    for (text, expected) in [
        (
            "[pool.a]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:0\",\n  \"127.0.0.1:1\", 7]\n"
                .to_owned(),
            &[
                "4:29: pool.*.endpoints: expected a port from 1 to 65535, found 127.0.0.1:0",
                "5:3: pool.*.endpoints: expected each once, found 127.0.0.1:1 again",
                "5:18: pool.*.endpoints: expected an address and a port such as \"127.0.0.1:8080\", found the number 7",
            ][..],
        ),
        (
            format!("{pool}probe = {{ interval = \"10us\", fast_interval = \"0s\" }}"),
            &[
                "5:22: pool.*.probe.interval: expected 1ms or more, found 10µs",
                "5:46: pool.*.probe.fast_interval: expected 1ms or more, found 0ns",
            ],
        ),
        (
            format!(
                "{pool}probe = {{ interval = \"1s\", timeout = \"5s\", fast_interval = \"2s\" }}"
            ),
            &[
                "5:38: pool.*.probe.timeout: expected at most the interval (1s), found 5s",
                "5:60: pool.*.probe.fast_interval: expected at most the interval (1s), found 2s",
            ],
        ),
        (
            format!("{pool}probe.path = \"/a b\""),
            &["5:14: pool.*.probe.path: expected a valid URL path, found \"/a b\""],
        ),
        (
            format!("{pool}poll = {{ interval = \"500us\", port = 0, path = \"metrics\" }}"),
            &[
                "5:8: pool.*.poll.kind: expected \"forebay\" or \"vllm\" or \"sglang\" or",
                "5:21: pool.*.poll.interval: expected 1ms or more, found 500µs",
                "5:37: pool.*.poll.port: expected 1 to 65535, found 0",
                "5:47: pool.*.poll.path: expected a path that begins with /, found \"metrics\"",
            ],
        ),
        (
            format!("{pool}poll = {{ kind = \"vllm\", timeout = \"1s\", waiting = \"x\" }}"),
            &[
                "5:35: pool.*.poll.timeout: expected at most the interval (100ms), found 1s",
                "5:51: pool.*.poll.waiting: expected kind = \"custom\" beside it",
            ],
        ),
        (
            format!("{pool}poll = {{ kind = \"custom\", running = \"no name\" }}"),
            &[
                "5:8: pool.*.poll.waiting: expected the name of a metric, found nothing",
                "5:37: pool.*.poll.running: expected the name of a metric, found \"no name\"",
            ],
        ),
        (
            format!("{pool}[pool.\"\"]\nendpoints = [\"127.0.0.1:2\"]"),
            &["5:1: pool: expected a name, found \"\""],
        ),
        (
            format!("{pool}[[route]]\nname = \"\"\nmodels = [\"m\", \"\"]\npool = \"a\""),
            &[
                "6:8: route.*.name: expected a name, found \"\"",
                "7:16: route.*.models: expected the name of a model, found \"\"",
            ],
        ),
        (
            format!(
                "{pool}[[route]]\nname = \"v\"\npool = \"a\"\n\
                 [[route.variant]]\npool = \"a\"\nweight = 500\n\
                 [[route.variant]]\npool = \"b\"\nmodel = \"\"\n\
                 [[route.variant]]\nname = \"a\"\npool = \"a\"\nweight = 1001"
            ),
            &[
                "7:8: route.*.pool: expected either a pool or variants, found both",
                "11:1: route.*.variant.*.weight: expected a weight beside other variants, found none",
                "12:8: route.*.variant.*.pool: expected a pool (\"a\"), found \"b\"",
                "13:9: route.*.variant.*.model: expected a name of at most 255 bytes, found \"\"",
                "15:8: route.*.variant.*.name: expected each once, found \"a\" again",
                "17:10: route.*.variant.*.weight: expected 0 to 1000, found 1001",
                "5:1: route.*.variant: expected weights that add up to 1000 thousandths, found 2500",
            ],
        ),
    ] {
        let (code, words) = check(&format!("{fine}{text}{route}"));
        assert_eq!(code, Some(1), "{text}");
        for expected in expected {
            let expected = format!("test.toml:{expected}");
            assert!(words.contains(&expected), "{expected}\n--- not in\n{words}");
        }
        assert_eq!(words.matches("test.toml:").count(), expected.len(), "{words}");
    }
}

#[test]
fn help_and_mistakes_have_the_exit_codes_that_help_names() {
    let output = forebay(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["serve", "check", "worker", "Exit codes:", "FOREBAY_LOG"] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    assert_eq!(forebay(&["serve"]).status.code(), Some(2));
    assert_eq!(forebay(&["sevre"]).status.code(), Some(2));
    assert_eq!(forebay(&["--log-level", "a=b=c", "check", "x"]).status.code(), Some(2));
    assert!(forebay(&["worker", "--help"]).status.success());
}

#[test]
fn an_address_in_use_is_said_in_words() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = Folder::new();
    let file = folder.0.join("test.toml");
    let text = format!(
        "[[listener]]\naddress = \"{address}\"\n[pool.a]\nendpoints = [\"127.0.0.1:1\"]\n\
         [[route]]\nname = \"r\"\npool = \"a\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let output = forebay(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains(&format!("can't listen on {address}")), "{words}");
}

#[test]
fn a_worker_of_this_program_has_the_allocator_of_one_of_its_own() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/backends/worker/tests/models");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["worker", "--stop-with-stdin", "--listen", "127.0.0.1:0", "--models", models])
        .env_remove("MIMALLOC_PURGE_DELAY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(worker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", worker.id())).unwrap();
    assert!(environment.contains("MIMALLOC_PURGE_DELAY=1000"), "{environment}");
    drop(worker.stdin.take());
    assert!(worker.wait().unwrap().success());
}
