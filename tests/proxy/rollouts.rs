//! Rollouts: canaries that are promoted and rolled back by what their requests show, and what outlives a restart.

use crate::client::{Load, Response, get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{Folder, Proxy, eventually};
use rustix::process::Signal;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;

const INFER: &str = "/v2/models/m/infer";
const PROBE: &str = "probe = { interval = \"300ms\", fast_interval = \"30ms\" }\n\
                     retry = { attempts = 1 }\nejection = { max_share = \"0%\" }";

/// A route whose canary gets half of the requests, and then all. The margins are wide, so that a verdict needs
/// hundreds of requests and not thousands.
fn config(pools: (SocketAddr, SocketAddr), state: &Path) -> String {
    format!(
        "[pool.a]\nendpoints = [\"{}\"]\n{PROBE}\n[pool.b]\nendpoints = [\"{}\"]\n{PROBE}\n\
         [[route]]\nname = \"r\"\n\
         [[route.variant]]\nname = \"stable\"\npool = \"a\"\nweight = 1000\n\
         [[route.variant]]\nname = \"canary\"\npool = \"b\"\nweight = 0\n\
         [route.rollout]\nstable = \"stable\"\ncanary = \"canary\"\nsteps = [\"10%\", \"50%\"]\n\
         step_min = \"1s\"\nwatch = \"1s\"\nmargin_errors = \"10%\"\nmargin_slow = \"30%\"\nstate = {:?}\n",
        pools.0,
        pools.1,
        state.display().to_string()
    )
}

struct Rollout {
    proxy: Proxy,
    ends: [Endpoint; 2],
    folder: Folder,
}

impl Rollout {
    async fn start(canary: Behaviour) -> Self {
        let ends = [Endpoint::start(Behaviour::Echo).await, Endpoint::start(canary).await];
        let folder = Folder::new();
        let text = config((ends[0].address, ends[1].address), &folder.0.join("state.json"));
        let proxy = Proxy::start(&text).await;
        proxy.wait_ready(2).await;
        Self { proxy, ends, folder }
    }

    /// Kills the proxy, and starts another one with the same state file.
    async fn restart(self) -> Self {
        let Self { mut proxy, ends, folder } = self;
        proxy.signal(Signal::KILL);
        proxy.ended().await;
        let text = config((ends[0].address, ends[1].address), &folder.0.join("state.json"));
        let proxy = Proxy::start(&text).await;
        proxy.wait_ready(2).await;
        Self { proxy, ends, folder }
    }

    async fn ask(&self, command: &str) -> Response {
        post(self.proxy.admin, &format!("/routes/r/rollout/{command}"), "").await
    }

    async fn comes_to(&self, state: &str) -> Value {
        comes_to(&self.proxy, state).await
    }

    /// Waits until the state file has these words.
    async fn written(&self, words: &str) {
        let path = self.folder.0.join("state.json");
        eventually(words, async || {
            std::fs::read_to_string(&path).is_ok_and(|text| text.contains(words)).then_some(())
        })
        .await;
    }
}

async fn comes_to(proxy: &Proxy, state: &str) -> Value {
    eventually(state, async || {
        let said = get(proxy.admin, "/routes/r/rollout").await.json();
        (said["state"] == state).then_some(said)
    })
    .await
}

#[tokio::test]
async fn a_canary_that_fails_is_rolled_back_and_stays_so_after_a_crash() {
    let rollout = Rollout::start(Behaviour::Failing).await;
    let said = rollout.comes_to("advancing").await;
    assert_eq!((&said["weight"], &said["step"]), (&100.into(), &1.into()));
    let load = Load::start(rollout.proxy.address, INFER, "x", 8);
    let said = rollout.comes_to("rolled_back").await;
    assert_eq!(said["weight"], 0);
    drop(load.stop().await);
    let messages = rollout.proxy.messages();
    assert!(messages.contains("\"rollout begins\"") && messages.contains("\"rollout ends\""));
    assert!(messages.contains("at the canary,"), "the figures stand beside the decision");
    let outcome = ["route=\"r\"", "outcome=\"rolled_back\""];
    assert_eq!(rollout.proxy.metric("forebay_rollout_outcomes_total", &outcome).await, 1.0);

    rollout.written("\"rolled_back\"").await;
    let rollout = rollout.restart().await;
    rollout.comes_to("rolled_back").await;
    let served = rollout.ends[1].served();
    for _ in 0..50 {
        assert_eq!(post(rollout.proxy.address, INFER, "x").await.status, 200);
    }
    assert_eq!(rollout.ends[1].served(), served, "it gets nothing any more");
    assert!(!rollout.proxy.messages().contains("\"rollout begins\""));
}

#[tokio::test]
async fn an_equal_canary_is_promoted_through_a_crash_without_a_failed_request() {
    let rollout = Rollout::start(Behaviour::Echo).await;
    let load = Load::start(rollout.proxy.address, INFER, "x", 4);
    eventually("the second step", async || {
        let said = get(rollout.proxy.admin, "/routes/r/rollout").await.json();
        (said["step"] == 2 && said["weight"] == 500).then_some(())
    })
    .await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().map(String::as_str).collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    // The state is written with each step; the canary may have been promoted meanwhile.
    eventually("the step is written", async || {
        let text = std::fs::read_to_string(rollout.folder.0.join("state.json")).unwrap();
        ["\"weight\":500,", "\"weight\":1000,"].iter().any(|it| text.contains(it)).then_some(())
    })
    .await;
    let rollout = rollout.restart().await;
    let said = eventually("the state is read", async || {
        let answer = get(rollout.proxy.admin, "/routes/r/rollout").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    // It may have been promoted meanwhile.
    assert!(said["weight"].as_u64() >= Some(500), "{said}");
    assert!(said["evidence"][0]["canary"]["requests"].as_f64() > Some(0.0), "{said}");
    let load = Load::start(rollout.proxy.address, INFER, "x", 4);
    let said = rollout.comes_to("promoted").await;
    assert_eq!(said["weight"], 1000);
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().map(String::as_str).collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test]
async fn operators_pause_abort_and_begin_again() {
    let rollout = Rollout::start(Behaviour::Echo).await;
    rollout.comes_to("advancing").await;
    assert_eq!(rollout.ask("pause").await.json()["state"], "paused");
    assert_eq!(rollout.ask("resume").await.json()["state"], "advancing");
    let said = rollout.ask("abort").await.json();
    assert_eq!((&said["state"], &said["weight"]), (&"aborted".into(), &0.into()));
    let again = rollout.ask("promote").await;
    assert_eq!(again.status, 409);
    assert!(again.text().contains("the rollout has ended: aborted"), "{}", again.text());
    assert_eq!(rollout.ask("start").await.json()["state"], "advancing");
    let said = rollout.ask("promote").await.json();
    assert_eq!((&said["state"], &said["weight"]), (&"promoted".into(), &1000.into()));
    let weights = get(rollout.proxy.admin, "/routes/r/weights").await.json();
    assert_eq!(weights["weights"]["canary"], 1000);

    let admin = rollout.proxy.admin;
    assert_eq!(get(admin, "/routes/q/rollout").await.status, 404);
    assert_eq!(post(admin, "/routes/r/rollout/forget", "").await.status, 404);
    assert_eq!(get(admin, "/routes/r/rollout/abort").await.status, 405);
    assert_eq!(post(admin, "/routes/r/rollout", "").await.status, 405);
    assert_eq!(get(admin, "/rollouts").await.json()["rollouts"][0]["state"], "promoted");
}

#[tokio::test]
async fn another_version_is_another_rollout_and_a_route_without_one_forgets_it() {
    let rollout = Rollout::start(Behaviour::Echo).await;
    rollout.comes_to("advancing").await;
    rollout.ask("abort").await;
    let text = std::fs::read_to_string(&rollout.proxy.config).unwrap();
    let next = text.replace("weight = 0\n", "weight = 0\nversion = \"2\"\n");
    std::fs::write(&rollout.proxy.config, &next).unwrap();
    let answer = post(rollout.proxy.admin, "/reload", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = rollout.comes_to("advancing").await;
    assert_eq!(said["weight"], 100);
    let without = next.split("[route.rollout]").next().unwrap();
    std::fs::write(&rollout.proxy.config, without).unwrap();
    assert_eq!(post(rollout.proxy.admin, "/reload", "").await.status, 200);
    eventually("it is forgotten", async || {
        (get(rollout.proxy.admin, "/routes/r/rollout").await.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_state_that_can_not_be_read_or_written_begins_nothing_and_requests_go_on() {
    let ends = [Endpoint::start(Behaviour::Echo).await, Endpoint::start(Behaviour::Echo).await];
    let folder = Folder::new();
    let damaged = folder.0.join("damaged.json");
    std::fs::write(&damaged, "{\"version\":1,\"route\":\"r\",\"ident").unwrap();
    for (state, words) in [
        (&*damaged, "expected the state of a rollout"),
        (Path::new("/proc/no/state.json"), "No such file or directory"),
    ] {
        let text = config((ends[0].address, ends[1].address), state);
        let proxy = Proxy::start(&text).await;
        proxy.wait_ready(2).await;
        let said = comes_to(&proxy, "faulty").await;
        assert!(said["error"].as_str().unwrap().contains(words), "{said}");
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
        let weights = get(proxy.admin, "/routes/r/weights").await.json();
        assert_eq!(weights["weights"]["canary"], 0, "as in the file");
        let text = std::fs::read_to_string(&proxy.config).unwrap();
        let other = folder.0.join("other.json").display().to_string();
        let mended = text.replace(&state.display().to_string(), &other);
        std::fs::write(&proxy.config, mended).unwrap();
        assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
        comes_to(&proxy, "advancing").await;
        std::fs::remove_file(other).unwrap();
    }
}

#[tokio::test]
async fn a_canary_without_an_endpoint_is_stood_in_for_and_rolled_back() {
    let rollout = Rollout::start(Behaviour::Echo).await;
    rollout.comes_to("advancing").await;
    let path = format!("/pools/b/endpoints/{}/drain", rollout.ends[1].address);
    assert_eq!(post(rollout.proxy.admin, &path, "").await.status, 200);
    let load = Load::start(rollout.proxy.address, INFER, "x", 4);
    rollout.comes_to("rolled_back").await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().map(String::as_str).collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}
