//! A shared store in the test's own process, which serves Redis's and memcached's protocols on a real socket, and can be
//! told to be slow, full, away, or to lie.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The behaviour of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Serves,
    /// It reads, and says nothing.
    Stalls,
    /// It has no room.
    Full,
    /// It refuses everything.
    Refuses,
    /// It announces a value of 99 GB.
    Huge,
    /// It sends bytes that are no answer.
    Garbage,
    /// It closes the connection in place of an answer.
    Closes,
}

type Values = BTreeMap<String, Vec<u8>>;

struct State {
    mode: Mutex<Mode>,
    values: Mutex<Values>,
    gets: AtomicUsize,
    is_redis: bool,
    password: Option<&'static str>,
}

/// A store.
pub struct StandIn {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl StandIn {
    pub async fn redis() -> Self {
        Self::start(true, None, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn memcached() -> Self {
        Self::start(false, None, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start(
        is_redis: bool,
        password: Option<&'static str>,
        address: SocketAddr,
    ) -> Self {
        let state = Arc::new(State {
            mode: Mutex::new(Mode::Serves),
            values: Mutex::default(),
            gets: AtomicUsize::new(0),
            is_redis,
            password,
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // They end with this task, as all connections of a killed process do.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let _ = serve(stream, &state).await;
                });
            }
        });
        Self { address, state, task }
    }

    pub fn is_redis(&self) -> bool {
        self.state.is_redis
    }

    pub fn set(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    /// Changes what it holds.
    pub fn change(&self, change: impl FnOnce(&mut Values)) {
        change(&mut self.state.values.lock().unwrap());
    }

    /// Keys of kept answers.
    pub fn keys(&self) -> Vec<String> {
        let values = self.state.values.lock().unwrap();
        values.keys().filter(|key| !key.ends_with("epoch")).cloned().collect()
    }

    /// Look-ups of answers.
    pub fn gets(&self) -> usize {
        self.state.gets.load(SeqCst)
    }

    /// Ends it, with all connections.
    pub fn kill(self) -> SocketAddr {
        self.task.abort();
        self.address
    }
}

async fn serve(stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut is_known = state.password.is_none();
    loop {
        let words =
            if state.is_redis { redis(&mut stream).await? } else { memcached(&mut stream).await? };
        let reply = match *state.mode.lock().unwrap() {
            Mode::Closes => return Ok(()),
            Mode::Stalls => continue,
            Mode::Huge if state.is_redis => b"$99000000000\r\n".to_vec(),
            Mode::Huge => b"VALUE k 0 99000000000\r\n".to_vec(),
            Mode::Garbage => b"\x00\xff what\r\n".to_vec(),
            Mode::Refuses if state.is_redis => b"-ERR refused\r\n".to_vec(),
            Mode::Refuses => b"SERVER_ERROR refused\r\n".to_vec(),
            mode => answer(&words, state, &mut is_known, mode == Mode::Full),
        };
        stream.get_mut().write_all(&reply).await?;
    }
}

/// The answer to a command: `[verb, key, value, NX]`.
fn answer(words: &[Vec<u8>], state: &State, is_known: &mut bool, is_full: bool) -> Vec<u8> {
    let text = |place: usize| {
        words.get(place).map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default()
    };
    let key = text(1);
    let mut values = state.values.lock().unwrap();
    match (text(0).as_str(), state.is_redis) {
        ("AUTH", _) => {
            *is_known = Some(text(words.len() - 1).as_str()) == state.password;
            if *is_known { b"+OK\r\n".to_vec() } else { b"-WRONGPASS no\r\n".to_vec() }
        }
        _ if !*is_known => b"-NOAUTH no\r\n".to_vec(),
        ("SELECT", _) => b"+OK\r\n".to_vec(),
        ("GET", is_redis) => {
            if !key.ends_with("epoch") {
                state.gets.fetch_add(1, SeqCst);
            }
            match (values.get(&key), is_redis) {
                (Some(value), true) => {
                    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
                }
                (None, true) => b"$-1\r\n".to_vec(),
                (Some(value), false) => {
                    let head = format!("VALUE {key} 0 {}\r\n", value.len());
                    [head.as_bytes(), value, b"\r\nEND\r\n"].concat()
                }
                (None, false) => b"END\r\n".to_vec(),
            }
        }
        ("SET", is_redis) => {
            let is_kept = text(words.len() - 1) == "NX" && values.contains_key(&key);
            if is_full && !key.ends_with("epoch") {
                let redis =
                    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_vec();
                return if is_redis {
                    redis
                } else {
                    b"SERVER_ERROR out of memory storing object\r\n".to_vec()
                };
            }
            if !is_kept {
                values.insert(key, words[2].clone());
            }
            match (is_redis, is_kept) {
                (true, false) => b"+OK\r\n".to_vec(),
                (true, true) => b"$-1\r\n".to_vec(),
                (false, false) => b"STORED\r\n".to_vec(),
                (false, true) => b"NOT_STORED\r\n".to_vec(),
            }
        }
        _ => b"-ERR unknown command\r\n".to_vec(),
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

async fn exact(stream: &mut BufReader<TcpStream>, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length + 2];
    stream.read_exact(&mut bytes).await?;
    bytes.truncate(length);
    Ok(bytes)
}

async fn redis(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<Vec<u8>>> {
    let count: usize = line(stream).await?[1..].parse().unwrap();
    let mut words = Vec::new();
    for _ in 0..count {
        let length = line(stream).await?[1..].parse().unwrap();
        words.push(exact(stream, length).await?);
    }
    Ok(words)
}

async fn memcached(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<Vec<u8>>> {
    let line = line(stream).await?;
    let words: Vec<_> = line.split(' ').collect();
    let key = words[1].as_bytes().to_vec();
    if words[0] == "get" {
        return Ok(vec![b"GET".to_vec(), key]);
    }
    let value = exact(stream, words[4].parse().unwrap()).await?;
    let last = if words[0] == "add" { "NX" } else { "" };
    Ok(vec![b"SET".to_vec(), key, value, last.into()])
}
