//! The demo that runs without arguments: proxy and workers on one machine, with real models.

use crate::config::Config;
use crate::pool::control::ControlHandle;
use crate::pool::fleet::WorkerLog;
use crate::server::{self, Options, Started};
use crate::side_request::{Connection, SideRequest};
use anyhow::{Context, Result};
use http::Method;
use pingora::upstreams::peer::HttpPeer;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that the demo runs, from the folder of the project.
const CONFIG: &str = "conf/demo.toml";
/// The request that the banner proposes: its answer is a label rather than 214 probabilities.
const EXAMPLE: (&str, &str) = ("magika", "examples/python.json");
/// Asks the same model about any file.
const FILE_TYPE: &str = "examples/filetype.sh";
/// Longest that the banner waits for the models.
const MAX_START_TIME: Duration = Duration::from_secs(120);

/// Longest answer about a model that is read, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Runs the demo until it is stopped.
///
/// # Errors
/// The project's folder is not found, or the demo can't start.
pub fn run() -> Result<()> {
    let folder = folder()?;
    let file = folder.join(CONFIG);
    let config = Config::load(&file).map_err(|error| anyhow::anyhow!(error.render()))?;
    say("forebay: starting three workers and loading the models ...\n");
    let started = move |started: &Started| {
        let banner = Banner {
            folder,
            proxy: started.listeners.first().map(ToString::to_string).unwrap_or_default(),
            admin: started.admin.map(|a| a.to_string()).unwrap_or_default(),
            control: started.control.clone(),
        };
        tokio::spawn(async move { banner.show().await });
    };
    let worker_log = WorkerLog { json: false, level: "warn".to_owned() };
    server::run(Options { config, file: Some(file), worker_log, started: Box::new(started) })?;
    say("forebay: stopped\n");
    Ok(())
}

/// The project's folder: the present one or one above it, or above this program's file.
fn folder() -> Result<PathBuf> {
    let here = std::env::current_dir().context("can't find the current directory")?;
    let program = std::env::current_exe().context("can't find this program's own file")?;
    let mut candidates = here.ancestors().chain(program.ancestors());
    let found = candidates.find(|folder| folder.join(CONFIG).is_file());
    found.map(Path::to_owned).with_context(|| {
        format!("can't find {CONFIG}: run the demo in the project's folder, or use forebay serve")
    })
}

struct Banner {
    folder: PathBuf,
    proxy: String,
    admin: String,
    control: ControlHandle,
}

impl Banner {
    async fn show(self) {
        if tokio::time::timeout(MAX_START_TIME, self.all_ready()).await.is_err() {
            say("forebay: the workers are not ready yet; see /status on the admin listener\n");
            return;
        }
        let text = self.text().await;
        say(&text);
    }

    async fn all_ready(&self) {
        let ready = || {
            let snapshot = self.control.snapshot().load();
            snapshot.pools.iter().all(|pool| pool.ready_count() == pool.endpoints.len())
        };
        while !ready() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "\nforebay is running\n");
        let _ = writeln!(text, "  proxy    http://{}   (http/1.1, h2c)", self.proxy);
        let _ =
            writeln!(text, "  admin    http://{}   (/metrics /status /readyz /reload)", self.admin);
        let snapshot = self.control.snapshot().load_full();
        for endpoint in snapshot.pools.iter().flat_map(|pool| &pool.endpoints) {
            let _ = writeln!(text, "  worker   http://{}", endpoint.state.name);
        }
        if let Some(endpoint) = snapshot.pools.first().and_then(|pool| pool.endpoints.first()) {
            for line in models(endpoint.peer(false), &endpoint.state.name).await {
                let _ = writeln!(text, "  model    {line}");
            }
        }
        let (model, example) = EXAMPLE;
        let here = std::env::current_dir().unwrap_or_default();
        let from_here = |file: &str| {
            let file = self.folder.join(file);
            file.strip_prefix(&here).unwrap_or(&file).display().to_string()
        };
        let example = from_here(example);
        let _ = writeln!(text, "\nTry it: the type of a file, and the load of each worker\n");
        let _ =
            writeln!(text, "  curl -s http://{}/v2/models/{model}/infer -d @{example}", self.proxy);
        let _ = writeln!(text, "  {} FILE...", from_here(FILE_TYPE));
        let _ = writeln!(text, "  curl -s http://{}/status", self.admin);
        let _ = writeln!(text, "\nCtrl-C drains and stops everything.");
        text
    }
}

/// A line for each model that a worker serves: name, versions, engine, inputs.
async fn models(peer: &HttpPeer, host: &str) -> Vec<String> {
    let Ok(index) = ask(peer, host, Method::POST, "/v2/repository/index").await else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for entry in index.as_array().into_iter().flatten() {
        let Some(name) = entry["name"].as_str() else { continue };
        let path = format!("/v2/models/{name}");
        let Ok(metadata) = ask(peer, host, Method::GET, &path).await else { continue };
        let config =
            ask(peer, host, Method::GET, &format!("{path}/config")).await.unwrap_or_default();
        let tensors = |key: &str| {
            let tensor = |t: &serde_json::Value| {
                let shape = t["shape"].to_string();
                format!("{}{}", t["datatype"].as_str().unwrap_or("?"), shape.replace("-1", "n"))
            };
            let all: Vec<_> = metadata[key].as_array().into_iter().flatten().map(tensor).collect();
            all.join(", ")
        };
        lines.push(format!(
            "{name:<12} {} -> {}   (engine: {})",
            tensors("inputs"),
            tensors("outputs"),
            config["backend"].as_str().unwrap_or("?")
        ));
    }
    lines
}

/// The answer of a worker, as JSON; null if it is none.
async fn ask(
    peer: &HttpPeer,
    host: &str,
    method: Method,
    path: &str,
) -> pingora::Result<serde_json::Value> {
    let (max_body, connection) = (MAX_ANSWER, Connection::New);
    let response =
        SideRequest { method, path, host, body: &[], max_body, connection }.send(peer).await?;
    Ok(serde_json::from_slice(&response.body.unwrap_or_default()).unwrap_or_default())
}

fn say(text: &str) {
    forebay_process::log::announce(text);
}
