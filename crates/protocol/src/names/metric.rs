//! Metric names: prefix `forebay_`, base units, labels only from the configuration.

/// Names of the proxy's metrics.
pub mod proxy {
    /// Counter: finished requests by `route`, `variant`, `status`, `reason`.
    pub const REQUESTS: &str = "forebay_requests_total";
    /// Histogram, seconds from the first byte in to the last byte out, by `route`, `variant`.
    pub const REQUEST_SECONDS: &str = "forebay_request_duration_seconds";
    /// Gauge: requests inside the proxy.
    pub const IN_FLIGHT: &str = "forebay_requests_in_flight";
    /// Gauge: bytes of bodies and answers that are held in memory.
    pub const MEMORY_HELD: &str = "forebay_memory_held_bytes";
    /// Counter: bytes that found no memory, by the `bound` that was reached (`client`: the client's
    /// share; `total`).
    pub const MEMORY_FULL: &str = "forebay_memory_full_total";
    /// Counter: clients that were cut off since they were slower than `limits.min_rate`, by `side`
    /// (`request`: they sent; `answer`: they read).
    pub const SLOW_CLIENTS: &str = "forebay_slow_clients_total";
    /// Counter: attempts by `pool`, `endpoint`, `outcome`.
    pub const ATTEMPTS: &str = "forebay_attempts_total";
    /// Counter: connections that were to be used and held bytes that answer no request, by `pool`,
    /// `endpoint`.
    pub const UNSOLICITED: &str = "forebay_endpoint_unsolicited_total";
    /// Counter: retries by `pool`.
    pub const RETRIES: &str = "forebay_retries_total";
    /// Counter: retries that the budget refused, by `pool`.
    pub const RETRIES_REFUSED: &str = "forebay_retries_refused_total";
    /// Counter: second attempts beside a slow first one by `pool`, `outcome` (`won`: it answered first;
    /// `lost`, `failed`).
    pub const HEDGES: &str = "forebay_hedges_total";
    /// Counter: those that were not made, by `pool`, `cause` (`budget`; `busy`: no endpoint was free).
    pub const HEDGES_REFUSED: &str = "forebay_hedges_refused_total";
    /// Counter: requests that went on to a cheaper variant, by `route`, `from`, `to`, `reason`.
    pub const DEGRADED: &str = "forebay_degraded_total";
    /// Counter: endpoints taken out of rotation for what their answers were like, by `pool`,
    /// `endpoint`, `cause`.
    pub const EJECTIONS: &str = "forebay_ejections_total";
    /// Counter: those that were not, since too many were out already; the same labels.
    pub const EJECTIONS_REFUSED: &str = "forebay_ejections_refused_total";
    /// Gauge: 1 while so few are ready that ejected endpoints are used too, by `pool`.
    pub const POOL_PANIC: &str = "forebay_pool_panic";
    /// Gauge: 1 while endpoints that do not answer probes are used for want of any other, by `pool`.
    pub const POOL_LAST_RESORT: &str = "forebay_pool_last_resort";
    /// Gauge: requests sent to the endpoint and unfinished.
    pub const ENDPOINT_IN_FLIGHT: &str = "forebay_endpoint_in_flight";
    /// Gauge: requests that wait in the proxy for an endpoint, by `pool`, `priority`.
    pub const QUEUED: &str = "forebay_queued_requests";
    /// Histogram: seconds that requests waited for an endpoint, of those that had to, by `pool`.
    pub const QUEUE_SECONDS: &str = "forebay_queue_duration_seconds";
    /// Counter: requests refused because of load, by `pool`, `priority`, `reason`.
    pub const SHED: &str = "forebay_shed_total";
    /// Gauge: 1 for the endpoint's present `health`, 0 for the others.
    pub const ENDPOINT_HEALTH: &str = "forebay_endpoint_health";
    /// Gauge: the cost that pick compares, seconds until a request sent now is expected to finish.
    pub const ENDPOINT_COST: &str = "forebay_endpoint_cost_seconds";
    /// Gauge: queue depth that the endpoint reported last.
    pub const ENDPOINT_QUEUE: &str = "forebay_endpoint_queue_depth";
    /// Counter: probes by `pool`, `endpoint`, `outcome`.
    pub const PROBES: &str = "forebay_probes_total";
    /// Counter: polls for load by `pool`, `endpoint`, `outcome`.
    pub const POLLS: &str = "forebay_polls_total";
    /// Gauge: seconds since the endpoint's last load report.
    pub const ENDPOINT_REPORT_AGE: &str = "forebay_endpoint_report_age_seconds";
    /// Counter: load reports that were not believed, by `pool`, `origin`, `cause`.
    pub const REPORTS_DROPPED: &str = "forebay_load_reports_dropped_total";
    /// Gauge: open connections of callers, by `listener`.
    pub const CONNECTIONS_OPEN: &str = "forebay_connections_open";
    /// Counter: connections of callers that ended, by `listener`, `reason` (`ok`: in order).
    pub const CONNECTIONS: &str = "forebay_connections_total";
    /// Counter: connections of clients that were ended for a flood of HTTP/2 frames, by `listener`,
    /// `kind` of frame (`library`: by a bound of the HTTP/2 library).
    pub const HTTP2_FLOODS: &str = "forebay_http2_floods_total";
    /// Counter: TLS handshakes by `listener`, `version` (of those that went well), `outcome` (`ok`, or
    /// why there was none).
    pub const TLS_HANDSHAKES: &str = "forebay_tls_handshakes_total";
    /// Gauge: Unix time in seconds at which the first certificate of a listener expires, by `listener`.
    pub const TLS_EXPIRY: &str = "forebay_tls_certificate_expiry_timestamp_seconds";
    /// Counter: bytes over connections at Layer 4 by `listener`, `pool`, `endpoint`, `direction`
    /// (`in`: from the caller, `out`: to it).
    pub const CONNECTION_BYTES: &str = "forebay_connection_bytes_total";
    /// Histogram: seconds that connections at Layer 4 lasted, by `listener`, `pool`.
    pub const CONNECTION_SECONDS: &str = "forebay_connection_duration_seconds";
    /// Counter: requests to the admin listener that a page in a browser may have sent, by `cause`
    /// (`cross_site`, `unknown_host`).
    pub const ADMIN_REFUSED: &str = "forebay_admin_refused_total";
    /// Counter: configuration reloads by `outcome`.
    pub const RELOADS: &str = "forebay_reloads_total";
    /// Gauge: Unix time in seconds of the configuration that is running.
    pub const CONFIG_LOADED: &str = "forebay_config_loaded_timestamp_seconds";
    /// Counter: access log lines that could not be written.
    pub const ACCESS_LOG_DROPPED: &str = "forebay_access_log_dropped_total";
    /// Counter: connections that failed for want of a resource of this machine, by `resource`
    /// (`descriptors`, `ports`, `memory`) and `operation` (`accept`, `connect`, `probe`).
    pub const EXHAUSTED: &str = "forebay_resource_exhausted_total";
    /// Counter: panics, which are mistakes of this program. The request or the task that they end is
    /// in the log.
    pub const PANICS: &str = "forebay_panics_total";
    /// Counter: tasks of the process that failed and were started again, by `task`.
    pub const TASK_RESTARTS: &str = "forebay_task_restarts_total";
    /// Tasks that stand still; label `task`.
    pub const TASKS_STALLED: &str = "forebay_tasks_stalled";
    /// Counter: lines of the process log that were not written, by `cause` (`queue_full`; `stalled`:
    /// the reader stood still; `write_error`; `rate_limited`: one line says how many there were).
    pub const LOG_DROPPED: &str = "forebay_log_lines_dropped_total";
}

