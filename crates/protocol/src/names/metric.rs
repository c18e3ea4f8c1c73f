//! Metric names: prefix `forebay_`, base units, labels only from the configuration.

/// Names of the proxy's metrics.
pub mod proxy {
    crate::names::family::families! {
        /// Finished requests.
        Counter REQUESTS = "forebay_requests_total" [route, variant, status, reason];
        /// Seconds from the first byte in to the last byte out.
        Histogram REQUEST_SECONDS = "forebay_request_duration_seconds" [route, variant];
        /// Requests inside the proxy.
        Gauge IN_FLIGHT = "forebay_requests_in_flight" [];
        /// Bytes of bodies and answers that are held in memory.
        Gauge MEMORY_HELD = "forebay_memory_held_bytes" [];
        /// Times that bytes found no memory, by the `bound` that was reached (`client`: the client's share;
        /// `total`).
        Counter MEMORY_FULL = "forebay_memory_full_total" [bound];
        /// Clients that were cut off since they were slower than `limits.min_rate`, by `side`
        /// (`request`: they sent; `answer`: they read).
        Counter SLOW_CLIENTS = "forebay_slow_clients_total" [side];
        /// Attempts by how they ended.
        Counter ATTEMPTS = "forebay_attempts_total" [pool, endpoint, outcome];
        /// Connections that were to be used and held bytes that answer no request.
        Counter UNSOLICITED = "forebay_endpoint_unsolicited_total" [pool, endpoint];
        /// Requests that were sent once more.
        Counter RETRIES = "forebay_retries_total" [pool];
        /// Retries that the budget refused.
        Counter RETRIES_REFUSED = "forebay_retries_refused_total" [pool];
        /// Second attempts beside a slow first one, by `outcome` (`won`: it answered first;
        /// `lost`, `failed`).
        Counter HEDGES = "forebay_hedges_total" [pool, outcome];
        /// Second attempts that were not made, by `cause` (`budget`; `busy`: no endpoint was free).
        Counter HEDGES_REFUSED = "forebay_hedges_refused_total" [pool, cause];
        /// Requests that went on to a cheaper variant.
        Counter DEGRADED = "forebay_degraded_total" [route, from, to, reason];
        /// Endpoints taken out of rotation for what their answers were like, by `cause`.
        Counter EJECTIONS = "forebay_ejections_total" [pool, endpoint, cause];
        /// Ejections that would have left too few in rotation, by `cause`.
        Counter EJECTIONS_REFUSED = "forebay_ejections_refused_total" [pool, endpoint, cause];
        /// 1 while so few are ready that ejected endpoints are used too.
        Gauge POOL_PANIC = "forebay_pool_panic" [pool];
        /// 1 while endpoints that do not answer probes are used for want of any other.
        Gauge POOL_LAST_RESORT = "forebay_pool_last_resort" [pool];
        /// Requests sent to the endpoint and unfinished.
        Gauge ENDPOINT_IN_FLIGHT = "forebay_endpoint_in_flight" [pool, endpoint];
        /// Requests that wait in the proxy for an endpoint.
        Gauge QUEUED = "forebay_queued_requests" [pool, priority];
        /// Seconds that requests waited for an endpoint, of those that had to.
        Histogram QUEUE_SECONDS = "forebay_queue_duration_seconds" [pool];
        /// Requests refused because of load.
        Counter SHED = "forebay_shed_total" [pool, priority, reason];
        /// 1 for the endpoint's present `health`, 0 for the others.
        Gauge ENDPOINT_HEALTH = "forebay_endpoint_health" [pool, endpoint, health];
        /// The cost that pick compares, seconds until a request sent now is expected to finish.
        Gauge ENDPOINT_COST = "forebay_endpoint_cost_seconds" [pool, endpoint];
        /// Queue depth that the endpoint reported last.
        Gauge ENDPOINT_QUEUE = "forebay_endpoint_queue_depth" [pool, endpoint];
        /// Health probes by `outcome`.
        Counter PROBES = "forebay_probes_total" [pool, endpoint, outcome];
        /// Polls for load by `outcome`.
        Counter POLLS = "forebay_polls_total" [pool, endpoint, outcome];
        /// Seconds since the endpoint's last load report.
        Gauge ENDPOINT_REPORT_AGE = "forebay_endpoint_report_age_seconds" [pool, endpoint];
        /// Load reports that were not believed, by `cause`.
        Counter REPORTS_DROPPED = "forebay_load_reports_dropped_total" [pool, origin, cause];
        /// Open connections of clients.
        Gauge CONNECTIONS_OPEN = "forebay_connections_open" [listener];
        /// Connections of clients that ended, by `reason` (`ok`: in order).
        Counter CONNECTIONS = "forebay_connections_total" [listener, reason];
        /// Connections of clients that were ended for a flood of HTTP/2 frames, by `kind` of
        /// frame (`library`: by a bound of the HTTP/2 library).
        Counter HTTP2_FLOODS = "forebay_http2_floods_total" [listener, kind];
        /// TLS handshakes with clients, by `version` (of those that went well) and `outcome` (`ok`, or
        /// why there was none).
        Counter TLS_HANDSHAKES = "forebay_tls_handshakes_total" [listener, version, outcome];
        /// Unix time in seconds at which the first certificate of a listener expires.
        Gauge TLS_EXPIRY = "forebay_tls_certificate_expiry_timestamp_seconds" [listener];
        /// Bytes over connections at Layer 4, by `direction` (`in`: from the client, `out`: to it).
        Counter CONNECTION_BYTES = "forebay_connection_bytes_total" [listener, pool, endpoint, direction];
        /// Seconds that connections at Layer 4 lasted.
        Histogram CONNECTION_SECONDS = "forebay_connection_duration_seconds" [listener, pool];
        /// Requests to the admin listener that a page in a browser may have sent, by `cause`
        /// (`cross_site`, `unknown_host`).
        Counter ADMIN_REFUSED = "forebay_admin_refused_total" [cause];
        /// Configuration reloads by `outcome`.
        Counter RELOADS = "forebay_reloads_total" [outcome];
        /// Unix time in seconds of the configuration that is running.
        Gauge CONFIG_LOADED = "forebay_config_loaded_timestamp_seconds" [];
        /// Access log lines that could not be written.
        Counter ACCESS_LOG_DROPPED = "forebay_access_log_dropped_total" [];
        /// Connections that failed for want of a resource of this machine, by `resource`
        /// (`descriptors`, `ports`, `memory`) and `operation` (`accept`, `connect`, `probe`).
        Counter EXHAUSTED = "forebay_resource_exhausted_total" [resource, operation];
        /// Panics, which are mistakes of this program. The request or the task that they end is in the
        /// log.
        Counter PANICS = "forebay_panics_total" [];
        /// Tasks of the process that failed and were started again.
        Counter TASK_RESTARTS = "forebay_task_restarts_total" [task];
        /// Tasks of the process that stand still: it is not ready meanwhile.
        Gauge TASKS_STALLED = "forebay_tasks_stalled" [task];
        /// Lines of the process log that were not written, by `cause` (`queue_full`; `stalled`: the
        /// reader stood still; `write_error`; `rate_limited`: one line says how many there were).
        Counter LOG_DROPPED = "forebay_log_lines_dropped_total" [cause];
    }
}

