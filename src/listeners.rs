//! The sockets that clients connect to, and the acceptors of their connections.
//!
//! Everything is bound before anything runs: an address in use is an error message, not a panic
//! inside a service. And a socket stays open when its own loop has ended, because closing it with
//! connections in line would reset clients that the kernel has let in already.
//!
//! A service manager may hold the sockets and pass them on to each process in turn. Then there is no
//! moment without them, and no connection that is refused while a process is exchanged.

use crate::config::{self, Protocol};
use crate::connections::Connections;
use crate::downstream::accept::Accept;
use crate::downstream::accept_loop::{self, MAX_WAITING};
use crate::downstream::http2;
use crate::exhausted;
use crate::http::proxy::Proxy;
use crate::tcp::Layer4;
use anyhow::{Context, Result};
use forebay_process::resources::{Descriptors, Exhausted};
use forebay_process::supervise::{Importance, Supervisor};
use forebay_protocol::Reason;
use listenfd::ListenFd;
use pingora::apps::HttpServerOptions;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Sockets that were bound before anything runs.
pub struct Sockets {
    bound: HashMap<SocketAddr, Socket>,
    /// Those that were passed, and that no listener has asked for yet.
    passed: HashMap<SocketAddr, TcpListener>,
}

struct Socket {
    socket: TcpListener,
    /// Whether someone else holds it, too.
    is_passed: bool,
}

impl Sockets {
    /// Takes over the sockets that a service manager has passed, as systemd does (`LISTEN_FDS`); none are
    /// bound yet. Call it before there are threads that read the environment: the variables are removed, so
    /// that no worker takes the sockets for its own.
    pub fn passed() -> Self {
        let mut found = ListenFd::from_env();
        let mut passed = HashMap::new();
        for place in 0..found.len() {
            let socket = found.take_tcp_listener(place);
            match socket.and_then(|socket| socket.map(addressed).transpose()) {
                Ok(socket) => passed.extend(socket),
                Err(error) => {
                    tracing::warn!(place, %error, "ignoring passed socket: not a usable TCP listener");
                    // Or every worker would inherit it.
                    if let Ok(Some(open)) = found.take_raw_fd(place) {
                        let _ = nix::unistd::close(open);
                    }
                }
            }
        }
        Self { bound: HashMap::new(), passed }
    }

    /// Binds an address.
    ///
    /// # Errors
    /// It is in use, or not of this machine.
    pub fn bind(&mut self, address: SocketAddr) -> Result<SocketAddr> {
        let passed = self.passed.remove(&address);
        let is_passed = passed.is_some();
        let socket = match passed {
            Some(passed) => passed,
            None => {
                TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))?
            }
        };
        if is_passed {
            tracing::info!(%address, "listening on a passed socket");
        }
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        self.bound.insert(address, Socket { socket, is_passed });
        Ok(address)
    }

    /// Says which sockets were passed that nothing listens on; they are closed.
    pub fn close_unused(&mut self) {
        for (address, _) in self.passed.drain() {
            tracing::warn!(%address, "ignoring passed socket: no listener has its address");
        }
    }

    /// A handle of our own on a bound socket: it stays open when a service closes its own.
    pub fn hold(&self, address: SocketAddr) -> Result<TcpListener> {
        let bound = self.bound.get(&address).context("a listener was not bound")?;
        Ok(bound.socket.try_clone()?)
    }
}

fn addressed(socket: TcpListener) -> std::io::Result<(SocketAddr, TcpListener)> {
    Ok((socket.local_addr()?, socket))
}

/// One listener.
pub struct Listener {
    bound: SocketAddr,
    socket: TcpListener,
    /// Whether someone else holds it, too, and passes it to the next process.
    outlives: bool,
    acceptor: Arc<Acceptor>,
    /// Its open connections.
    pub connections: Arc<Connections>,
}

/// The handler of a listener's connections.
enum Acceptor {
    Http(Arc<Accept>),
    Tcp(Arc<Layer4>),
}

