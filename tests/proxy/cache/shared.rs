//! A store behind the memory of several proxies.

use super::*;

#[path = "../../../crates/cache/tests/stand_in/mod.rs"]
mod stand_in;

use stand_in::{Mode, StandIn};

/// A proxy that shares its answers.
async fn sharing(endpoint: SocketAddr, store: SocketAddr, folder: &Folder) -> Proxy {
    let key = folder.0.join("cache.key");
    std::fs::write(&key, "a secret of the test, long enough").unwrap();
    let shared = format!(
        "{}[cache]\nkey_file = {key:?}\n[cache.shared]\naddress = \"{store}\"\ntimeout = \"1s\"\n",
        config(endpoint, "ttl = \"10m\"\nrows = true"),
    );
    let proxy = Proxy::start(&shared).await;
    proxy.wait_ready(1).await;
    asked(&proxy, true).await;
    proxy
}

async fn asked(proxy: &Proxy, expected: bool) {
    eventually("the state of the shared store", async || {
        (state(proxy).await["asked"] == expected).then_some(())
    })
    .await;
}

async fn state(proxy: &Proxy) -> serde_json::Value {
    get(proxy.admin, "/cache").await.json()["shared"].clone()
}

async fn stored(store: &StandIn, count: usize) {
    eventually("answers in the store", async || (store.keys().len() == count).then_some(())).await;
}

/// A batch of two rows.
fn batch(first: f32, second: f32) -> InferRequest {
    let tensor = |name: &str, data: Vec<f32>| {
        Tensor::new(name, vec![2, 4], Data::Fp32(data.into())).unwrap()
    };
    let rows = [vec![first; 4], vec![second; 4]].concat();
    let inputs = vec![tensor("a", rows), tensor("b", vec![1.0; 8])];
    InferRequest { inputs, ..InferRequest::default() }
}

#[tokio::test]
async fn what_one_proxy_has_asked_is_a_hit_at_another() {
    let (worker, store, folder) =
        (Worker::start(anywhere()).await, StandIn::redis().await, Folder::new());
    let one = sharing(worker.address, store.address, &folder).await;
    let two = sharing(worker.address, store.address, &folder).await;
    let first = ask(&one, &request(2.0), false).await;
    assert_eq!(status(&first), "stored");
    stored(&store, 1).await;
    // From its first answer on, a proxy knows the content of the model.
    assert_eq!(status(&ask(&two, &request(3.0), false).await), "stored");
    stored(&store, 2).await;
    two.next_line();
    let shared = ask(&two, &request(2.0), true).await;
    assert!(is_hit(&shared) && shared.header("cache-status").ends_with("detail=shared"));
    assert_eq!(read(&shared).outputs, read(&first).outputs);
    let line = two.next_line();
    assert_eq!((&line["cache"], &line["attempts"]), (&"hit:shared".into(), &0.into()));
    let again = ask(&two, &request(2.0), true).await;
    assert!(is_hit(&again) && !again.header("cache-status").contains("shared"), "it is in memory");
    assert_eq!(two.next_line()["cache"], "hit");
    // A batch of rows that only the store has, and one with a new row.
    let rows = ask(&one, &batch(3.0, 2.0), false).await;
    assert!(is_hit(&rows), "{:?}", rows.headers);
    let rows = ask(&one, &batch(3.0, 4.0), false).await;
    assert_eq!(rows.header("cache-status"), "forebay; fwd=partial; detail=\"1 of 2 rows\"");
    for (name, labels) in [
        ("forebay_cache_shared_gets_total", "outcome=\"hit\""),
        ("forebay_cache_shared_puts_total", "outcome=\"stored\""),
        ("forebay_cache_shared_asked", ""),
        ("forebay_cache_shared_duration_seconds_count", ""),
    ] {
        assert!(two.metric(name, &[labels]).await > 0.5, "{name}");
    }
}

