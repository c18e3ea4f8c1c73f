//! Layer 4: a whole connection goes to one endpoint, with any protocol.
//!
//! The pools, their health and their counts are those of Layer 7: an endpoint is picked for a connection as
//! for a request, and the connection counts as one request in flight until it ends. The endpoint's use of it
//! can't be seen from here. So only connecting is retried: once an endpoint has accepted a connection, the
//! connection stays there.

mod connect;
pub mod relay;

use crate::config;
use crate::connections::{Connection, Connections};
use crate::downstream::tls;
use crate::http::identify;
use crate::lifecycle::{InFlightRequest, Lifecycle};
use crate::pool::attempt::EndpointAttempt;
use crate::pool::{Pool, Snapshot, liveness};
use crate::refusal::Refusal;
use crate::tcp::connect::connect;
use crate::tcp::relay::{End, Traffic, relay};
use crate::telemetry::access_log::{ConnectionEntry, timestamp};
use crate::telemetry::observe::Observer;
use arc_swap::ArcSwap;
use bytes::BytesMut;
use forebay_framing::proxy_protocol::{self, Ends, Version};
use forebay_protocol::{Reason, metric};
use forebay_routing::{Blame, Outcome};
use metrics::Counter;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, join};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// A listener at Layer 4.
pub struct Layer4 {
    /// The listener's place in the configuration.
    pub place: usize,
    /// Settings of the configuration.
    pub settings: config::Tcp,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Its open connections.
    pub connections: Arc<Connections>,
    /// The present picture of the fleet.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Whether the process is on its way out, and what is in flight.
    pub lifecycle: Arc<Lifecycle>,
    /// Metrics and access log.
    pub observer: Arc<Observer>,
}

impl Layer4 {
    /// Takes one connection, unless there are too many.
    pub fn take(self: &Arc<Self>, client: TcpStream, peer: SocketAddr) {
        let Some(mut connection) = self.connections.enter() else {
            return reset(&client);
        };
        if !self.proxy_protocol && !connection.belongs_to(peer.ip()) {
            connection.ended(Reason::ConnectionLimit);
            return reset(&client);
        }
        let counted = self.lifecycle.enter();
        let session = Session::new(connection, counted, peer);
        let layer4 = Arc::clone(self);
        tokio::spawn(async move { layer4.pass(client, session).await });
    }

    async fn pass(&self, mut client: TcpStream, mut session: Session) {
        let ended = tokio::select! {
            ended = self.forward(&mut client, &mut session) => ended,
            () = self.lifecycle.cut_off() => Err(Refusal::new(Reason::Draining, "the proxy stops")),
        };
        let refusal = ended.err();
        // An end in the middle must not look like an end in order.
        if refusal.as_ref().is_some_and(|refusal| refusal.reason != Reason::IdleTimeout) {
            reset(&client);
        }
        drop(client);
        session.finish(&self.observer, &self.settings.pool, refusal.as_ref());
    }

    /// From the first byte to the last.
    ///
    /// # Errors
    /// Why it did not end in order.
    async fn forward(&self, client: &mut TcpStream, session: &mut Session) -> Result<(), Refusal> {
        // Without it an answer may be late, but not wrong.
        let _ = client.set_nodelay(true);
        let began = Instant::now();
        let early = self.begin(client, session).await?;
        let config = Arc::clone(&self.snapshot.load().config);
        let Some(server) = tls::current(&config, self.place) else {
            return self.proxy(client, &early, session).await;
        };
        let (read, write) = client.split();
        let socket = join(early.chain(read), write);
        let in_all = config.limits.header_timeout;
        let shaken = tls::handshake(server, socket, (began, in_all), &self.connections).await;
        let mut stream =
            shaken.map_err(|error| Refusal::new(Reason::TlsHandshakeFailed, error.to_string()))?;
        session.tls = Some(tls::version(&stream));
        self.proxy(&mut stream, &[], session).await
    }

    /// To an endpoint and back, until either is done; `early` was read from the client already.
    ///
    /// # Errors
    /// Why it did not end in order.
    async fn proxy<C>(
        &self,
        client: &mut C,
        early: &[u8],
        session: &mut Session,
    ) -> Result<(), Refusal>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let snapshot = self.snapshot.load_full();
        let pool = snapshot.pools.iter().find(|pool| pool.config.name == self.settings.pool);
        let Some(pool) = pool else {
            let message = format!("there is no pool {}", self.settings.pool);
            return Err(Refusal::new(Reason::NoEndpoint, message));
        };
        let key = identify::key_of_address(&pool.config, session.ends.source);
        let mut endpoint = connect(pool, &mut session.attempts, key).await?;
        let _ = endpoint.set_nodelay(true);
        session.connected = Some(session.arrived.elapsed());
        let traffic = session.traffic(pool);
        traffic.read_before(early.len());
        let idle = self.settings.idle_timeout;
        let preamble = self.preamble(session.ends, early);
        if !preamble.is_empty() {
            let written = timeout(idle, endpoint.write_all(&preamble)).await;
            if !matches!(written, Ok(Ok(()))) {
                session.suspect();
                return Err(broke(Reason::EndpointReset));
            }
        }
        let socket = endpoint.as_raw_fd();
        let end = match session.attempts.last().map(|picked| Arc::clone(&picked.endpoint.state)) {
            None => End::EndpointBroke,
            Some(state) => tokio::select! {
                end = relay(client, &mut endpoint, &traffic, idle) => end,
                () = liveness::unreachable(&state, socket) => End::EndpointBroke,
            },
        };
        if end == End::ClientBroke {
            reset(&endpoint);
        }
        match end {
            End::Orderly => {
                session.went_well();
                Ok(())
            }
            End::Idle => {
                let message = format!("no byte in either direction for {idle:?}");
                Err(Refusal::new(Reason::IdleTimeout, message))
            }
            End::ClientBroke => Err(broke(Reason::ClientClosed)),
            End::EndpointBroke => {
                session.suspect();
                Err(broke(Reason::EndpointReset))
            }
        }
    }

    /// Reads the PROXY header if one is required. The bytes behind it are the first of the client's own.
    async fn begin(
        &self,
        client: &mut TcpStream,
        session: &mut Session,
    ) -> Result<BytesMut, Refusal> {
        if let Ok(destination) = client.local_addr() {
            session.ends.destination = destination;
        }
        if !self.proxy_protocol {
            return Ok(BytesMut::new());
        }
        match proxy_protocol::read(client).await {
            Ok((ends, rest)) => {
                if let Some(ends) = ends {
                    session.ends = ends;
                    if !session.connection.belongs_to(ends.source.ip()) {
                        let words = "this client has reached max_connections_per_client";
                        return Err(Refusal::new(Reason::ConnectionLimit, words));
                    }
                }
                Ok(rest)
            }
            Err(error) => Err(Refusal::new(Reason::InvalidProxyHeader, error.to_string())),
        }
    }

    /// The bytes that an endpoint receives first.
    fn preamble(&self, ends: Ends, early: &[u8]) -> Vec<u8> {
        let header = |version: Version| proxy_protocol::write(version, ends).ok();
        let mut preamble = self.settings.send_proxy_protocol.and_then(header).unwrap_or_default();
        preamble.extend_from_slice(early);
        preamble
    }
}