/// Names of the worker's metrics. Label `model` is bounded by the repository.
pub mod worker {
    crate::names::family::families! {
        /// 1, with `version` of the worker and what each engine says of its machine, such as the
        /// `vector_unit` that its kernels run on.
        Gauge INFO = "forebay_worker_info" [version];
        /// Finished inferences by `reason` (`ok` if answered).
        Counter INFERENCES = "forebay_worker_inferences_total" [model, version, reason];
        /// Seconds in the queue.
        Histogram QUEUE_SECONDS = "forebay_worker_queue_duration_seconds" [model];
        /// Seconds of a batch in the engine.
        Histogram EXECUTE_SECONDS = "forebay_worker_execute_duration_seconds" [model];
        /// Rows that ran as one batch.
        Histogram BATCH_ROWS = "forebay_worker_batch_rows" [model];
        /// Mean seconds that a batch of `rows` takes.
        Gauge BATCH_SECONDS = "forebay_worker_batch_duration_seconds" [model, version, rows];
        /// Rows that are worth joining.
        Gauge BATCH_BEST = "forebay_worker_batch_best_rows" [model, version];
        /// Tokens that were embedded.
        Counter EMBEDDING_TOKENS = "forebay_worker_embedding_tokens_total" [model];
        /// Requests tried alone after their batch failed.
        Counter BATCH_RETRIES = "forebay_worker_batch_retries_total" [model];
        /// Requests that nobody waited for any more, by `stage` (`queue`, `engine`) and
        /// `reason`.
        Counter ABANDONED = "forebay_worker_abandoned_total" [model, stage, reason];
        /// Runs stopped at `max_execution`.
        Counter OVERRUNS = "forebay_worker_overruns_total" [model];
        /// Times that a run lent its executor to a shorter one.
        Counter LENT = "forebay_worker_lent_total" [model];
        /// Executors given up because a run did not end.
        Gauge EXECUTORS_LOST = "forebay_worker_executors_lost" [];
        /// Requests executing and queued.
        Gauge IN_FLIGHT = "forebay_worker_requests_in_flight" [];
        /// Requests queued.
        Gauge QUEUE_DEPTH = "forebay_worker_queue_depth" [model];
        /// Requests that can run at once.
        Gauge SLOTS = "forebay_worker_slots" [];
        /// 1 if the model is loaded and warmed.
        Gauge MODEL_READY = "forebay_worker_model_ready" [model, version];
        /// Attempts to load a version, by `outcome` (`ok`; `failed`, also where it is tried
        /// again; `full`: no room).
        Counter MODEL_LOADS = "forebay_worker_model_loads_total" [model, outcome];
        /// Versions taken out of service, by `why` (`unloaded` on request, `replaced`,
        /// `evicted` to make room, `gone` from disk).
        Counter MODEL_UNLOADS = "forebay_worker_model_unloads_total" [model, why];
        /// Bytes that a version takes in memory, measured at load.
        Gauge MODEL_MEMORY = "forebay_worker_model_memory_bytes" [model, version];
        /// Bytes that all models take, those included that only their last requests hold.
        Gauge MODELS_MEMORY = "forebay_worker_models_memory_bytes" [];
        /// Panics, which are mistakes of this program or of the engine.
        Counter PANICS = "forebay_worker_panics_total" [];
        /// Tasks of the process that failed and were started again.
        Counter TASK_RESTARTS = "forebay_worker_task_restarts_total" [task];
        /// Lines of the process log that were not written, by `cause` as in the proxy.
        Counter LOG_DROPPED = "forebay_worker_log_lines_dropped_total" [cause];
        /// Seconds that loading and warming took.
        Gauge MODEL_LOAD_SECONDS = "forebay_worker_model_load_duration_seconds" [model, version];
        /// Plans that were compiled, one for each set of input shapes.
        Counter MODEL_COMPILATIONS = "forebay_worker_model_compilations_total" [model, version];
        /// Seconds that compiling them took so far.
        Gauge MODEL_COMPILE_SECONDS = "forebay_worker_model_compile_seconds" [model, version];
        /// Shapes that run in the plain build because the model's own build has no plan for them or
        /// failed where the plain one did not.
        Counter MODEL_FALLBACKS = "forebay_worker_model_build_fallbacks_total" [model, version];
        /// Open connections.
        Gauge CONNECTIONS = "forebay_worker_connections" [];
        /// Connections that the worker closed, by `reason` (`header_timeout`, `slow_reader`, `idle`,
        /// `client_left` while its request waited, `room` for a new one).
        Counter CONNECTIONS_CLOSED = "forebay_worker_connections_closed_total" [reason];
        /// Connections that could not be accepted.
        Counter ACCEPT_ERRORS = "forebay_worker_accept_errors_total" [];
        /// Connections ended for a flood of HTTP/2 frames, by `kind`.
        Counter HTTP2_FLOODS = "forebay_worker_http2_floods_total" [kind];
    }
}
