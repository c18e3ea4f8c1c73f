//! Requests with one key go to the same endpoint, as long as it is there and has not much more to do than
//! the others.

use crate::client::post_with;
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Proxy, eventually};
use crate::layer4::{Plain, PlainEndpoint, layer4, line};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};

const INFER: &str = "/v2/models/m/infer";
const BY_SESSION: &str = "policy = \"sticky\"\nsticky = { header = \"x-session\" }";

async fn ask(proxy: SocketAddr, session: &str) -> String {
    let answer = post_with(proxy, INFER, &[("x-session", session)], "x").await;
    assert_eq!(answer.status, 200);
    answer.header("x-forebay-endpoint").to_owned()
}

/// The endpoint of each of some sessions, asked twice.
async fn homes(proxy: &Proxy) -> BTreeMap<String, String> {
    let mut homes = BTreeMap::new();
    for turn in 0..2 {
        for number in 0..24 {
            let session = format!("session {number}");
            let home = ask(proxy.address, &session).await;
            let before = homes.insert(session.clone(), home.clone());
            assert!(turn == 0 || before == Some(home), "{session} has moved");
        }
    }
    homes
}

#[tokio::test]
async fn a_session_keeps_its_endpoint_and_moves_only_if_that_is_lost() {
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(Endpoint::start(Behaviour::Echo).await);
    }
    let addresses: Vec<_> = all.iter().map(|endpoint| endpoint.address).collect();
    let proxy = Proxy::in_front_of(&addresses, 3, BY_SESSION).await;
    let before = homes(&proxy).await;
    let used: BTreeSet<_> = before.values().collect();
    assert!(used.len() > 1, "{before:?}");
    let lost = before["session 0"].clone();
    all.retain(|endpoint| endpoint.address.to_string() != lost);
    proxy.wait_ready(2).await;
    let after = homes(&proxy).await;
    for (session, home) in &before {
        assert_ne!(after[session], lost);
        assert!(*home == lost || after[session] == *home, "{session} moved without need");
    }
}

#[tokio::test]
async fn a_session_spills_over_while_its_endpoint_has_much_more_to_do_than_the_others() {
    let all = [Endpoint::start(Behaviour::Gated).await, Endpoint::start(Behaviour::Gated).await];
    let proxy = Proxy::in_front_of(&[all[0].address, all[1].address], 2, BY_SESSION).await;
    let address = proxy.address;
    let ask = || tokio::spawn(async move { ask(address, "one").await });
    let came = async |count: usize| {
        eventually("the request at an endpoint", async || {
            (all.iter().map(Endpoint::served).sum::<usize>() == count).then_some(())
        })
        .await;
    };
    let first = ask();
    came(1).await;
    let home = usize::from(all[1].served() == 1);
    let second = ask();
    came(2).await;
    assert_eq!(all[home].served(), 2);
    let third = ask();
    came(3).await;
    assert_eq!(all[1 - home].served(), 1, "all three at one of two endpoints were too many");
    all[home].let_go(2);
    all[1 - home].let_go(1);
    for (asked, endpoint) in [(first, home), (second, home), (third, 1 - home)] {
        assert_eq!(asked.await.unwrap(), all[endpoint].address.to_string());
    }
    let fourth = ask();
    came(4).await;
    assert_eq!(all[home].served(), 3, "home again");
    all[home].let_go(1);
    fourth.await.unwrap();
}

/// A connection from an address of our own choice, and the endpoint that greeted on it.
async fn greeted(proxy: &Proxy, from: IpAddr) -> (TcpStream, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    let mut stream = socket.connect(proxy.address).await.unwrap();
    let endpoint = line(&mut stream).await.parse().unwrap();
    (stream, endpoint)
}

async fn nothing_open(proxy: &Proxy) {
    eventually("the end of all connections", async || {
        let open = proxy.endpoints().await.iter().any(|endpoint| endpoint["in_flight"] != 0);
        (!open).then_some(())
    })
    .await;
}

#[tokio::test]
async fn at_layer_4_the_clients_address_is_the_key() {
    let mut all = PlainEndpoint::start_many(3, Plain::Greet).await;
    let addresses: Vec<_> = all.iter().map(|endpoint| endpoint.address).collect();
    let proxy = layer4(&addresses, "", "policy = \"sticky\"").await;
    let mut homes = BTreeMap::new();
    for turn in 0..2 {
        for number in 1..=16 {
            let from = IpAddr::from([127, 0, 1, number]);
            let (_, home) = greeted(&proxy, from).await;
            nothing_open(&proxy).await;
            let before = homes.insert(from, home);
            assert!(turn == 0 || before == Some(home), "{from} has moved");
        }
    }
    let used: BTreeSet<_> = homes.values().collect();
    assert!(used.len() > 1, "{homes:?}");

    let from = IpAddr::from([127, 0, 1, 1]);
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(greeted(&proxy, from).await);
    }
    let at_home = open.iter().filter(|(_, endpoint)| *endpoint == homes[&from]).count();
    assert!((1..=3).contains(&at_home), "{at_home} of 6 at one of three endpoints");
    drop(open);
    nothing_open(&proxy).await;
    assert_eq!(greeted(&proxy, from).await.1, homes[&from], "home again");

    all.retain(|endpoint| endpoint.address != homes[&from]);
    proxy.wait_ready(2).await;
    nothing_open(&proxy).await;
    let moved = greeted(&proxy, from).await.1;
    assert_ne!(moved, homes[&from]);
    nothing_open(&proxy).await;
    assert_eq!(greeted(&proxy, from).await.1, moved);
}
