//! PROXY headers in and out, at both layers.

use crate::client::{post, raw};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{MAX_WAIT, Proxy, anywhere, pool_of};
use crate::layer4::{Plain, PlainEndpoint, layer4, line};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x40\x01\xbb";
const CALLER: &str = "192.0.2.7:40000";
const INFER: &str = "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                     content-length: 1\r\n\r\nx";

#[tokio::test]
async fn a_request_is_logged_with_the_client_that_the_header_names() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let config = format!("proxy_protocol = \"require\"\n{}", pool_of(&[endpoint.address], ""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    for header in [V1, V2] {
        let bytes = [header, INFER.as_bytes()].concat();
        let (answer, _) = raw(proxy.address, &bytes, MAX_WAIT).await;
        assert!(answer.contains(&echo(b"x")), "{answer}");
        assert_eq!(proxy.next_line()["client"], CALLER);
    }
    // In pieces, and with a sender that speaks for itself.
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in [b"PROXY UNKNOWN\r\n", INFER.as_bytes()].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    timeout(MAX_WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains(&echo(b"x")), "{answer}");
    let here = stream.local_addr().unwrap().to_string();
    assert_eq!(proxy.next_line()["client"], here);
}

#[tokio::test]
async fn a_connection_without_a_header_is_closed_where_one_is_required() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let second = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"tcp\"\npool = \"test\"\n\
                  proxy_protocol = \"require\"";
    let config =
        format!("proxy_protocol = \"require\"\n{second}\n{}", pool_of(&[endpoint.address], ""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    for address in &proxy.listeners {
        for bad in [INFER, "PROXY TCP4 1.2.3.4\r\n", "PROXY nonsense"] {
            let (answer, closed) = raw(*address, bad.as_bytes(), Duration::from_secs(20)).await;
            assert!(answer.is_empty() && closed, "{bad:?}: {answer}");
        }
        let labels = [&format!("listener=\"{address}\"")[..], "reason=\"invalid_proxy_header\""];
        assert_eq!(proxy.metric("forebay_connections_total", &labels).await, 3.0);
    }
    assert_eq!(proxy.next_line()["reason"], "invalid_proxy_header", "Layer 4 logs it");
    assert_eq!(endpoint.served(), 0);
}

#[tokio::test]
async fn where_none_is_expected_a_header_is_no_way_to_choose_an_address() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let (answer, closed) = raw(proxy.address, &[V1, INFER.as_bytes()].concat(), MAX_WAIT).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && closed, "{answer}");
    assert_eq!(post(proxy.address, "/v2/models/m/infer", "x").await.status, 200);
    assert_eq!(endpoint.served(), 1);
}

/// The bytes that an endpoint gets on the connection of a client that sends these and no more, and the
/// client's address.
async fn received(listener: &str, sent: &[u8]) -> (Vec<u8>, SocketAddr, Proxy) {
    let endpoint = TcpListener::bind(anywhere()).await.unwrap();
    let proxy = layer4(&[endpoint.local_addr().unwrap()], listener, "").await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(sent).await.unwrap();
    client.shutdown().await.unwrap();
    let bytes = async {
        loop {
            let (mut stream, _) = endpoint.accept().await.unwrap();
            let mut bytes = Vec::new();
            // Probes come and go without a word.
            if stream.read_to_end(&mut bytes).await.is_ok() && !bytes.is_empty() {
                return bytes;
            }
        }
    };
    let bytes = timeout(MAX_WAIT, bytes).await.unwrap();
    (bytes, client.local_addr().unwrap(), proxy)
}

#[tokio::test]
async fn an_endpoint_is_told_whose_connection_it_gets() {
    let (bytes, client, proxy) = received("send_proxy_protocol = \"v1\"", b"hello").await;
    let (from, to) = (client.port(), proxy.address.port());
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\nhello");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);

    let (bytes, client, _proxy) = received("send_proxy_protocol = \"v2\"", b"hello").await;
    assert_eq!(&bytes[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!(bytes[24..26], client.port().to_be_bytes());
    assert_eq!(&bytes[28..], b"hello");
}

#[tokio::test]
async fn the_client_is_passed_on_from_one_header_to_the_next() {
    let both = "proxy_protocol = \"require\"\nsend_proxy_protocol = \"v1\"";
    let sent = [V2, b"hello"].concat();
    let (bytes, _, proxy) = received(both, &sent).await;
    assert_eq!(bytes, [V1, b"hello"].concat());
    let line = proxy.next_line();
    assert_eq!(line["client"], CALLER);
    assert_eq!(line["bytes_in"], 5, "the header is not the client's");
}

#[tokio::test]
async fn an_endpoint_that_speaks_first_need_not_wait_for_the_client() {
    let endpoint = PlainEndpoint::start(Plain::Greet).await;
    let both = "proxy_protocol = \"require\"";
    let proxy = layer4(&[endpoint.address], both, "").await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(V2).await.unwrap();
    let greeting = timeout(MAX_WAIT, line(&mut client)).await.unwrap();
    assert_eq!(greeting, endpoint.address.to_string());
    client.shutdown().await.unwrap();
    assert_eq!(timeout(MAX_WAIT, client.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert_eq!(proxy.next_line()["client"], CALLER);
}
