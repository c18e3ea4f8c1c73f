//! Metric names: prefix `forebay_`, base units, labels only from the configuration.

/// Names of the proxy's metrics.
pub mod proxy {
    crate::names::family::families! {
        /// Finished requests.
        Counter REQUESTS = "forebay_requests_total" [route, variant, status, reason];
        /// Seconds from the first byte in to the last byte out.
        Histogram REQUEST_SECONDS = "forebay_request_duration_seconds" [route, variant];
        /// Finished requests of routes that are split, by how each came to its variant (`drawn`: at random;
        /// `sticky`: by its client's key; `asked`: by x-forebay-variant; `moved`: another variant was drawn and
        /// has no endpoint; `restricted`: not every variant can answer requests of its form).
        Counter ASSIGNMENTS = "forebay_variant_assignments_total" [route, variant, assignment];
        /// Weight of a variant as it is now, in thousandths, of routes that are split.
        Gauge VARIANT_WEIGHT = "forebay_variant_weight" [route, variant];
        /// Copies of requests that were sent to another variant (`against`: `shadow`) or to the one that had
        /// answered (`itself`), by `outcome` (`equal`; `differs`; `mismatch`: another datatype, shape or set of
        /// outputs; `failed`: no success; `unread`: an answer that can't be compared).
        Counter SHADOWS = "forebay_shadows_total" [route, variant, against, outcome];
        /// Copies that were not sent, by `cause` (`queued`: requests wait; `busy`: no endpoint is free, or the
        /// pool has too much to do; `in_flight`: too many copies at once; `memory`; `long`: a body that is not
        /// held whole; `form`: the variant can't be asked so; `draining`).
        Counter SHADOWS_DROPPED = "forebay_shadows_dropped_total" [route, cause];
        /// Difference of a copy's answer from the client's, by output and `measure` (`score`: 0 to 1;
        /// `max_absolute`, `mean_absolute`, `max_relative`, `mean_relative`, `argmax_disagreement`,
        /// `cosine_distance`), and by `against` as above. At most 64 pairs of a model and an output have
        /// their names; further ones are `other`.
        Histogram SHADOW_DIFFERENCE = "forebay_shadow_difference" [route, model, output, measure, against];
        /// 1 for the state of the route's rollout (`advancing`, `paused`, `watching`, `promoted`, `rolled_back`,
        /// `inconclusive`, `aborted`, `faulty`), 0 for the others.
        Gauge ROLLOUT_STATE = "forebay_rollout_state" [route, state];
        /// Bounds of the increase of the share of bad requests at the canary beside stable, by metric (`errors`,
        /// `slow`) and bound (`at_most`, `at_least`; NaN where none is known yet).
        Gauge ROLLOUT_INCREASE = "forebay_rollout_increase" [route, metric, bound];
        /// Rollouts that ended, by outcome.
        Counter ROLLOUT_OUTCOMES = "forebay_rollout_outcomes_total" [route, outcome];
        /// Requests inside the proxy.
        Gauge IN_FLIGHT = "forebay_requests_in_flight" [];
        /// 1 while requests can be served, as `/readyz` says.
        Gauge READY = "forebay_ready" [];
        /// 1 while requests of the route can be answered by one of its variants or fallbacks.
        Gauge ROUTE_READY = "forebay_route_ready" [route];
        /// Bytes of bodies and answers held in memory.
        Gauge MEMORY_HELD = "forebay_memory_held_bytes" [];
        /// Times that bytes found no memory, by the `bound` that was reached (`client`: the client's share;
        /// `total`: `limits.memory`).
        Counter MEMORY_FULL = "forebay_memory_full_total" [bound];
        /// Clients cut off for being slower than `limits.min_rate`, by `side` (`request`: while sending;
        /// `answer`: while reading).
        Counter SLOW_CLIENTS = "forebay_slow_clients_total" [side];
        /// Attempts, by `outcome`.
        Counter ATTEMPTS = "forebay_attempts_total" [pool, endpoint, outcome];
        /// Kept connections that were closed instead of reused, because they held bytes that answer no request.
        Counter UNSOLICITED = "forebay_endpoint_unsolicited_total" [pool, endpoint];
        /// Retries.
        Counter RETRIES = "forebay_retries_total" [pool];
        /// Retries refused by the budget.
        Counter RETRIES_REFUSED = "forebay_retries_refused_total" [pool];
        /// Hedges (second attempts beside a slow first one), by `outcome` (`won`: it answered first; `lost`;
        /// `failed`).
        Counter HEDGES = "forebay_hedges_total" [pool, outcome];
        /// Hedges that were not sent, by `cause` (`budget`; `busy`: no endpoint was free).
        Counter HEDGES_REFUSED = "forebay_hedges_refused_total" [pool, cause];
        /// Requests passed on to a cheaper variant.
        Counter DEGRADED = "forebay_degraded_total" [route, from, to, reason];
        /// Ejections of endpoints because of their answers, by `cause`.
        Counter EJECTIONS = "forebay_ejections_total" [pool, endpoint, cause];
        /// Ejections that were refused because too few endpoints would have stayed in rotation, by `cause`.
        Counter EJECTIONS_REFUSED = "forebay_ejections_refused_total" [pool, endpoint, cause];
        /// 1 while so few endpoints are ready that ejected ones are used as well.
        Gauge POOL_PANIC = "forebay_pool_panic" [pool];
        /// 1 while endpoints that do not answer probes are used because no other is left.
        Gauge POOL_LAST_RESORT = "forebay_pool_last_resort" [pool];
        /// Mean wait of a request over the last half minute, by `part` (`proxy`: in the queue; `endpoint`: behind
        /// others there; `full`: of both, while all slots were taken, which would remain with perfect routing).
        Gauge POOL_WAIT = "forebay_pool_wait_seconds" [pool, part];
        /// Share of the slots that are taken, over the last half minute.
        Gauge POOL_UTILIZATION = "forebay_pool_utilization" [pool];
        /// Requests sent to the endpoint and unfinished.
        Gauge ENDPOINT_IN_FLIGHT = "forebay_endpoint_in_flight" [pool, endpoint];
        /// Requests waiting in the proxy for an endpoint.
        Gauge QUEUED = "forebay_queued_requests" [pool, priority];
        /// Inferences on routes with a cache, by `outcome` (`hit`; `stale`: the kept answer's time was up;
        /// `rows`: the model was asked for a part of the batch; `join`: an equal one was under way; `absent`:
        /// the model is known not to be there; `miss`; `bypass`).
        Counter CACHE_REQUESTS = "forebay_cache_requests_total" [route, outcome];
        /// Inferences that passed the cache by, by `cause`.
        Counter CACHE_BYPASSES = "forebay_cache_bypasses_total" [route, cause];
        /// Rows of batches that were kept, so that the model was not asked for them.
        Counter CACHE_ROWS_SAVED = "forebay_cache_rows_saved_total" [route];
        /// Kept answers that were to be renewed beside a request that got them, by `outcome` (`renewed`;
        /// `failed`; `skipped`: too many at once, or no memory).
        Counter CACHE_RENEWALS = "forebay_cache_renewals_total" [route, outcome];
        /// Answers in the cache.
        Gauge CACHE_ENTRIES = "forebay_cache_entries" [];
        /// Bytes of the answers in the cache.
        Gauge CACHE_BYTES = "forebay_cache_bytes" [];
        /// Answers that left the cache, by `cause` (`size`: to make room; `age`;
        /// `purge`: an operator said so).
        Counter CACHE_REMOVED = "forebay_cache_removed_total" [cause];
        /// Look-ups in the shared store, by `outcome` (`hit`; `miss`; `timeout`; `away`: no connection; `busy`: too
        /// many at once; `refused`; `unverified`: the value was not sealed for this question; `over`: its time was;
        /// `skipped`: the store did not answer before).
        Counter CACHE_SHARED_GETS = "forebay_cache_shared_gets_total" [outcome];
        /// Answers for the shared store, by `outcome` (`stored`; `full`; `refused`; `away`; `dropped`: too many waited
        /// to be written; `skipped`).
        Counter CACHE_SHARED_PUTS = "forebay_cache_shared_puts_total" [outcome];
        /// Seconds of a look-up in the shared store.
        Histogram CACHE_SHARED_SECONDS = "forebay_cache_shared_duration_seconds" [];
        /// 1 while the shared store is asked, 0 while it is given up.
        Gauge CACHE_SHARED_ASKED = "forebay_cache_shared_asked" [];
        /// Times that the shared store was given up because it did not answer.
        Counter CACHE_SHARED_GIVEN_UP = "forebay_cache_shared_given_up_total" [];
        /// Bytes of answers that wait to be written to the shared store.
        Gauge CACHE_SHARED_QUEUED = "forebay_cache_shared_queued_bytes" [];
        /// Reads and writes of the cache's file, by `outcome` (`read`; `none`: there was no file; `refused`: nothing was taken
        /// from it; `written`; `failed`; `purged`: while it was written).
        Counter CACHE_SNAPSHOTS = "forebay_cache_snapshots_total" [outcome];
        /// Total seconds that the inferences took whose answers were given again.
        Gauge CACHE_SAVED = "forebay_cache_saved_seconds" [route];
        /// Seconds in the proxy's queue, of the requests that had to wait.
        Histogram QUEUE_SECONDS = "forebay_queue_duration_seconds" [pool];
        /// Requests refused because of load.
        Counter SHED = "forebay_shed_total" [pool, priority, reason];
        /// 1 for the endpoint's current `health`, 0 for the other values.
        Gauge ENDPOINT_HEALTH = "forebay_endpoint_health" [pool, endpoint, health];
        /// The cost that pick compares: expected seconds until a request sent now is finished.
        Gauge ENDPOINT_COST = "forebay_endpoint_cost_seconds" [pool, endpoint];
        /// Queue depth in the endpoint's last report.
        Gauge ENDPOINT_QUEUE = "forebay_endpoint_queue_depth" [pool, endpoint];
        /// Health probes by `outcome`.
        Counter PROBES = "forebay_probes_total" [pool, endpoint, outcome];
        /// Polls for load by `outcome`.
        Counter POLLS = "forebay_polls_total" [pool, endpoint, outcome];
        /// Seconds since the endpoint's last load report.
        Gauge ENDPOINT_REPORT_AGE = "forebay_endpoint_report_age_seconds" [pool, endpoint];
        /// Load reports that were ignored, by `cause`.
        Counter REPORTS_DROPPED = "forebay_load_reports_dropped_total" [pool, origin, cause];
        /// Open client connections.
        Gauge CONNECTIONS_OPEN = "forebay_connections_open" [listener];
        /// Client connections that ended, by `reason` (`ok`: normally).
        Counter CONNECTIONS = "forebay_connections_total" [listener, reason];
        /// Client connections closed for a flood of HTTP/2 frames, by `kind` of frame (`library`: a limit of
        /// the HTTP/2 library).
        Counter HTTP2_FLOODS = "forebay_http2_floods_total" [listener, kind];
        /// Connections to an endpoint closed because it flooded them over HTTP/2, by `kind` of frame.
        Counter ENDPOINT_HTTP2_FLOODS = "forebay_endpoint_http2_floods_total" [pool, endpoint, kind];
        /// TLS handshakes with clients, by `version` (of successful ones) and `outcome` (`ok`, or the cause of
        /// the failure).
        Counter TLS_HANDSHAKES = "forebay_tls_handshakes_total" [listener, version, outcome];
        /// Unix time in seconds at which the first of a listener's certificates expires.
        Gauge TLS_EXPIRY = "forebay_tls_certificate_expiry_timestamp_seconds" [listener];
        /// Bytes over connections at Layer 4, by `direction` (`in`: from the client, `out`: to it).
        Counter CONNECTION_BYTES = "forebay_connection_bytes_total" [listener, pool, endpoint, direction];
        /// Duration of connections at Layer 4 in seconds.
        Histogram CONNECTION_SECONDS = "forebay_connection_duration_seconds" [listener, pool];
        /// Requests that the admin listener refused because a page in a browser may have sent them, by `cause`
        /// (`cross_site`, `unknown_host`).
        Counter ADMIN_REFUSED = "forebay_admin_refused_total" [cause];
        /// Configuration reloads by `outcome`.
        Counter RELOADS = "forebay_reloads_total" [outcome];
        /// Unix time in seconds at which the current configuration was loaded.
        Gauge CONFIG_LOADED = "forebay_config_loaded_timestamp_seconds" [];
        /// Access log lines that were dropped because they could not be written.
        Counter ACCESS_LOG_DROPPED = "forebay_access_log_dropped_total" [];
        /// Connections that failed because this machine lacked a resource, by `resource`
        /// (`descriptors`, `ports`, `memory`) and `operation` (`accept`, `connect`, `probe`).
        Counter EXHAUSTED = "forebay_resource_exhausted_total" [resource, operation];
        /// Panics, which are faults of this program. The log names the request or task that a panic ended.
        Counter PANICS = "forebay_panics_total" [];
        /// Restarts of failed tasks of the process.
        Counter TASK_RESTARTS = "forebay_task_restarts_total" [task];
        /// Tasks of the process that make no progress; the proxy is not ready meanwhile.
        Gauge TASKS_STALLED = "forebay_tasks_stalled" [task];
        /// Process log lines that were dropped, by `cause` (`queue_full`; `stalled`: the reader stopped reading;
        /// `write_error`; `rate_limited`: one line gives their number).
        Counter LOG_DROPPED = "forebay_log_lines_dropped_total" [cause];
    }
}