/// Names of the worker's metrics. Label `model` is bounded by the repository.
pub mod worker {
    /// Gauge: 1, with `version` of the worker and what each engine says of its machine, such as the
    /// `vector_unit` that its kernels run on.
    pub const INFO: &str = "forebay_worker_info";
    /// Counter: finished inferences by `model`, `version`, `reason` (`ok` if answered).
    pub const INFERENCES: &str = "forebay_worker_inferences_total";
    /// Histogram: seconds in the queue, by `model`.
    pub const QUEUE_SECONDS: &str = "forebay_worker_queue_duration_seconds";
    /// Histogram: seconds of a batch in the engine, by `model`.
    pub const EXECUTE_SECONDS: &str = "forebay_worker_execute_duration_seconds";
    /// Histogram: rows that ran as one batch, by `model`.
    pub const BATCH_ROWS: &str = "forebay_worker_batch_rows";
    /// Gauge: mean seconds that a batch of `rows` takes, by `model`, `version`.
    pub const BATCH_SECONDS: &str = "forebay_worker_batch_duration_seconds";
    /// Gauge: rows that are worth joining, by `model`, `version`.
    pub const BATCH_BEST: &str = "forebay_worker_batch_best_rows";
    /// Counter: tokens that were embedded, by `model`.
    pub const EMBEDDING_TOKENS: &str = "forebay_worker_embedding_tokens_total";
    /// Counter: requests tried alone after their batch failed, by `model`.
    pub const BATCH_RETRIES: &str = "forebay_worker_batch_retries_total";
    /// Counter: requests that nobody waited for any more, by `model`, `stage` (`queue`, `engine`),
    /// `reason`.
    pub const ABANDONED: &str = "forebay_worker_abandoned_total";
    /// Counter: runs stopped at `max_execution`, by `model`.
    pub const OVERRUNS: &str = "forebay_worker_overruns_total";
    /// Counter: times that a run lent its executor to a shorter one, by `model`.
    pub const LENT: &str = "forebay_worker_lent_total";
    /// Gauge: executors given up because a run did not end.
    pub const EXECUTORS_LOST: &str = "forebay_worker_executors_lost";
    /// Gauge: requests executing and queued.
    pub const IN_FLIGHT: &str = "forebay_worker_requests_in_flight";
    /// Gauge: requests queued, by `model`.
    pub const QUEUE_DEPTH: &str = "forebay_worker_queue_depth";
    /// Gauge: requests that can run at once.
    pub const SLOTS: &str = "forebay_worker_slots";
    /// Gauge: 1 if the model is loaded and warmed, by `model`, `version`.
    pub const MODEL_READY: &str = "forebay_worker_model_ready";
    /// Counter: attempts to load a version by `model`, `outcome` (`ok`; `failed`, also where it is tried
    /// again; `full`: no room).
    pub const MODEL_LOADS: &str = "forebay_worker_model_loads_total";
    /// Counter: versions taken out of service by `model`, `why` (`unloaded` on request, `replaced`,
    /// `evicted` to make room, `gone` from disk).
    pub const MODEL_UNLOADS: &str = "forebay_worker_model_unloads_total";
    /// Gauge: bytes that a version takes in memory, measured at load, by `model`, `version`.
    pub const MODEL_MEMORY: &str = "forebay_worker_model_memory_bytes";
    /// Gauge: bytes that all models take, those included that only their last requests hold.
    pub const MODELS_MEMORY: &str = "forebay_worker_models_memory_bytes";
    /// Counter: panics, which are mistakes of this program or of the engine.
    pub const PANICS: &str = "forebay_worker_panics_total";
    /// Counter: tasks of the process that failed and were started again, by `task`.
    pub const TASK_RESTARTS: &str = "forebay_worker_task_restarts_total";
    /// Counter: lines of the process log that were not written, by `cause` as in the proxy.
    pub const LOG_DROPPED: &str = "forebay_worker_log_lines_dropped_total";
    /// Gauge: seconds that loading and warming took, by `model`, `version`.
    pub const MODEL_LOAD_SECONDS: &str = "forebay_worker_model_load_duration_seconds";
    /// Counter: plans that were compiled, one for each set of input shapes, by `model`, `version`.
    pub const MODEL_COMPILATIONS: &str = "forebay_worker_model_compilations_total";
    /// Gauge: seconds that compiling them took so far, by `model`, `version`.
    pub const MODEL_COMPILE_SECONDS: &str = "forebay_worker_model_compile_seconds";
    /// Counter: shapes that run in the plain build because the model's own build has no plan for them
    /// or failed where the plain one did not, by `model`, `version`.
    pub const MODEL_FALLBACKS: &str = "forebay_worker_model_build_fallbacks_total";
    /// Gauge: open connections.
    pub const CONNECTIONS: &str = "forebay_worker_connections";
    /// Counter: connections that the worker closed by `reason` (`header_timeout`, `slow_reader`,
    /// `idle`, `client_left` while its request waited, `room` for a new one).
    pub const CONNECTIONS_CLOSED: &str = "forebay_worker_connections_closed_total";
    /// Counter: connections that could not be accepted.
    pub const ACCEPT_ERRORS: &str = "forebay_worker_accept_errors_total";
    /// Counter: connections ended for a flood of HTTP/2 frames, by `kind`.
    pub const HTTP2_FLOODS: &str = "forebay_worker_http2_floods_total";
}