impl Listener {
    /// A listener, with its place in the configuration, at a socket that was bound.
    ///
    /// # Errors
    /// The socket was not bound, or no handle on it is left.
    pub fn new(
        sockets: &Sockets,
        bound: SocketAddr,
        (place, listener): (usize, &config::Listener),
        proxy: &Proxy,
        server: &config::Server,
    ) -> Result<Self> {
        let connections = Arc::new(Connections::new(bound, listener));
        let acceptor = match &listener.protocol {
            Protocol::Http { h2 } => Acceptor::Http(Arc::new(Accept {
                proxy: Arc::new(http(proxy, *h2, server)),
                place,
                h2: *h2,
                proxy_protocol: listener.proxy_protocol,
                connections: Arc::clone(&connections),
                snapshot: Arc::clone(&proxy.services.present),
                lifecycle: Arc::clone(&proxy.services.lifecycle),
                observer: Arc::clone(&proxy.observer),
            })),
            Protocol::Tcp(settings) => Acceptor::Tcp(Arc::new(Layer4 {
                place,
                settings: settings.clone(),
                proxy_protocol: listener.proxy_protocol,
                connections: Arc::clone(&connections),
                snapshot: Arc::clone(&proxy.services.present),
                lifecycle: Arc::clone(&proxy.services.lifecycle),
                observer: Arc::clone(&proxy.observer),
            })),
        };
        let outlives = sockets.bound.get(&bound).is_some_and(|socket| socket.is_passed);
        let socket = sockets.hold(bound)?;
        Ok(Self { bound, socket, outlives, acceptor: Arc::new(acceptor), connections })
    }

    /// Serves until told to stop. Where clients may be waiting already, or another process takes them,
    /// not before `ready`.
    ///
    /// # Errors
    /// The kernel refuses to listen.
    pub fn open(
        &self,
        tasks: &Supervisor,
        stopping: &watch::Receiver<bool>,
        services: &mut JoinSet<()>,
        ready: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let listener = Arc::new(accept_loop::listener(&self.socket)?);
        let name: Arc<str> = self.bound.to_string().into();
        let (acceptor, stopping) = (Arc::clone(&self.acceptor), stopping.clone());
        let accept = move || {
            let (listener, name) = (Arc::clone(&listener), Arc::clone(&name));
            let (acceptor, stopping) = (Arc::clone(&acceptor), stopping.clone());
            async move {
                let take = |stream, peer| acceptor.take(stream, peer, &stopping);
                accept_loop::accept(&listener, &name, stopping.clone(), take).await;
            }
        };
        let (tasks, outlives) = (tasks.clone(), self.outlives);
        services.spawn(async move {
            if outlives {
                ready.await;
            }
            tasks.keep_up("accept", Importance::Vital, accept).await;
        });
        Ok(())
    }

    /// Accepts the connections that still wait in the kernel, and closes.
    pub fn close(self, stop: &watch::Sender<bool>) {
        if self.outlives {
            // They wait for the next process, which has more time for them.
            return;
        }
        for _ in 0..MAX_WAITING {
            let Ok((stream, peer)) = self.socket.accept() else { return };
            let Ok(()) = stream.set_nonblocking(true) else { continue };
            let Ok(stream) = TcpStream::from_std(stream) else { continue };
            self.acceptor.take(stream, peer, &stop.subscribe());
        }
    }
}

impl Acceptor {
    fn connections(&self) -> &Connections {
        match self {
            Self::Http(accept) => &accept.connections,
            Self::Tcp(layer4) => &layer4.connections,
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr, stop: &watch::Receiver<bool>) {
        if !Descriptors::of_this_process().allow_client(stream.as_fd()) {
            exhausted::count(Exhausted::Descriptors, "accept");
            self.connections().refused(Reason::ProxyExhausted);
            return match self {
                Self::Http(accept) => accept.one_too_many(stream, peer),
                Self::Tcp(_) => exhausted::reset(&stream),
            };
        }
        match self {
            Self::Http(accept) => accept.take(stream, peer, stop),
            Self::Tcp(layer4) => layer4.take(stream, peer),
        }
    }
}

fn http(proxy: &Proxy, h2: bool, server: &config::Server) -> HttpProxy<Proxy> {
    let conf = ServerConf {
        threads: server.threads,
        upstream_keepalive_pool_size: server.idle_connections.div_ceil(server.threads),
        ..ServerConf::default()
    };
    let mut app = HttpProxy::new(proxy.clone(), Arc::new(conf));
    app.handle_init_modules();
    app.h2_options = Some(http2::options(server.http2_window));
    let mut options = HttpServerOptions::default();
    // Within TLS it is agreed upon beforehand.
    options.h2c = h2;
    // It is refused in the usual form, see `request_head::check_http2`.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(Duration::from_secs(60));
    app.server_options = Some(options);
    app
}
