//! An operator takes an endpoint out of use, and no client notices.

use crate::client::{Load, get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{ARITH, Proxy, Worker, addresses, eventually, pool_of};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ARITH_INFER: &str = "/v2/models/arith/infer";

fn path(endpoint: SocketAddr, verb: &str) -> String {
    format!("/pools/test/endpoints/{endpoint}/{verb}")
}

async fn state(proxy: &Proxy, endpoint: SocketAddr) -> serde_json::Value {
    let all = proxy.endpoints().await;
    all.into_iter().find(|e| e["address"] == endpoint.to_string()).unwrap()
}

async fn answered(proxy: &Proxy, endpoint: SocketAddr) -> f64 {
    let labels = [format!("endpoint=\"{endpoint}\""), "outcome=\"answered\"".to_owned()];
    proxy.metric("forebay_attempts_total", &labels.each_ref().map(String::as_str)).await
}

#[tokio::test]
async fn an_endpoint_that_is_drained_under_load_finishes_what_it_has_and_gets_nothing_more() {
    let workers = Worker::start_many(3).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 3, "").await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 8);
    load.wait(300).await;
    let chosen = workers[1].address;
    let said = post(proxy.admin, &path(chosen, "drain"), "").await;
    assert_eq!(said.status, 200, "{}", said.text());
    assert_eq!(
        (&said.json()["health"], &said.json()["pool"]),
        (&"draining".into(), &"test".into())
    );
    eventually("nothing in flight there", async || {
        (state(&proxy, chosen).await["in_flight"] == 0).then_some(())
    })
    .await;
    let before = answered(&proxy, chosen).await;
    // Neither probes nor a reload bring it back.
    assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    load.wait(500).await;
    assert_eq!(state(&proxy, chosen).await["health"], "draining");
    assert_eq!(answered(&proxy, chosen).await, before);
    let draining = [format!("endpoint=\"{chosen}\""), "health=\"draining\"".to_owned()];
    let draining = draining.each_ref().map(String::as_str);
    assert_eq!(proxy.metric("forebay_endpoint_health", &draining).await, 1.0);

    assert_eq!(post(proxy.admin, &path(chosen, "undrain"), "").await.json()["health"], "ready");
    eventually("its traffic", async || {
        (answered(&proxy, chosen).await > before + 10.0).then_some(())
    })
    .await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test]
async fn the_command_line_waits_until_nothing_is_in_flight() {
    let gated = Endpoint::start(Behaviour::Gated).await;
    let proxy = Proxy::in_front_of(&[gated.address], 1, "").await;
    let (address, admin) = (proxy.address, proxy.admin.to_string());
    let held = tokio::spawn(async move { post(address, "/v2/models/m/infer", "x").await.status });
    eventually("a request there", async || (gated.served() == 1).then_some(())).await;
    let endpoint = gated.address.to_string();
    let forebay = async |words: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(words).args(["--admin", &admin, "test", &endpoint]);
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let line = format!("test {endpoint}: draining, 1 in flight");
    assert_eq!(forebay(&["drain"]).await, (Some(0), line.clone(), String::new()));
    let (code, _, error) = forebay(&["drain", "--wait", "0"]).await;
    assert_eq!((code, error), (Some(1), format!("forebay: {line} after 0 s")));
    gated.let_go(1);
    let line = format!("test {endpoint}: draining, 0 in flight");
    assert_eq!(forebay(&["drain", "--wait", "60"]).await, (Some(0), line, String::new()));
    assert_eq!(held.await.unwrap(), 200);
    let line = format!("test {endpoint}: ready, 0 in flight");
    assert_eq!(forebay(&["undrain"]).await, (Some(0), line, String::new()));
}

#[test]
fn a_proxy_that_does_not_answer_is_told_of() {
    let said = |admin: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["drain", "--admin", admin, "test", "127.0.0.1:1"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap().to_string();
    drop(closed);
    let words = said(&nobody);
    let expected = format!("no answer from the admin listener {nobody}: ");
    assert!(words.contains(&expected) && words.contains("refused"), "{words}");
    // Not HTTP.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let answer = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"220 mail.example ESMTP\r\n\r\n").unwrap();
    });
    let words = said(&address);
    assert!(words.contains("no answer from the admin listener"), "{words}");
    answer.join().unwrap();
}

