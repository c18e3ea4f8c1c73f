//! Sockets that outlive the proxy, as a service manager passes them.

use crate::client::{Load, get, post};
use crate::harness::{ARITH, MAX_WAIT, Proxy, Worker, addresses, anywhere, eventually, pool_of};
use rustix::process::Signal;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use tokio::net::TcpStream;

const ARITH_INFER: &str = "/v2/models/arith/infer";

/// A socket of ours, and a configuration with a listener at its address in front of `workers`.
fn passed(workers: &[Worker]) -> (TcpListener, String) {
    let socket = TcpListener::bind(anywhere()).unwrap();
    let text = Proxy::text("", &pool_of(&addresses(workers), ""));
    let listener = format!("[[listener]]\naddress = \"{}\"", socket.local_addr().unwrap());
    let text = text.replace("[[listener]]\naddress = \"127.0.0.1:0\"", &listener);
    assert!(text.contains(&listener), "{text}");
    (socket, text)
}

#[tokio::test]
async fn callers_that_come_while_no_proxy_runs_are_answered_by_the_next() {
    let workers = Worker::start_many(2).await;
    let (socket, text) = passed(&workers);
    let address = socket.local_addr().unwrap();
    let mut old = Proxy::start_on(&[&socket], &text).await;
    old.wait_ready(2).await;
    assert_eq!(old.listeners, [address]);
    assert!(old.messages().contains("listening on a passed socket"));
    let load = Load::start(address, ARITH_INFER, ARITH, 8);
    load.wait(200).await;
    old.signal(Signal::TERM);
    assert!(old.ended().await.success(), "{}", old.messages());

    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { post(address, ARITH_INFER, ARITH).await.status }))
        .collect();
    TcpStream::connect(address).await.expect("nobody is refused");
    let new = Proxy::start_on(&[&socket], &text).await;
    for waiting in waiting {
        // Not before its workers have been probed.
        assert_eq!(waiting.await.unwrap(), 200);
    }
    load.wait(200).await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    drop(new);
}

#[tokio::test]
async fn a_proxy_is_exchanged_under_load_and_nobody_notices() {
    let workers = Worker::start_many(2).await;
    let (socket, text) = passed(&workers);
    let mut proxy = Proxy::start_on(&[&socket], &text).await;
    proxy.wait_ready(2).await;
    let load = Load::start(proxy.address, ARITH_INFER, ARITH, 8);
    load.wait(200).await;
    for _ in 0..3 {
        let next = Proxy::start_on(&[&socket], &text).await;
        proxy.signal(Signal::TERM);
        assert!(proxy.ended().await.success(), "{}", proxy.messages());
        proxy = next;
        load.wait(200).await;
    }
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test]
async fn what_was_passed_is_used_by_address_and_the_rest_is_closed() {
    let workers = Worker::start_many(1).await;
    let (socket, text) = passed(&workers);
    let other = TcpListener::bind(anywhere()).unwrap();
    let unused: SocketAddr = other.local_addr().unwrap();
    let more =
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"test\"\n[pool.";
    let text = text.replacen("[pool.", more, 1);
    let proxy = Proxy::start_on(&[&other, &socket], &text).await;
    proxy.wait_ready(1).await;
    assert_eq!(proxy.listeners[0], socket.local_addr().unwrap());
    for listener in &proxy.listeners {
        assert_eq!(get(*listener, "/v2").await.status, 200, "{listener}");
    }
    let words = "ignoring passed socket: no listener has its address";
    assert!(proxy.messages().contains(words), "{}", proxy.messages());
    drop(other);
    // Programs that other tests start have it for a moment, too.
    eventually("that nobody holds it", async || TcpStream::connect(unused).await.err()).await;
}

#[tokio::test]
async fn two_processes_at_once_share_the_admin_listener_where_that_is_passed_too() {
    let workers = Worker::start_many(1).await;
    let (socket, text) = passed(&workers);
    let admin = TcpListener::bind(anywhere()).unwrap();
    let address = admin.local_addr().unwrap();
    let text = text.replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{address}\""));
    let mut old = Proxy::start_on(&[&socket, &admin], &text).await;
    let new = Proxy::start_on(&[&socket, &admin], &text).await;
    assert_eq!((old.admin, new.admin), (address, address));
    old.signal(Signal::TERM);
    assert!(old.ended().await.success(), "{}", old.messages());
    new.wait_ready(1).await;
    assert_eq!(post(new.address, ARITH_INFER, ARITH).await.status, 200);
}

#[tokio::test]
async fn what_is_no_socket_of_ours_is_closed_with_a_word() {
    let workers = Worker::start_many(1).await;
    let (socket, text) = passed(&workers);
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (mut end, pipe) = std::io::pipe().unwrap();
    let proxy = Proxy::start_on(&[&theirs, &socket, &pipe], &text).await;
    drop((theirs, pipe));
    // They end when the other side is closed everywhere.
    let ended = tokio::task::spawn_blocking(move || {
        [ours.read_to_end(&mut Vec::new()).unwrap(), end.read_to_end(&mut Vec::new()).unwrap()]
    });
    assert_eq!(tokio::time::timeout(MAX_WAIT, ended).await.unwrap().unwrap(), [0, 0]);
    let words = proxy.messages();
    assert_eq!(
        words.matches("ignoring passed socket: not a usable TCP listener").count(),
        2,
        "{words}"
    );
    proxy.wait_ready(1).await;
    assert_eq!(proxy.listeners, [socket.local_addr().unwrap()]);
}