/// Names of the worker's metrics. Label `model` is bounded by the repository.
pub mod worker {
    crate::names::family::families! {
        /// Always 1. Labels are the worker's `version` and facts that each engine reports, such as the
        /// `vector_unit` of its kernels.
        Gauge INFO = "forebay_worker_info" [version];
        /// Finished inferences by `reason` (`ok` if answered).
        Counter INFERENCES = "forebay_worker_inferences_total" [model, version, reason];
        /// Seconds in the queue.
        Histogram QUEUE_SECONDS = "forebay_worker_queue_duration_seconds" [model];
        /// Seconds that a batch spent in the engine.
        Histogram EXECUTE_SECONDS = "forebay_worker_execute_duration_seconds" [model];
        /// Rows per batch.
        Histogram BATCH_ROWS = "forebay_worker_batch_rows" [model];
        /// Mean seconds that a batch of `rows` takes.
        Gauge BATCH_SECONDS = "forebay_worker_batch_duration_seconds" [model, version, rows];
        /// Batch size up to which joining pays.
        Gauge BATCH_BEST = "forebay_worker_batch_best_rows" [model, version];
        /// Tokens embedded.
        Counter EMBEDDING_TOKENS = "forebay_worker_embedding_tokens_total" [model];
        /// Requests tried alone after their batch failed.
        Counter BATCH_RETRIES = "forebay_worker_batch_retries_total" [model];
        /// Requests given up because their client had left or their deadline had passed, by `stage` (`queue`,
        /// `engine`) and `reason`.
        Counter ABANDONED = "forebay_worker_abandoned_total" [model, stage, reason];
        /// Runs stopped at `max_execution`.
        Counter OVERRUNS = "forebay_worker_overruns_total" [model];
        /// Times that a long run lent its executor to a shorter one.
        Counter LENT = "forebay_worker_lent_total" [model];
        /// Executor threads lost to runs that could not be stopped.
        Gauge EXECUTORS_LOST = "forebay_worker_executors_lost" [];
        /// Requests executing and queued.
        Gauge IN_FLIGHT = "forebay_worker_requests_in_flight" [];
        /// Requests queued.
        Gauge QUEUE_DEPTH = "forebay_worker_queue_depth" [model];
        /// Number of requests that can run at once.
        Gauge SLOTS = "forebay_worker_slots" [];
        /// 1 if the model is loaded and warmed.
        Gauge MODEL_READY = "forebay_worker_model_ready" [model, version];
        /// Attempts to load a version, by `outcome` (`ok`; `failed`, whether or not the load is tried again;
        /// `full`: no memory).
        Counter MODEL_LOADS = "forebay_worker_model_loads_total" [model, outcome];
        /// Versions taken out of service, by `why` (`unloaded` on request, `replaced`,
        /// `evicted` to make room, `gone` from disk).
        Counter MODEL_UNLOADS = "forebay_worker_model_unloads_total" [model, why];
        /// Memory that a version takes, in bytes.
        Gauge MODEL_MEMORY = "forebay_worker_model_memory_bytes" [model, version];
        /// Memory that all models take, in bytes, including those that only their last requests still hold.
        Gauge MODELS_MEMORY = "forebay_worker_models_memory_bytes" [];
        /// Panics, which are faults of this program or of the engine.
        Counter PANICS = "forebay_worker_panics_total" [];
        /// Restarts of failed tasks of the process.
        Counter TASK_RESTARTS = "forebay_worker_task_restarts_total" [task];
        /// Process log lines that were dropped, by `cause` as in the proxy.
        Counter LOG_DROPPED = "forebay_worker_log_lines_dropped_total" [cause];
        /// Seconds spent on loading and warming.
        Gauge MODEL_LOAD_SECONDS = "forebay_worker_model_load_duration_seconds" [model, version];
        /// Compiled plans, one for each set of input shapes.
        Counter MODEL_COMPILATIONS = "forebay_worker_model_compilations_total" [model, version];
        /// Total seconds spent on compiling plans.
        Gauge MODEL_COMPILE_SECONDS = "forebay_worker_model_compile_seconds" [model, version];
        /// Shapes that run in the plain build, because the chosen build has no plan for them or failed on
        /// them.
        Counter MODEL_FALLBACKS = "forebay_worker_model_build_fallbacks_total" [model, version];
        /// Open connections.
        Gauge CONNECTIONS = "forebay_worker_connections" [];
        /// Connections that the worker closed, by `reason` (`header_timeout`; `slow_reader`; `idle`;
        /// `client_left`: while its request waited; `room`: made for a new one).
        Counter CONNECTIONS_CLOSED = "forebay_worker_connections_closed_total" [reason];
        /// Connections that could not be accepted.
        Counter ACCEPT_ERRORS = "forebay_worker_accept_errors_total" [];
        /// Connections closed for a flood of HTTP/2 frames, by `kind` of frame.
        Counter HTTP2_FLOODS = "forebay_worker_http2_floods_total" [kind];
    }
}
