//! Servers whose behaviour is known, on ports that the system chose.

use base64::Engine as _;
use clap::Parser as _;
use forebay_loadtest::cli::args::{Cli, Command};
use forebay_loadtest::distribution::Distribution;
use forebay_loadtest::generate::run::{self, Options as RunOptions};
use forebay_loadtest::plan::Plan;
use forebay_loadtest::report::Report;
use forebay_loadtest::synthetic::{self, Options, Service};
use rustls::pki_types::PrivateKeyDer;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// The error of a command line that makes no plan.
pub(crate) fn refused(line: &str) -> String {
    let words = ["forebay-load", "run"].into_iter().chain(line.split_whitespace());
    let command = match Cli::try_parse_from(words) {
        Ok(cli) => cli.command,
        Err(error) => return error.to_string(),
    };
    let Command::Run(args) = command else { unreachable!("the line says run") };
    Plan::new(args.scenario().unwrap()).unwrap_err().to_string()
}

/// The part of a scenario that says when requests start: an open loop at one rate.
pub(crate) fn steady(spacing: &str, rate: &str, length: &str) -> String {
    format!(
        "[load]\nkind = \"open\"\nspacing = \"{spacing}\"\n\
         [[load.phase]]\nkind = \"constant\"\nrate = \"{rate}\"\nfor = \"{length}\"\n"
    )
}

/// The report of a run that a command line describes.
pub(crate) fn report(line: &str) -> Report {
    run::run(plan(line), RunOptions::default()).unwrap()
}

/// How many requests of a run ended so.
pub(crate) fn count(report: &Report, class: &str) -> u64 {
    report.results.outcomes.iter().filter(|outcome| outcome.class == class).map(|o| o.count).sum()
}

/// Runs a future on a runtime of its own, of the kind that the generator uses.
pub(crate) fn local<T>(future: impl Future<Output = T>) -> T {
    let options = tokio::runtime::LocalOptions::default();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build_local(options).unwrap().block_on(future)
}

/// A port at which no program listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A URL at which no program listens.
pub(crate) fn unused_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The bytes of a base64 text without line breaks.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
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

/// A TLS terminator before a backend that speaks none.
pub(crate) struct Secret {
    pub(crate) url: String,
    /// File with the certificate that vouches for it.
    pub(crate) ca: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Secret {
    pub(crate) fn before(backend: &Backend) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let name = format!("forebay-load-{}-{number}.pem", std::process::id());
        let ca = std::env::temp_dir().join(name);
        let text = base64::engine::general_purpose::STANDARD.encode(made.cert.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(&ca, pem).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let behind = backend.url.strip_prefix("http://").unwrap().to_owned();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            local(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let (acceptor, behind) = (acceptor.clone(), behind.clone());
                        tokio::task::spawn_local(async move {
                            // A client that does not trust the certificate leaves here.
                            let Ok(mut secret) = acceptor.accept(stream).await else { return };
                            let mut plain = tokio::net::TcpStream::connect(behind).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut secret, &mut plain).await;
                        });
                    }
                };
                tokio::select! { () = accept => {}, _ = stopped => {} }
            });
        });
        let ca = ca.to_str().unwrap().to_owned();
        Self { url, ca, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
        let _ = std::fs::remove_file(&self.ca);
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
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

fn serve(mut stream: TcpStream, answer: &[u8], close: bool) {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
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
