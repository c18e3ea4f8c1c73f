//! A model-serving worker: Open Inference Protocol v2 over HTTP/1.1, h2c and gRPC on one port.
//!
//! A worker that accepts every request melts under load and takes the clients' deadlines with it; one that
//! hides its queue makes every proxy guess. This one bounds each thing that can grow, refuses early and with
//! a message, never starts a request whose client no longer waits, and states its load on every answer.
//!
//! The path of a request, by files:
//!
//! | file | does |
//! |---|---|
//! | [`cli`], [`config`], `config/model` | flags, the file and each `model.toml` become options |
//! | `check` | models as they would be served, without serving them |
//! | `server`, `connections` | listener; connections, their deadlines, and what they may hold |
//! | `api/router`, `state` | routes, and what every answer carries; a handle to each part of the worker |
//! | `api/ambiguous_framing`, `api/cross_site` | requests that two readers could take for two different ones; calls that pages of other sites may not make |
//! | `api/body`, `memory`, `api/compress` | a body: bounded in bytes, time and memory, inflated; answers compressed |
//! | `api/rest`, `api/grpc`, `api/openai`, `api/terms` | a request in its protocol; its deadline and priority |
//! | `inference` | one inference, over any protocol: check, queue, wait, answer |
//! | `inference/validate`, `inference/embedding` | do the tensors fit the model? texts to tokens, outputs to embeddings |
//! | `repository`, `repository/version` | what is served now; a request's way to its version |
//! | `scheduler/queue`, `scheduler/job` | a bounded line per model; who runs next, and what runs together |
//! | `scheduler/executor`, `scheduler/watchdog` | a fixed pool of threads that runs the engine; runs that can't be stopped |
//! | `refusal` | every error, with its reason |
//!
//! The path of a model, and the worker's metadata:
//!
//! | file | does |
//! |---|---|
//! | `api/repository_api`, `api/metadata` | the calls that load and unload; metadata, health, configuration |
//! | `repository/command`, `loader`, `load_queue` | the thread that decides what is loaded and unloaded; loads that wait and run |
//! | `repository/models`, `reconcile`, `load` | what all loads share; one model made to be what its directory says; one version loaded |
//! | `engines` | the engines that run models: the one place that names each |
//! | `repository/model_files` | models on disk, read but not believed |
//! | `repository/sandbox`, `guard`, `self_test` | a first load in a process of its own; loads that do not end; recorded answers compared |
//! | `repository/memory_budget` | memory for models, and which have to go |
//! | `repository/error`, `backoff` | why a version was not loaded, and when that is tried again |
//! | `telemetry` | load reports, metrics, statistics |
//! | `lifecycle`, `host`, `allocator` | serving, draining, closing; what the machine has; the allocator's settings |
//!
//! The api calls inference and the repository; inference calls the scheduler; the scheduler runs versions.
//! Telemetry and configuration know none of them. No two files import each other: `.ci/circles.py` sees to it.
//!
//! Threads: the runtime's I/O threads never run a model, the executors never touch a socket; large
//! bodies are parsed on the runtime's blocking pool.
//!
//! # Non-finite numbers
//! NaN and infinities in inputs are refused with 400, outputs that hold them with 500, in JSON and
//! binary alike. `allow_non_finite = true` in a model's `model.toml` lifts both; JSON can't carry
//! such outputs, so the client is then asked to take them as binary data.

mod allocator;
mod api;
mod check;
pub mod cli;
pub mod config;
mod connections;
mod engines;
mod host;
mod inference;
mod lifecycle;
mod memory;
mod refusal;
mod repository;
mod scheduler;
mod server;
mod state;
mod telemetry;

pub use cli::main;
pub use config::Options;
pub use lifecycle::{Lifecycle, Phase};
pub use server::{StartError, Worker};
