//! Starts the use of the store behind the memory.

use super::time::instants;
use crate::config::{CacheMemory, SharedStore};
use forebay_cache::shared::{Dial, Dialling, Stream, Tier};
use forebay_process::supervise::{Importance, Supervisor};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Starts the use of the shared store, if there is one.
pub(super) fn start(settings: &CacheMemory, tasks: &Supervisor) -> Option<Arc<Tier>> {
    let (store, secret) = settings.shared.as_ref().zip(settings.secret.as_ref())?;
    let tier = Arc::new(Tier::new(store.settings.clone(), &secret.0, dial(store)));
    let helpful = Importance::Helpful;
    let one = Arc::clone(&tier);
    tasks.spawn("shared cache: look-ups", helpful, move || Arc::clone(&one).read());
    let one = Arc::clone(&tier);
    tasks.spawn("shared cache: writes", helpful, move || Arc::clone(&one).write());
    let one = Arc::clone(&tier);
    tasks.spawn("shared cache: queue", helpful, move || Arc::clone(&one).send_queued(instants));
    let one = Arc::clone(&tier);
    tasks.spawn("shared cache: epoch", helpful, move || Arc::clone(&one).keep(instants));
    Some(tier)
}

/// Connects to the store. The name is looked up each time, since it may point elsewhere by then.
fn dial(store: &SharedStore) -> Dial {
    let (address, tls) = (Arc::<str>::from(store.address.as_str()), store.tls.clone());
    Box::new(move || -> Dialling {
        let (address, tls) = (Arc::clone(&address), tls.clone());
        Box::pin(async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            let Some((config, name)) = tls else { return Ok(Box::new(stream) as Box<dyn Stream>) };
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    })
}
