//! A Pingora proxy that does nothing but forward to one peer.
//!
//! It is the yardstick for what this project adds: built by the same compiler with the same profile,
//! the same allocator and the same features, so that the difference in CPU time a request between it
//! and `forebay` is ours alone. `loadtest/peers/overhead.sh` measures it.
//!
//! ```sh
//! cargo run --release --no-default-features --example empty_proxy -- 127.0.0.1:8080 127.0.0.1:8000
//! ```

use anyhow::Context as _;
use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Opt, ProxyHttp, Server, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Forwards everything to this address.
struct EmptyProxy(SocketAddr);

#[async_trait]
impl ProxyHttp for EmptyProxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _ctx: &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, peer, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: empty_proxy LISTEN PEER [THREADS]");
    };
    let peer = peer.parse().with_context(|| format!("expected ADDRESS:PORT, found \"{peer}\""))?;
    let threads = match rest.first() {
        Some(text) => text
            .parse()
            .with_context(|| format!("expected a number of threads, found \"{text}\""))?,
        None => 1,
    };
    // The default grace period is five minutes; a yardstick may stop at once.
    let conf = ServerConf {
        threads,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None::<Opt>, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, EmptyProxy(peer));
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever()
}
