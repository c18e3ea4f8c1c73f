//! The load generator exchanges the proxy, and its clients do not notice.

use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Folder, Proxy, anywhere, pool_of};
use forebay_loadtest::generate::run::{self, Options, RunError};
use forebay_loadtest::plan::Plan;
use forebay_loadtest::scenario;
use std::net::SocketAddr;

/// Each request has a connection of its own: on one that is kept, a request and the end of the
/// connection may cross, which no server can prevent (RFC 9112, 9.5).
///
/// Two upgrades with both running for a while, one with hardly a moment, and a restart.
const FAULTS: &str = r#"
[[fault]]
at = "500ms"
for = "1s"
process = "proxy"
kind = "upgrade"
overlap = "500ms"
[[fault]]
at = "3s"
for = "1s"
process = "proxy"
kind = "upgrade"
overlap = "0s"
[[fault]]
at = "5500ms"
for = "500ms"
process = "proxy"
kind = "drain"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_restart_under_load_cost_no_client_an_answer() {
    let endpoints =
        [Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await];
    let addresses = endpoints.each_ref().map(|endpoint| endpoint.address);
    let mut others = 3;
    let report = loop {
        let folder = Folder::new();
        let free = std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap();
        let scenario = scenario_at(free, &addresses, &folder);
        let run = move || {
            let plan = Plan::new(scenario::parse(&scenario).unwrap()).unwrap();
            run::run(plan, Options::default())
        };
        match tokio::task::spawn_blocking(run).await.unwrap() {
            // A program that another test was just starting may have had the socket for longer.
            Err(RunError::Process(problem))
                if others > 0 && problem.contains("can't listen on") =>
            {
                others -= 1;
            }
            report => break report.unwrap(),
        }
    };
    assert!(report.faults.iter().all(|fault| fault.problem.is_none()), "{:?}", report.faults);
    let errors: Vec<_> =
        report.fault_windows.iter().map(|stage| (&stage.name, &stage.errors)).collect();
    assert_eq!(report.results.ok, report.results.requests, "{errors:?}");
    assert!(report.results.requests > 700, "{}", report.results.requests);
}

/// The scenario, with a proxy at `free` before `endpoints`; its files are in `folder`.
fn scenario_at(free: SocketAddr, endpoints: &[SocketAddr], folder: &Folder) -> String {
    let config = folder.0.join("forebay.toml");
    let text = Proxy::text("", &pool_of(endpoints, ""));
    let text = text.replace("address = \"127.0.0.1:0\"", &format!("address = \"{free}\""));
    std::fs::write(&config, text).unwrap();
    std::fs::write(folder.0.join("body"), "{}").unwrap();
    format!(
        r#"
        target = "http://{free}"
        warm_up = "0s"
        timeout = "30s"
        objectives = ["errors<=0"]
        [load]
        kind = "open"
        [[load.phase]]
        kind = "constant"
        rate = "100/s"
        for = "8s"
        [[request]]
        kind = "http"
        path = "/v2/models/m/infer"
        headers = ["connection: close"]
        body = {body:?}
        [[process]]
        name = "proxy"
        command = [{program:?}, "serve", "--config", {config:?}]
        sockets = ["{free}"]
        ready = "http://{free}/v2/health/ready"
        {FAULTS}
        "#,
        body = folder.0.join("body"),
        program = env!("CARGO_BIN_EXE_forebay"),
    )
}
