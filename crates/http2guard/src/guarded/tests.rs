#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
use super::*;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const PING: [u8; 17] = [0, 0, 8, kind::PING, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Events = Arc<Mutex<Vec<Event>>>;

fn guarded(room: usize) -> (DuplexStream, Guarded<DuplexStream>, Events) {
    let (client, server) = duplex(room);
    let events = Events::default();
    let seen = Arc::clone(&events);
    let observer: Observer = Arc::new(move |event| seen.lock().unwrap().push(event));
    (client, Guarded::new(server, Bytes::new(), observer), events)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_with_goaway_at_the_end_of_the_frame_that_is_being_written() {
    let (mut client, mut server, events) = guarded(1 << 20);
    let data = frame(kind::DATA, 0, 1, &[7; 1000]);
    let headers = frame(kind::HEADERS, 0, 1, &[0x82]);
    client.write_all(&[&PREFACE[..], &headers, &PING.repeat(100)].concat()).await.unwrap();
    let mut read = vec![0; 24 + headers.len() + 1700];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(&data[..500]).await.unwrap();
    client.write_all(&PING.repeat(500)).await.unwrap();
    let ended = tokio::spawn(async move {
        let mut rest = vec![0; 100 * 1024];
        let reading = async {
            while server.read(&mut rest).await.unwrap() > 0 {}
            server
        };
        // The server is busy with its frame meanwhile.
        reading.await
    });
    tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap().unwrap();
    assert_eq!(*events.lock().unwrap(), [Event::Busy, Event::Flood(Flood::Ping)]);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, &data[..500], "no GOAWAY inside a frame");
}

#[tokio::test(start_paused = true)]
async fn what_is_written_of_a_frame_is_completed_and_the_rest_is_dropped() {
    let (mut client, mut server, _) = guarded(1 << 20);
    let data = frame(kind::DATA, 0, 1, &[7; 1000]);
    client.write_all(&[&PREFACE[..], &PING.repeat(600)].concat()).await.unwrap();
    server.write_all(&data[..500]).await.unwrap();
    let mut buffer = vec![0; 100 * 1024];
    let mut rest = data[500..].to_vec();
    rest.extend_from_slice(&data);
    let (mut reading, mut writing) = tokio::io::split(server);
    let (ended, written) = tokio::join!(reading.read(&mut buffer), async {
        tokio::task::yield_now().await;
        writing.write_all(&rest).await
    });
    assert_eq!(ended.unwrap(), 0);
    written.unwrap();
    writing.shutdown().await.unwrap();
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    let goaway = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]);
    assert_eq!(said, [data, goaway].concat());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_not_waited_for() {
    let (mut client, mut server, events) = guarded(16 * 1024);
    client.write_all(&[&PREFACE[..], &PING.repeat(600)].concat()).await.unwrap();
    // Its window is full.
    server.write_all(&frame(kind::PING, 1, 0, &[0; 8]).repeat(963)).await.unwrap();
    let mut buffer = vec![0; 100 * 1024];
    let started = tokio::time::Instant::now();
    assert_eq!(server.read(&mut buffer).await.unwrap(), 0);
    server.shutdown().await.unwrap();
    assert!(started.elapsed() <= LAST_WORD + LINGER, "{:?}", started.elapsed());
    assert_eq!(*events.lock().unwrap(), [Event::Flood(Flood::Ping)]);
}

