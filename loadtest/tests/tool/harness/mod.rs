//! Servers whose behaviour is known, on ports that the system chose.

use clap::Parser as _;
use forebay_loadtest::args::{Cli, Command};
use forebay_loadtest::distribution::Distribution;
use forebay_loadtest::plan::Plan;
use forebay_loadtest::synthetic::{self, Options, Service};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// The plan that a command line after `forebay-load run` describes.
pub(crate) fn plan(line: &str) -> Plan {
    let words = ["forebay-load", "run"].into_iter().chain(line.split_whitespace());
    let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else {
        unreachable!("the line says run")
    };
    args.finish(Plan::new(args.scenario().unwrap()).unwrap())
}

/// Runs a future on a runtime of its own, of the kind that the generator uses.
pub(crate) fn local<T>(future: impl Future<Output = T>) -> T {
    let options = tokio::runtime::LocalOptions::default();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build_local(options).unwrap().block_on(future)
}

/// A URL at which nobody listens.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The bytes of a base64 text without line breaks.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<usize> = text
        .bytes()
        .filter(|byte| *byte != b'=')
        .map(|byte| ALPHABET.iter().position(|digit| *digit == byte).unwrap())
        .collect();
    let byte = |i: usize| {
        let bits = digits[i * 8 / 6] << 6 | digits[i * 8 / 6 + 1];
        u8::try_from(bits >> (4 - i * 8 % 6) & 0xff).unwrap()
    };
    (0..digits.len() * 6 / 8).map(byte).collect()
}

/// A file with an inference request.
pub(crate) fn input() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tool/harness/input.json")
}

/// A synthetic backend in a thread of its own.
pub(crate) struct Backend {
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Serves at once what does not ask for a service time.
    pub(crate) fn slots(slots: u32) -> Self {
        let time = Distribution::Constant(0.0);
        let service = Service { slots, queue: 10_000, time, slow: 1.0, seed: 1 };
        let options = Options { model: "synthetic".to_owned(), service: Some(service) };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            local(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let backend = Rc::new(synthetic::Backend::new(options));
                tokio::select! {
                    result = backend.accept(listener) => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { url, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// A server that answers every request with the same bytes, and then closes the connection or
/// leaves it open.
pub(crate) struct Canned {
    pub(crate) url: String,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Canned {
    pub(crate) fn new(answer: &str, close: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (answer, stopped) = (answer.as_bytes().to_vec(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, stream) = (answer.clone(), stream.unwrap());
                connections.push(std::thread::spawn(move || serve(stream, &answer, close)));
            }
            for connection in connections {
                let _ = connection.join();
            }
        });
        Self { url: format!("http://{address}"), address, stop, thread: Some(thread) }
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        let _ = self.thread.take().unwrap().join();
    }
}

/// Longest time that a test's client may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

fn serve(mut stream: TcpStream, answer: &[u8], close: bool) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    loop {
        while let Some(length) = request_length(&seen) {
            seen.drain(..length);
            if stream.write_all(answer).is_err() || close {
                return;
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(n) => seen.extend_from_slice(&piece[..n]),
        }
    }
}

/// Length of the first whole request in `bytes`, head and body.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse::<usize>().unwrap());
    (bytes.len() >= head + body).then_some(head + body)
}
