//! From files to models that are ready, in the background.
//!
//! The worker answers (health, metadata, "not ready yet") from its first moment. A model is ready
//! once it is compiled and has run: the first caller does not pay for it. Loads go one after the
//! other, so that a large repository does not need all its memory twice at once.

use crate::app::App;
use crate::repository::Version;
use forebay_protocol::metric::worker as metric;
use forebay_tract as engine;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

/// Longest model file, in bytes: protobuf's own limit.
const MAX_MODEL: u64 = 2 << 30;
/// Stack of the loading thread: graphs are walked recursively.
const STACK: usize = 16 << 20;

/// Starts loading everything that has not failed already.
///
/// # Errors
/// No thread can be started.
pub(crate) fn start(app: Arc<App>) -> std::io::Result<()> {
    let load_all = move || {
        for version in app.repository.versions() {
            if version.settled.get().is_none() && !app.is_ended() {
                load(&app, version);
            }
        }
        tracing::info!(ready = app.repository.is_ready(), "all models have settled");
        app.settled.notify_waiters();
    };
    std::thread::Builder::new().name("loader".to_owned()).stack_size(STACK).spawn(load_all)?;
    Ok(())
}

fn load(app: &App, version: &Version) {
    let started = Instant::now();
    let result = read(version).and_then(|bytes| {
        engine::Model::load(&bytes, &version.config.load_options()).map_err(|e| e.to_string())
    });
    let took = started.elapsed();
    let (model, number) = (version.model.as_str(), version.number.as_str());
    let labels = [("model", model), ("version", number)];
    match &result {
        Ok(engine) => {
            let max_batch = engine.max_batch().unwrap_or(1);
            let took_ms = took.as_millis();
            tracing::info!(model, version = number, took_ms, max_batch, "model ready");
            app.metrics.gauge(metric::MODEL_LOAD_SECONDS, &labels).set(took.as_secs_f64());
        }
        Err(failure) => tracing::error!(model, version = number, failure, "model can't be served"),
    }
    // Nobody else sets it.
    drop(version.settled.set(result));
}

fn read(version: &Version) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(&version.path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_MODEL + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_MODEL {
        return Err(format!("expected a model file of at most {MAX_MODEL} bytes, found more"));
    }
    Ok(bytes)
}
