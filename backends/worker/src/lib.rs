//! A model-serving worker: Open Inference Protocol v2 over HTTP/1.1, h2c and gRPC on one port.
//!
//! A worker that accepts whatever arrives melts under load and takes the callers' deadlines with
//! it; one that hides its queue lets every proxy guess. This one bounds each thing that can grow,
//! refuses early and in words, never starts what nobody waits for any more, and states its load on
//! every answer.
//!
//! Modules, in the order in which a request flows:
//!
//! | module | does |
//! |---|---|
//! | [`cli`], [`config`] | flags and file become [`Options`] |
//! | `patience`, `host` | the allocator's; what the machine has |
//! | `server`, `connections` | listener; connections, their deadlines, and what they may hold |
//! | `lifecycle` | serving, draining, closing; signals |
//! | `router`, `model_path` | routes; what every answer carries: load report, request id |
//! | `state` | what all requests share: a handle to each part of the worker |
//! | `letter` | refuses HTTP/1 that two readers could take for two different requests |
//! | `body`, `memory` | reads a body: bounded in bytes, time and memory; gzip and deflate |
//! | `compress` | answers compressed for who asks for it |
//! | `grpc` | the same, and the other calls, over gRPC |
//! | `rest`, `terms` | an inference as HTTP request and answer; deadline and priority |
//! | `openai`, `embedding` | texts to embeddings, as OpenAI's clients ask for them |
//! | `infer`, `blocking` | one inference, whatever it came in on: check, queue, wait, answer |
//! | `check` | do the tensors fit the model? |
//! | `queue` | a bounded line per model; who runs next, and what runs together |
//! | `job`, `executor` | a fixed pool of threads that runs the engine |
//! | `overseer` | runs that can't be stopped |
//! | `describe` | metadata, health, configuration, metrics |
//! | `cross_site` | what pages of other sites may not ask for |
//! | `control` | the model repository extension: index, load, unload |
//! | `repository`, `version` | what is served now; a request's way to its version |
//! | `command`, `loader`, `tasks` | the thread that decides what is loaded and unloaded; loads that wait and run |
//! | `models`, `reconcile`, `load`, `trial`, `attempt`, `room` | one load, what may not stop it, and what becomes of it; memory for models |
//! | `failure`, `again` | why a version was not loaded, and when that is tried again |
//! | `disk`, `model_config` | models on disk, read but not believed |
//! | `golden` | recorded answers, compared when a model is loaded |
//! | `report`, `metrics`, `series`, `stats` | what the worker says of itself |
//! | `refusal` | every error, with its reason |
//!
//! Threads: the runtime's I/O threads never run a model, the executors never touch a socket; large
//! bodies are parsed on the runtime's blocking pool.
//!
//! # Non-finite numbers
//! NaN and infinities in inputs are refused with 400, outputs that hold them with 500, in JSON and
//! binary alike. `allow_non_finite = true` in a model's `model.toml` lifts both; JSON can't carry
//! such outputs, so the caller is then asked to take them as binary data.

mod again;
mod attempt;
mod blocking;
mod body;
mod check;
pub mod cli;
mod command;
mod compress;
pub mod config;
mod connections;
mod control;
mod cross_site;
mod describe;
mod disk;
mod embedding;
mod executor;
mod failure;
mod golden;
mod grpc;
mod host;
mod infer;
mod job;
mod letter;
mod lifecycle;
mod load;
mod loader;
mod memory;
mod metrics;
mod model_config;
mod model_path;
mod models;
mod openai;
mod overseer;
mod patience;
mod queue;
mod reconcile;
mod refusal;
mod report;
mod repository;
mod rest;
mod room;
mod router;
mod series;
mod server;
mod state;
mod stats;
mod tasks;
mod terms;
mod trial;
mod version;

pub use cli::main;
pub use config::Options;
pub use lifecycle::{Lifecycle, Phase};
pub use server::{StartError, Worker};