#[tokio::test]
async fn a_pool_of_any_name_can_be_drained() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let name = "a b/endpoints/%41 é";
    let config = pool_of(&[endpoint.address], "")
        .replace("[pool.test]", &format!("[pool.\"{name}\"]"))
        .replace("pool = \"test\"", &format!("pool = \"{name}\""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    for (verb, health) in [("drain", "draining"), ("undrain", "ready")] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args([verb, "--admin", &proxy.admin.to_string(), name]);
        let output = command.arg(endpoint.address.to_string()).output().await.unwrap();
        let told = format!("{name} {}: {health}, 0 in flight\n", endpoint.address);
        assert_eq!(String::from_utf8_lossy(&output.stdout), told, "{output:?}");
    }
    let encoded = "a%20b%2Fendpoints%2F%2541%20%C3%A9";
    let address = endpoint.address.to_string().replace(':', "%3A");
    let path = format!("/pools/{encoded}/endpoints/{address}/drain");
    assert_eq!(post(proxy.admin, &path, "").await.json()["pool"], name);
}

#[tokio::test]
async fn what_is_not_there_can_not_be_drained() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    for (path, words) in [
        ("/pools/nowhere/endpoints/127.0.0.1:1/drain", "no pool \\\"nowhere\\\""),
        ("/pools/test/endpoints/127.0.0.1:1/drain", "no endpoint 127.0.0.1:1"),
        ("/pools/test/endpoints/127.0.0.1:1/stop", "expected /pools/POOL/endpoints/ADDRESS/drain"),
    ] {
        let answer = post(proxy.admin, path, "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
    for (path, words) in [
        ("/pools/test/endpoints/host/drain", "expected an endpoint's address such as"),
        ("/pools/te%st/endpoints/127.0.0.1:1/drain", "expected percent-encoding in the pool name"),
        ("/pools/test/endpoints/127.0.0.1:1%/drain", "percent-encoding in the endpoint name"),
        ("/pools/%ff/endpoints/127.0.0.1:1/drain", "expected UTF-8 in the pool name"),
    ] {
        let answer = post(proxy.admin, path, "").await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
    assert_eq!(get(proxy.admin, &path(endpoint.address, "drain")).await.status, 405);
    // The last one can be drained too: the operator knows.
    assert_eq!(post(proxy.admin, &path(endpoint.address, "drain"), "").await.status, 200);
    assert_eq!(post(proxy.address, ARITH_INFER, ARITH).await.reason(), "no_endpoint");
}

#[tokio::test]
async fn a_connection_outlives_the_drain_of_its_endpoint() {
    let (first, second) = (greeter(b'1').await, greeter(b'2').await);
    let proxy = Proxy::start(&format!(
        "protocol = \"tcp\"\npool = \"test\"\n[pool.test]\nendpoints = [\"{first}\", \"{second}\"]\n\
         policy = \"round_robin\"\nprobe = {{ kind = \"tcp\", interval = \"300ms\" }}\n"
    ))
    .await;
    proxy.wait_ready(2).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        open.push((stream.read_u8().await.unwrap(), stream));
    }
    assert_ne!(open[0].0, open[1].0, "one at each");
    assert_eq!(post(proxy.admin, &path(first, "drain"), "").await.status, 200);
    for _ in 0..6 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'2');
    }
    for (_, stream) in &mut open {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "it is still carried");
    }
    assert_eq!(state(&proxy, first).await["in_flight"], 1);
}

/// A server that says its name and then what it hears.
async fn greeter(name: u8) -> SocketAddr {
    let listener = TcpListener::bind(crate::harness::anywhere()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(&[name]).await.ok()?;
                loop {
                    let heard = stream.read_u8().await.ok()?;
                    stream.write_all(&[heard]).await.ok()?;
                }
                #[allow(unreachable_code, reason = "gives the block its type")]
                Some(())
            });
        }
    });
    address
}
