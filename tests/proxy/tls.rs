//! TLS ends at the listener: what clients and operators see of it, and what those get who do not
//! come to terms.

use crate::client::{self, post_h2_on, raw, send_on};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use crate::layer4::{Plain, PlainEndpoint, layer4, line};
use crate::test_ca::{Authority, INFER, NAME, V12, V13, inference};
use bytes::Bytes;
use rcgen::CertificateParams;
use rustix::process::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A proxy whose listener has these keys and this table `tls`, and an endpoint that echoes.
async fn serving(listener: &str, tls: &str) -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    // Probes would have to wait for long bodies, which are encrypted on the same thread.
    let pool =
        pool_of(&[endpoint.address], "").replace("interval = \"300ms\"", "interval = \"1h\"");
    let proxy = Proxy::start(&format!("{listener}\n[listener.tls]\n{tls}\n{pool}")).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

async fn handshakes(proxy: &Proxy, outcome: &str, count: f64) {
    let label = format!("outcome=\"{outcome}\"");
    eventually(&format!("{count} handshakes that end in {outcome}"), async || {
        let found = proxy.metric("forebay_tls_handshakes_total", &[&label]).await;
        (found == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_answered_in_both_versions_of_http_and_of_tls() {
    let authority = Authority::new();
    let (proxy, endpoint) = serving("", &authority.write("a", &[NAME])).await;
    let client = authority.client();
    for (versions, name) in [(&V13, "1.3"), (&V12, "1.2")] {
        let client = client.clone().only(versions);
        for alpn in [&[][..], &["http/1.1"], &["spdy", "http/1.1"]] {
            let answer = client.clone().speaks(alpn).infer(proxy.address, "one").await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(b"one")), "{alpn:?}");
            assert_eq!(proxy.next_line()["tls"], name, "{alpn:?}");
        }
        let stream = client.clone().speaks(&["h2", "http/1.1"]).connect(proxy.address).await;
        let stream = stream.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the better one");
        let uri = format!("https://{NAME}{INFER}");
        let bodies: Vec<_> = (0..20).map(|n| Bytes::from(format!("body {n}"))).collect();
        for (answer, body) in post_h2_on(stream, &uri, bodies.clone()).await.iter().zip(&bodies) {
            assert_eq!((answer.status.as_u16(), answer.text()), (200, echo(body)));
            assert_eq!(proxy.next_line()["tls"], name);
        }
        let labels = ["outcome=\"ok\"", &format!("version=\"{name}\"")];
        assert_eq!(proxy.metric("forebay_tls_handshakes_total", &labels).await, 4.0);
    }
    assert_eq!(endpoint.served(), 46);
}

#[tokio::test]
async fn bodies_of_any_size_pass_and_a_connection_is_kept() {
    let authority = Authority::new();
    let (proxy, endpoint) = serving("", &authority.write("a", &[NAME])).await;
    let stream = authority.client().connect(proxy.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    // Held, streamed, and an answer longer than any buffer.
    for (size, behaviour) in
        [(0, Behaviour::Echo), (17 << 20, Behaviour::Echo), (1, Behaviour::Huge)]
    {
        endpoint.becomes(behaviour);
        let body = "x".repeat(size);
        let answer = timeout(MAX_WAIT, sender.send_request(inference(&body))).await.unwrap();
        let (head, answer) = answer.unwrap().into_parts();
        let answer = http_body_util::BodyExt::collect(answer).await.unwrap().to_bytes();
        assert_eq!(head.status, 200, "{size}");
        match behaviour {
            Behaviour::Echo => assert_eq!(answer, echo(body.as_bytes())),
            _ => assert!(answer.len() >= 40_000_000, "{}", answer.len()),
        }
    }
    handshakes(&proxy, "ok", 1.0).await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_after_a_reload_and_open_connections_stay() {
    let authority = Authority::new();
    let (proxy, _endpoint) = serving("", &authority.write("a", &[NAME])).await;
    let client = authority.client();
    let shown = async || {
        let stream = client.connect(proxy.address).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let first = shown().await;
    let open = client.connect(proxy.address).await.unwrap();

    // A file that is not complete yet, or a key that is not there yet, must not end anything.
    let key = authority.folder.0.join("a.key");
    let old = std::fs::read(&key).unwrap();
    authority.write("a", &[NAME]);
    std::fs::write(&key, &old).unwrap();
    let refused = client::post(proxy.admin, "/reload", "").await;
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("expected the key of "), "{}", refused.text());
    assert_eq!(shown().await, first);

    authority.write("a", &[NAME]);
    proxy.signal(Signal::HUP);
    eventually("the renewed certificate", async || (shown().await != first).then_some(())).await;
    let answer = send_on(open, inference("still here")).await.unwrap();
    assert_eq!(answer.text(), echo(b"still here"));
}

#[tokio::test]
async fn each_name_gets_its_own_certificate() {
    let authority = Authority::new();
    let first = authority.write("first", &[NAME]);
    let pair = |names: &[&str]| {
        authority.write(names[0].trim_matches('*'), names).trim().replace('\n', ", ")
    };
    let tls = format!(
        "{first}additional_certificates = [{{ {} }}, {{ {} }}]",
        pair(&["Other.example.org", "another.example.org"]),
        pair(&["*.example.com"]),
    );
    let (proxy, _endpoint) = serving("", &tls).await;
    let client = authority.client();
    for name in [NAME, "other.example.org", "another.example.org", "a.example.com"] {
        // The client sees to it that the certificate is for this name.
        let stream = client.connect_as(proxy.address, name).await;
        stream.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["a.b.example.com", "example.com", "127.0.0.1"] {
        let refused = client.connect_as(proxy.address, name).await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{name}: {refused}");
    }
    handshakes(&proxy, "client_refused", 3.0).await;
}

#[tokio::test]
async fn clients_show_certificates_where_they_must() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let certificate = authority.write("a", &[NAME]);
    let tls = format!("{certificate}client_ca = {:?}\n", authority.file);
    let nobody = authority.client();
    let (known, stranger) = (nobody.clone().shows(&authority), nobody.clone().shows(&strangers));

    let (proxy, endpoint) = serving("", &tls).await;
    assert_eq!(known.infer(proxy.address, "x").await.unwrap().text(), echo(b"x"));
    for versions in [&V13, &V12] {
        for client in [&nobody, &stranger] {
            assert!(client.clone().only(versions).infer(proxy.address, "x").await.is_err());
        }
    }
    handshakes(&proxy, "client_certificate", 4.0).await;
    let labels = ["reason=\"tls_handshake_failed\""];
    assert_eq!(proxy.metric("forebay_connections_total", &labels).await, 4.0);
    assert_eq!(endpoint.served(), 1);

    let (proxy, _endpoint) = serving("", &format!("{tls}client_certificate = \"optional\"")).await;
    for client in [&nobody, &known] {
        assert_eq!(client.infer(proxy.address, "x").await.unwrap().text(), echo(b"x"));
    }
    assert!(stranger.infer(proxy.address, "x").await.is_err(), "a bad one is worse than none");
}

#[tokio::test]
async fn what_is_no_handshake_is_closed_and_counted_by_its_reason() {
    let authority = Authority::new();
    let tls = format!("{}min_version = \"1.3\"", authority.write("a", &[NAME]));
    let (proxy, endpoint) = serving("protocols = [\"http/1.1\"]", &tls).await;
    let plain = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx");
    let long = "\u{16}\u{3}\u{1}\u{3f}\u{3f}".to_owned() + &"?".repeat(70_000);
    let garbage = [&plain[..], "\0\0\0\0\0\0\0\0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &long];
    for bytes in garbage {
        let (answer, closed) = raw(proxy.address, bytes.as_bytes(), MAX_WAIT).await;
        assert!(closed && !answer.contains("HTTP"), "{answer:?}");
    }
    handshakes(&proxy, "not_tls", 4.0).await;

    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = timeout(MAX_WAIT, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    handshakes(&proxy, "closed", 2.0).await;

    let client = authority.client();
    assert!(client.clone().only(&V12).connect(proxy.address).await.is_err());
    handshakes(&proxy, "incompatible", 1.0).await;
    assert!(client.clone().speaks(&["h2"]).connect(proxy.address).await.is_err());
    handshakes(&proxy, "protocol", 1.0).await;
    assert!(Authority::new().client().connect(proxy.address).await.is_err());
    handshakes(&proxy, "client_refused", 1.0).await;

    let labels = ["reason=\"tls_handshake_failed\""];
    assert_eq!(proxy.metric("forebay_connections_total", &labels).await, 9.0);
    assert_eq!(endpoint.served(), 0);
    assert_eq!(client.infer(proxy.address, "x").await.unwrap().text(), echo(b"x"), "unimpressed");
}

#[tokio::test]
async fn whoever_falls_silent_is_not_waited_for() {
    let authority = Authority::new();
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let tls = authority.write("a", &[NAME]);
    let pool = pool_of(&[endpoint.address], "");
    let limits = "[limits]\nheader_timeout = \"300ms\"\n";
    let proxy = Proxy::start(&format!("[listener.tls]\n{tls}\n{limits}\n{pool}")).await;
    proxy.wait_ready(1).await;
    // Before the handshake, in the middle of it (all of it but the last byte), byte by byte.
    let slow = async |stream: &mut TcpStream| {
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            // It has fifteen bytes to say before it is late: never silent for long, and never done.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"slow"] {
        let started = Instant::now();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        if begun == b"slow" {
            timeout(MAX_WAIT, slow(&mut stream)).await.unwrap();
        } else {
            stream.write_all(begun).await.unwrap();
            let _ = timeout(MAX_WAIT, stream.read_to_end(&mut Vec::new())).await.unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    }
    let failed = ["reason=\"tls_handshake_failed\""];
    eventually("three failures", async || {
        (proxy.metric("forebay_connections_total", &failed).await == 3.0).then_some(())
    })
    .await;
    // After it.
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let mut stream = authority.client().speaks(alpn).connect(proxy.address).await.unwrap();
        let end = timeout(MAX_WAIT, stream.read_to_end(&mut Vec::new())).await.unwrap();
        end.expect("the word of TLS that this is the end");
    }
    eventually("no connection open", async || {
        (proxy.metric("forebay_connections_open", &[]).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_that_ends_with_the_process_is_told_so() {
    let authority = Authority::new();
    let (mut proxy, _endpoint) = serving("", &authority.write("a", &[NAME])).await;
    let mut stream = authority.client().connect(proxy.address).await.unwrap();
    let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(echo(b"x").as_bytes()) {
        let read = timeout(MAX_WAIT, stream.read_buf(&mut answer)).await.unwrap().unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    proxy.signal(Signal::TERM);
    let end = timeout(MAX_WAIT, stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(end.expect("the word of TLS that this is the end"), 0);
    assert!(proxy.ended().await.success(), "{}", proxy.messages());
}

#[tokio::test]
async fn where_there_is_no_room_a_connection_is_closed_without_a_handshake() {
    let authority = Authority::new();
    let tls = authority.write("a", &[NAME]);
    let (proxy, endpoint) = serving("max_connections = 1", &tls).await;
    let only = authority.client().connect(proxy.address).await.unwrap();
    // A connection without a request would make room.
    endpoint.becomes(Behaviour::Gated);
    let request = tokio::spawn(send_on(only, inference("x")));
    eventually("the request", async || (!endpoint.came().is_empty()).then_some(())).await;
    let (answer, closed) = raw(proxy.address, b"\x16\x03\x01", MAX_WAIT).await;
    assert!(answer.is_empty() && closed, "{answer}");
    endpoint.let_go(1);
    assert_eq!(request.await.unwrap().unwrap().text(), echo(b"x"));
    endpoint.becomes(Behaviour::Echo);
    eventually("room again", async || {
        authority.client().infer(proxy.address, "x").await.ok().filter(|a| a.status == 200)
    })
    .await;
    let labels = ["reason=\"connection_limit\""];
    assert!(proxy.metric("forebay_connections_total", &labels).await >= 1.0);
}

#[tokio::test]
async fn callers_that_leave_in_the_middle_are_noticed() {
    let authority = Authority::new();
    let (proxy, endpoint) = serving("", &authority.write("a", &[NAME])).await;
    endpoint.becomes(Behaviour::Gated);
    let whole = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nlast");
    let sends = async |bytes: &str| {
        let mut stream = authority.client().connect(proxy.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    // In order, or as if its cable had been cut; before its answer, or within its body.
    for (number, orderly) in [true, false].into_iter().enumerate() {
        let mut stream = sends(&whole).await;
        eventually("the request", async || (endpoint.served() == number + 1).then_some(())).await;
        if orderly {
            stream.shutdown().await.unwrap();
        } else {
            stream.get_mut().0.shutdown().await.unwrap();
        }
        assert_eq!(proxy.next_line()["reason"], "client_closed", "orderly: {orderly}");
    }
    let mut stream = sends(&whole[..whole.len() - 2]).await;
    stream.get_mut().0.shutdown().await.unwrap();
    assert_eq!(proxy.next_line()["reason"], "client_closed");
    assert_eq!(endpoint.served(), 2, "half a body is no request");
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_handshake() {
    let authority = Authority::new();
    let tls = authority.write("a", &[NAME]);
    let (proxy, _endpoint) = serving("proxy_protocol = \"require\"", &tls).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n").await.unwrap();
    let stream = authority.client().shake(stream, NAME).await.unwrap();
    assert_eq!(send_on(stream, inference("x")).await.unwrap().text(), echo(b"x"));
    assert_eq!(proxy.next_line()["client"], "192.0.2.7:40000");
    assert!(authority.client().connect(proxy.address).await.is_err());
}

#[tokio::test]
async fn it_can_end_at_layer_4_too() {
    let authority = Authority::new();
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let tls = authority.write("a", &[NAME]);
    let listener = format!("proxy_protocol = \"require\"\n[listener.tls]\n{tls}");
    let proxy = layer4(&[endpoint.address], &listener, "").await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n").await.unwrap();
    let mut stream = authority.client().shake(stream, NAME).await.unwrap();
    let greeting = timeout(MAX_WAIT, line(&mut stream)).await.unwrap();
    assert_eq!(greeting, endpoint.address.to_string());
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(MAX_WAIT, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "hello");
    let entry = proxy.next_line();
    assert_eq!(entry["tls"], "1.3");
    assert_eq!((&entry["bytes_in"], &entry["client"]), (&5.into(), &"192.0.2.7:40000".into()));

    let plain = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nhello";
    assert!(raw(proxy.address, plain, MAX_WAIT).await.1);
    assert_eq!(proxy.next_line()["reason"], "tls_handshake_failed");
}

/// The status and the words of `forebay check` of a file with this listener.
fn check(folder: &Path, listener: &str) -> (bool, String) {
    let file = folder.join("test.toml");
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:8443\"\n{listener}\n[pool.a]\n\
         endpoints = [\"127.0.0.1:1\"]\n[[route]]\nname = \"r\"\npool = \"a\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("check")
        .arg(file)
        .output()
        .unwrap();
    let words = [command.stdout, command.stderr].concat();
    (command.status.success(), String::from_utf8(words).unwrap())
}

#[test]
fn files_that_can_not_serve_are_errors_where_they_are_named() {
    let authority = Authority::new();
    let folder = &authority.folder.0;
    authority.write("a", &[NAME]);
    authority.write("b", &[NAME]);
    std::fs::write(folder.join("empty"), "").unwrap();
    std::fs::write(folder.join("torn"), "-----BEGIN CERTIFICATE-----\nnot base64").unwrap();
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(folder.join("nonsense"), nonsense).unwrap();
    for (tls, expected) in [
        (
            "certificate = \"gone.pem\"\nkey = \"gone.key\"",
            &[
                "4:15: listener.*.tls.certificate: expected a file with certificates in PEM form, found ",
                "5:7: listener.*.tls.key: expected a file with a private key in PEM form, found ",
                "gone.pem: No such file or directory",
            ][..],
        ),
        (
            "certificate = \"a.pem\"\nkey = \"b.key\"",
            &["5:7: listener.*.tls.key: expected the key of ", "b.key: another key"],
        ),
        (
            "certificate = \"empty\"\nkey = \"a.pem\"",
            &["4:15: listener.*.tls.certificate: ", "no certificate in it", "5:7: "],
        ),
        ("certificate = \"torn\"\nkey = \"a.key\"", &["4:15: listener.*.tls.certificate: "]),
        ("certificate = \"nonsense\"\nkey = \"a.key\"", &["4:15: listener.*.tls.certificate: "]),
        ("certificate = \"/dev/zero\"\nkey = \".\"", &["4:15: ", "5:7: ", "expected a file"]),
        ("key = \"a.key\"", &["3:1: listener.*.tls.certificate: expected a path, found nothing"]),
        (
            "certificate = \"a.pem\"\nkey = \"a.key\"\nclient_ca = \"nonsense\"",
            &["6:13: listener.*.tls.client_ca: expected certificates of authorities, found "],
        ),
        (
            "certificate = \"a.pem\"\nkey = \"a.key\"\nclient_certificate = \"optional\"",
            &["6:22: listener.*.tls.client_certificate: expected client_ca beside it"],
        ),
        (
            "certificate = \"a.pem\"\nkey = \"a.key\"\nmin_version = \"1.1\"",
            &["6:15: listener.*.tls.min_version: expected \"1.2\" or \"1.3\", found \"1.1\""],
        ),
        (
            "certificate = \"a.pem\"\nkey = \"a.key\"\nadditional_certificates = [{ certificate = \"b.pem\" }]",
            &["6:28: listener.*.tls.additional_certificates.*.key: expected a path, found nothing"],
        ),
    ] {
        let (fine, words) = check(folder, &format!("[listener.tls]\n{tls}"));
        assert!(!fine, "{tls}: {words}");
        for expected in expected {
            assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
        }
    }
    let (fine, words) = check(
        folder,
        "protocols = [\"http/1.1\", \"h2c\"]\ntls = { certificate = \"a.pem\", key = \"a.key\" }",
    );
    assert!(
        !fine && words.contains("expected [\"http/1.1\"] or [\"http/1.1\", \"h2\"]"),
        "{words}"
    );
    let (fine, words) = check(folder, "tls = { certificate = \"a.pem\", key = \"a.key\" }");
    assert!(fine && !words.contains("the certificate"), "{words}");
}

#[tokio::test]
async fn certificates_out_of_their_time_are_warned_of_and_the_end_is_a_metric() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let tls = authority.write_as("old", &params);
    let (fine, words) = check(&authority.folder.0, &format!("[listener.tls]\n{tls}"));
    assert!(fine && words.contains("old.pem: the certificate expired "), "{words}");
    let (proxy, _endpoint) = serving("", &tls).await;
    assert!(proxy.messages().contains("the certificate expired "), "{}", proxy.messages());
    let ends = proxy.metric("forebay_tls_certificate_expiry_timestamp_seconds", &[]).await;
    assert_eq!(ends, 1_577_836_800.0);

    params.not_before = rcgen::date_time_ymd(2900, 1, 1);
    params.not_after = rcgen::date_time_ymd(3000, 1, 1);
    let tls = authority.write_as("new", &params);
    let (fine, words) = check(&authority.folder.0, &format!("[listener.tls]\n{tls}"));
    assert!(fine && words.contains("new.pem: the certificate is not valid before "), "{words}");
}

#[tokio::test]
async fn what_leads_to_the_authority_does_not_say_when_a_certificate_ends() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    authority.write_as("old", &params);
    params.not_after = rcgen::date_time_ymd(3000, 1, 1);
    let tls = authority.write_as("a", &params);
    let read = |file: &str| std::fs::read_to_string(authority.folder.0.join(file)).unwrap();
    let chain = read("a.pem") + &read("old.pem");
    std::fs::write(authority.folder.0.join("a.pem"), chain).unwrap();
    let (fine, words) = check(&authority.folder.0, &format!("[listener.tls]\n{tls}"));
    assert!(fine && !words.contains("the certificate"), "{words}");
    let (proxy, _endpoint) = serving("", &tls).await;
    let ends = proxy.metric("forebay_tls_certificate_expiry_timestamp_seconds", &[]).await;
    assert_eq!(ends, 32_503_680_000.0);
}

#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let authority = Authority::new();
    let tls = format!("[listener.tls]\n{}", authority.write("a", &[NAME]));
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
        let key = authority.folder.0.join("a.key");
        std::fs::set_permissions(key, Permissions::from_mode(mode)).unwrap();
        let (fine, words) = check(&authority.folder.0, &tls);
        let warning = "a.key: the key may be read by every user of this machine";
        assert!(fine && words.contains(warning) == warned, "{mode:o}: {words}");
    }
}