#[tokio::test]
async fn what_is_not_http2_passes_as_it_is() {
    let (mut client, mut server, events) = guarded(1 << 20);
    let text = [&b"PRI * HTTP/1.1\r\n\r\n"[..], &PING.repeat(2000)].concat();
    client.write_all(&text).await.unwrap();
    let mut read = vec![0; text.len()];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(read, text);
    server.write_all(&text).await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(read, text);
    assert!(events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_the_library_says_on_its_own_is_told_once() {
    let (mut client, mut server, events) = guarded(1 << 20);
    let requests: Vec<u8> =
        [1, 3, 5, 7, 9, 11].iter().flat_map(|id| frame(kind::HEADERS, 5, *id, &[0x82])).collect();
    client.write_all(&[&PREFACE[..], &requests].concat()).await.unwrap();
    let mut read = vec![0; 24 + requests.len()];
    server.read_exact(&mut read).await.unwrap();
    let end = 5;
    for answer in [
        // An answer of the server's own, with trailers that HPACK makes one byte.
        frame(kind::HEADERS, 4, 1, &[0x88]),
        frame(kind::DATA, 0, 1, b"x"),
        frame(kind::HEADERS, end, 1, &[0xbf]),
        // The library's.
        frame(kind::HEADERS, end, 3, &[0x8c]),
        frame(kind::HEADERS, end, 5, &[0x48, 0x83, 0x68, 0xc8, 0x4f]),
        frame(kind::RST_STREAM, 0, 5, &[0, 0, 0, 1]),
        frame(kind::HEADERS, end, 7, &[0xbe]),
        frame(kind::RST_STREAM, 0, 9, &[0, 0, 0, 1]),
        // A whole answer that has fields.
        frame(kind::HEADERS, end, 11, &[0x8c, 0xbf, 0xc0]),
        frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 11, 0, 0, 0, 1]),
    ] {
        server.write_all(&answer).await.unwrap();
    }
    let expected = [
        Event::Busy,
        Event::Answered(400),
        Event::Answered(431),
        Event::Answered(431),
        Event::Malformed,
        Event::Idle,
        Event::GoneAway(1),
    ];
    assert_eq!(*events.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_header_must_be_complete_in_time_and_so_must_the_first_request() {
    let timeout = Duration::from_secs(10);
    let request = frame(kind::HEADERS, 5, 1, &[0x82; 100]);
    let data = frame(kind::DATA, 0, 1, &[0; 100]);
    let ping = PING.to_vec();
    for (begun, events, code) in [
        (vec![], vec![], Some(0)),
        (ping.clone(), vec![], Some(0)),
        (frame(kind::HEADERS, 1, 1, &[0x82]), vec![Event::Busy, Event::Late], Some(0)),
        (request[..50].to_vec(), vec![Event::Busy, Event::Late], Some(0)),
        ([&request[..], &ping[..7]].concat(), vec![Event::Busy, Event::Late], Some(0)),
        (
            [&request[..], &frame(kind::HEADERS, 1, 3, &[0x82])].concat(),
            vec![Event::Busy, Event::Late],
            Some(0),
        ),
        // A client may take its time between requests, and with a body.
        (request.clone(), vec![Event::Busy], None),
        ([&request[..], &data[..50]].concat(), vec![Event::Busy], None),
    ] {
        let (mut client, server, seen) = guarded(1 << 20);
        let mut server = server.with_header_timeout(timeout);
        client.write_all(&[&PREFACE[..], &begun].concat()).await.unwrap();
        let mut buffer = vec![0; 100 * 1024];
        let started = tokio::time::Instant::now();
        let reading = async { while server.read(&mut buffer).await.unwrap() > 0 {} };
        let ended = tokio::time::timeout(Duration::from_secs(60), reading).await;
        assert_eq!(ended.is_ok(), code.is_some(), "{begun:?}");
        assert_eq!(*seen.lock().unwrap(), events, "{begun:?}");
        if let Some(code) = code {
            assert!(started.elapsed() <= timeout + LAST_WORD, "{:?}", started.elapsed());
            let mut said = Vec::new();
            client.read_to_end(&mut said).await.unwrap();
            assert_eq!(said[said.len() - 4..], [0, 0, 0, code]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_comes_byte_by_byte_does_not_get_more_time() {
    let (mut client, server, seen) = guarded(1 << 20);
    let mut server = server.with_header_timeout(Duration::from_secs(10));
    client.write_all(PREFACE).await.unwrap();
    let drip = async {
        for byte in frame(kind::HEADERS, 5, 1, &[0x82; 100]) {
            client.write_all(&[byte]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        client
    };
    let mut buffer = [0; 1024];
    let started = tokio::time::Instant::now();
    let reading = async { while server.read(&mut buffer).await.unwrap() > 0 {} };
    tokio::select! {
        () = reading => {}
        _ = drip => panic!("still open"),
    }
    assert!(started.elapsed() <= Duration::from_secs(12), "{:?}", started.elapsed());
    assert_eq!(*seen.lock().unwrap(), [Event::Late]);
}
