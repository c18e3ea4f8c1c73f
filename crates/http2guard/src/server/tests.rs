#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
use super::*;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const WINDOW: u32 = 65_535;

type Floods = Arc<Mutex<Vec<Flood>>>;

fn guarded(room: usize) -> (DuplexStream, GuardedServer<DuplexStream>, Floods) {
    let (server, client) = duplex(room);
    let floods = Floods::default();
    let seen = Arc::clone(&floods);
    let observer: FloodObserver = Arc::new(move |flood| seen.lock().unwrap().push(flood));
    (server, GuardedServer::new(client, WINDOW, observer), floods)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

fn request(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, &[0x82])
}

/// Reads until the connection gives an error.
async fn error_of(client: &mut GuardedServer<DuplexStream>) -> io::Error {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match client.read(&mut buffer).await {
            Ok(0) => panic!("the end"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn flood_of(error: &io::Error) -> Flood {
    error.get_ref().unwrap().downcast_ref::<Flooded>().unwrap().0
}

#[tokio::test]
async fn a_flood_is_told_ends_all_and_is_said_to_the_server() {
    for (sent, flood, code) in [
        (PING.repeat(1000), Flood::Ping, 11),
        (frame(0, 0, 1, &[0; 16_000]).repeat(5), Flood::FlowControl, 3),
    ] {
        let (mut server, mut client, floods) = guarded(1 << 20);
        client.write_all(&[&PREFACE[..], &request(1)].concat()).await.unwrap();
        server.write_all(&sent).await.unwrap();
        assert_eq!(flood_of(&error_of(&mut client).await), flood);
        assert_eq!(*floods.lock().unwrap(), [flood]);
        // Nothing more comes, nothing more goes, and it is told once.
        let mut buffer = [0; 10];
        assert_eq!(flood_of(&client.read(&mut buffer).await.unwrap_err()), flood);
        assert_eq!(flood_of(&client.write_all(&request(3)).await.unwrap_err()), flood);
        assert_eq!(*floods.lock().unwrap(), [flood]);
        drop(client);
        let mut said = Vec::new();
        server.read_to_end(&mut said).await.unwrap();
        let goaway = frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
        assert_eq!(said, [&PREFACE[..], &request(1), &goaway].concat());
    }
}

#[tokio::test]
async fn an_answer_that_is_complete_before_the_flood_is_read() {
    let (mut server, mut client, _) = guarded(1 << 20);
    client.write_all(&[&PREFACE[..], &request(1)].concat()).await.unwrap();
    let answer = [frame(1, 4, 1, &[0x88]), frame(0, 1, 1, b"{}")].concat();
    server.write_all(&[&answer[..], &PING.repeat(1000)].concat()).await.unwrap();
    let mut read = vec![0; 64 * 1024];
    let first = client.read(&mut read).await.unwrap();
    assert!(read[..first].starts_with(&answer));
    assert!(first < 600 * PING.len(), "{first}");
    assert_eq!(flood_of(&error_of(&mut client).await), Flood::Ping);
}

#[tokio::test]
async fn no_goaway_is_written_into_a_frame_or_into_the_preface() {
    let data = frame(0, 0, 1, &[7; 1000]);
    for begun in [&PREFACE[..10], &[&PREFACE[..], &request(1), &data[..500]].concat()] {
        let (mut server, mut client, _) = guarded(1 << 20);
        client.write_all(begun).await.unwrap();
        server.write_all(&PING.repeat(1000)).await.unwrap();
        error_of(&mut client).await;
        drop(client);
        let mut said = Vec::new();
        server.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, begun);
    }
}

#[tokio::test]
async fn a_server_that_reads_nothing_is_not_waited_for() {
    let (mut server, mut client, floods) = guarded(32 * 1024);
    let fills = [&PREFACE[..], &frame(0, 0, 1, &vec![0; 32 * 1024 - 24 - 9])].concat();
    client.write_all(&fills).await.unwrap();
    server.write_all(&PING.repeat(1000)).await.unwrap();
    assert_eq!(flood_of(&error_of(&mut client).await), Flood::Ping);
    assert_eq!(*floods.lock().unwrap(), [Flood::Ping]);
}

#[tokio::test]
async fn pieces_of_any_size_are_the_same_frames() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut answers = Vec::new();
    let mut requests = PREFACE.to_vec();
    for stream in (1..400).step_by(2) {
        requests.extend(request(stream));
        answers.extend(frame(1, 4, stream, &[0x88]));
        answers.extend(frame(0, 1, stream, &vec![1; rng.usize(0..300)]));
    }
    let (mut server, mut client, floods) = guarded(1 << 20);
    for piece in pieces(&requests, &mut rng) {
        client.write_all(piece).await.unwrap();
    }
    let expected = answers.clone();
    let writing = async {
        for piece in pieces(&answers, &mut rng) {
            server.write_all(piece).await.unwrap();
        }
        server
    };
    let mut read = vec![0; expected.len()];
    let (_server, outcome) = tokio::join!(writing, client.read_exact(&mut read));
    outcome.unwrap();
    assert_eq!(read, expected, "seed {seed}");
    assert!(floods.lock().unwrap().is_empty(), "seed {seed}");
}

fn pieces<'a>(bytes: &'a [u8], rng: &mut fastrand::Rng) -> Vec<&'a [u8]> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rng.usize(1..40).min(rest.len()));
        found.push(piece);
        rest = more;
    }
    found
}