#[tokio::test]
async fn a_client_of_the_cache_alone_is_answered_from_the_store_as_well() {
    let (worker, store, folder) =
        (Worker::start(anywhere()).await, StandIn::memcached().await, Folder::new());
    let key = folder.0.join("cache.key");
    std::fs::write(&key, "a secret of the test, long enough").unwrap();
    let text = format!(
        "{}[cache]\nkey_file = {key:?}\nencrypt = true\n[cache.shared]\nkind = \"memcached\"\naddress = \"{}\"\ntimeout = \"1s\"\n",
        config(worker.address, ""),
        store.address
    );
    let (one, two) = (Proxy::start(&text).await, Proxy::start(&text).await);
    for proxy in [&one, &two] {
        proxy.wait_ready(1).await;
        asked(proxy, true).await;
    }
    ask(&one, &request(2.0), false).await;
    ask(&two, &request(3.0), false).await;
    stored(&store, 2).await;
    let body = request(2.0).encode(|_| false).unwrap().body;
    let only = |value: &'static str| {
        post_with_owned(two.address, INFER, "cache-control", value, body.clone())
    };
    assert_eq!(only("no-cache, only-if-cached").await.status, 504, "it takes no kept one");
    let found = only("only-if-cached, max-age=100").await;
    assert!(is_hit(&found), "{:?}", found.headers);
    // It is encrypted: not even the name of the model is to be seen.
    store.change(|values| {
        let shows = |value: &Vec<u8>| value.windows(5).any(|part| part == b"arith");
        assert!(values.len() == 3 && !values.values().any(shows));
    });
}

#[tokio::test]
async fn a_purge_makes_the_store_worthless_for_all() {
    let (worker, store, folder) =
        (Worker::start(anywhere()).await, StandIn::redis().await, Folder::new());
    let one = sharing(worker.address, store.address, &folder).await;
    let two = sharing(worker.address, store.address, &folder).await;
    ask(&one, &request(2.0), false).await;
    stored(&store, 1).await;
    let purged = post(one.admin, "/cache/purge?model=arith", "").await.json();
    assert_eq!((&purged["purged"], &purged["shared"]), (&1.into(), &true.into()));
    assert_eq!(status(&ask(&one, &request(2.0), false).await), "stored");
    ask(&two, &request(3.0), false).await;
    // The answer from before the purge has another epoch.
    stored(&store, 3).await;
    let status = one.status().await;
    assert_eq!(status["cache"]["shared"]["asked"], true, "{status}");
    let text = get(one.admin, "/status?format=text").await.text();
    assert!(text.contains("; the shared store is asked"), "{text}");
    store.set(Mode::Stalls);
    asked(&one, false).await;
    let purged = post(one.admin, "/cache/purge", "").await.json();
    assert_eq!(purged["shared"], false);
}

#[tokio::test]
async fn whatever_the_store_does_no_client_sees_an_error() {
    let (worker, store, folder) =
        (Worker::start(anywhere()).await, StandIn::redis().await, Folder::new());
    let proxy = std::sync::Arc::new(sharing(worker.address, store.address, &folder).await);
    assert_eq!(status(&ask(&proxy, &request(0.5), false).await), "stored");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = JoinSet::new();
    for client in 0..8_u16 {
        let (proxy, stopped) = (std::sync::Arc::clone(&proxy), stopped.clone());
        clients.spawn(async move {
            let mut count = 0_u16;
            while !*stopped.borrow() {
                let number = f32::from(client) * 1000.0 + f32::from(count % 500);
                let answer = ask(&proxy, &request(number), false).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(sums(&answer), [number + 1.0]);
                count += 1;
            }
            count
        });
    }
    for mode in [Mode::Full, Mode::Stalls, Mode::Serves, Mode::Garbage, Mode::Huge, Mode::Closes] {
        store.set(mode);
        let is_up = matches!(mode, Mode::Full | Mode::Serves);
        asked(&proxy, is_up).await;
    }
    store.set(Mode::Serves);
    asked(&proxy, true).await;
    // Everything in it is exchanged for other answers.
    let moved = proxy.metric("forebay_cache_shared_gets_total", &["unverified"]).await;
    post(proxy.admin, "/cache/purge", "").await;
    let address = store.kill();
    asked(&proxy, false).await;
    let _again = StandIn::start(true, None, address).await;
    asked(&proxy, true).await;
    stop.send_replace(true);
    while let Some(client) = clients.join_next().await {
        assert!(client.unwrap() > 0);
    }
    assert!(moved < 0.5, "what it wrote itself is verified");
}