fn broke(reason: Reason) -> Refusal {
    let message = match reason {
        Reason::ClientClosed => "the client's connection broke",
        _ => "the endpoint's connection broke",
    };
    Refusal::new(reason, message)
}

/// Makes the connection end with a reset when it is closed.
fn reset(stream: &TcpStream) {
    // One that is gone already needs no reset.
    let _ = stream.set_zero_linger();
}

/// One connection on its way: what is known of it, for the log.
struct Session {
    arrived: Instant,
    connection: Connection,
    /// Lets a draining process wait for it.
    _counted: InFlightRequest,
    ends: Ends,
    tls: Option<&'static str>,
    attempts: Vec<EndpointAttempt>,
    connected: Option<Duration>,
    traffic: Option<Arc<Traffic>>,
}

impl Session {
    fn new(connection: Connection, counted: InFlightRequest, peer: SocketAddr) -> Self {
        Self {
            arrived: Instant::now(),
            connection,
            _counted: counted,
            // Both are put right before anyone asks.
            ends: Ends { source: peer, destination: peer },
            tls: None,
            attempts: Vec::with_capacity(1),
            connected: None,
            traffic: None,
        }
    }

    /// Begins to count what passes to the endpoint that took it.
    fn traffic(&mut self, pool: &Pool) -> Arc<Traffic> {
        let taken = self.attempts.last().map(|picked| Arc::clone(&picked.endpoint));
        let endpoint = taken.as_ref().map_or("", |endpoint| &endpoint.state.name);
        let counter = |direction: &'static str| -> Counter {
            metric::proxy::CONNECTION_BYTES.with([
                &self.connection.listener().listener,
                pool.config.name.as_str(),
                endpoint,
                direction,
            ])
        };
        let traffic = Arc::new(Traffic::new(counter("in"), counter("out"), taken));
        self.traffic = Some(Arc::clone(&traffic));
        traffic
    }

    /// It ended in order; one that was closed without a word says nothing.
    fn went_well(&self) {
        if self.traffic.as_ref().is_some_and(|t| t.from_endpoint.bytes() > 0)
            && let Some(picked) = self.attempts.last()
        {
            picked.endpoint.state.note(Outcome::Understood);
        }
    }

    /// The endpoint's connection broke: a probe finds out why. If nothing came back at all, it
    /// also counts as a failure there.
    fn suspect(&mut self) {
        let silent = self.traffic.as_ref().is_none_or(|t| t.from_endpoint.bytes() == 0);
        let Some(picked) = self.attempts.last_mut() else { return };
        if silent {
            picked.settle(Blame::Failed);
            picked.endpoint.state.note(Outcome::Failed);
        } else {
            picked.endpoint.state.suspect();
        }
    }

    /// The end: counts, and a line in the access log.
    fn finish(mut self, observer: &Observer, pool: &str, refusal: Option<&Refusal>) {
        if let Some(refusal) = refusal {
            self.connection.ended(refusal.reason);
        }
        let listener = &self.connection.listener().listener;
        let total = self.arrived.elapsed();
        metric::proxy::CONNECTION_SECONDS.with([listener, pool]).record(total);
        if !observer.log().is_on() {
            return;
        }
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let (bytes_in, bytes_out) = self
            .traffic
            .as_ref()
            .map_or((0, 0), |traffic| (traffic.from_client.bytes(), traffic.from_endpoint.bytes()));
        observer.log().write(&ConnectionEntry {
            time: timestamp(SystemTime::now()),
            protocol: self.connection.listener().protocol,
            listener,
            client: self.ends.source.to_string(),
            tls: self.tls,
            reason: self.connection.outcome(),
            pool,
            endpoint: self.attempts.last().map(|picked| &*picked.endpoint.state.name),
            attempts: self.attempts.len(),
            bytes_in,
            bytes_out,
            total_us: micros(total),
            connect_us: micros(self.connected.unwrap_or(total)),
            error: refusal.map(|refusal| &*refusal.message),
        });
    }
}
