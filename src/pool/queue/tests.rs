#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
use super::*;
use crate::config::Config;
use crate::pool::{Pool, PoolState};
use forebay_routing::{Health, ModelStats, RetryBudget};
use pingora::upstreams::peer::HttpPeer;
use std::path::Path;
use std::sync::atomic::AtomicU64;

/// Four endpoints with two slots each; only arriving and leaving requests check the line.
fn pool() -> Arc<Pool> {
    pool_with("")
}

/// The same with `more` in its table.
fn pool_with(more: &str) -> Arc<Pool> {
    let text = "[[listener]]\naddress = \"127.0.0.1:1\"\n[[route]]\nname = \"r\"\npool = \"p\"\n\
                [pool.p]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\", \
                \"127.0.0.1:4\"]\nslots = 2\nqueue = { size = 1000, handoff_delay = \"0s\" }\n";
    let text = format!("{text}{more}\n");
    let config = Arc::clone(&Config::parse(&text, Path::new("")).unwrap().pools[0]);
    let endpoint = |place: u16| {
        let address = ([127, 0, 0, 1], place + 1).into();
        let state = Arc::new(EndpointState::new(address, 2, Arc::default()));
        state.health.store(Health::Ready as u8, Relaxed);
        // One answer, so that its speed is known: it gets no more than its slots from now on.
        state.load.enter().answered(Duration::from_millis(1), clock::now());
        let peer = HttpPeer::new(address, false, String::new());
        Arc::new(Endpoint { state, grpc: peer.clone(), peer, pool: "p".into() })
    };
    let endpoints: Vec<_> = (0..4).map(endpoint).collect();
    let state = Arc::new(PoolState {
        pick_memory: Arc::default(),
        looked_for_stale: AtomicU64::new(0),
        queue: Arc::new(Queue::new(Arc::default())),
        budget: RetryBudget::new(0.0, 0.0),
        retry_policy: config.retry.policy(),
        retry: config.retry.clone(),
        hedges: None,
        models: Arc::new(ModelStats::new(None)),
        waits: Default::default(),
    });
    let pool = Arc::new(Pool::new(config, endpoints, state));
    pool.state.queue.renew(&pool.rotation);
    pool
}

fn asks(number: usize) -> BindRequest {
    BindRequest {
        priority: Priority::ALL[number % 3],
        client: number as u64 % 5,
        deadline: Instant::now() + Duration::from_secs(3600),
        key: None,
        relative_cost: RelativeCost::default(),
        tried: Vec::new(),
        steps: None,
        stand_in: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_and_no_slot_is_used_twice_however_all_meet() {
    let pool = pool();
    let taken: Arc<[AtomicUsize; 4]> = Arc::default();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (pool, taken) = (Arc::clone(&pool), Arc::clone(&taken));
        clients.spawn(async move {
            for turn in 0..200 {
                let bind = pool.bind(asks(number));
                // Some leave at any moment, also when they have just been bound.
                if (number + turn) % 7 == 0 {
                    drop(tokio::time::timeout(Duration::from_micros(turn as u64), bind).await);
                    continue;
                }
                let bound = bind.await.unwrap();
                let place = bound.endpoint.state.place.load(Relaxed);
                let there = taken[place].fetch_add(1, SeqCst);
                assert!(there < 2, "{there} others have both slots");
                for _ in 0..turn % 3 {
                    tokio::task::yield_now().await;
                }
                taken[place].fetch_sub(1, SeqCst);
            }
        });
    }
    clients.join_all().await;
    assert_eq!(pool.state.queue.count(), 0);
    for endpoint in &pool.endpoints {
        assert_eq!(endpoint.state.load.in_flight(), 0);
    }
}

#[tokio::test]
async fn who_is_bound_and_gone_before_it_knows_gives_its_place_to_the_next() {
    let pool = pool();
    let mut held = Vec::new();
    for number in 0..8 {
        held.push(pool.bind(asks(number)).await.unwrap());
    }
    let mut first = Box::pin(pool.bind(asks(0)));
    let mut second = Box::pin(pool.bind(asks(0)));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    assert_eq!(pool.state.queue.count(), 2);
    // The first is bound by this, and leaves without having looked.
    held.pop();
    drop(first);
    assert!(futures_util::poll!(&mut second).is_ready());
    assert_eq!(pool.state.queue.count(), 0);
}

#[tokio::test]
async fn the_deadline_of_a_light_model_is_not_judged_by_what_a_heavy_one_takes() {
    let pool = pool_with("policy = \"round_robin\"");
    let ask = |model| pool.state.models.handle(model, clock::now());
    for _ in 0..200 {
        for (model, took) in [(1, 1), (2, 50)] {
            let bound = pool.bind(asks(0)).await.unwrap();
            bound.answered(ask(model).answered(Duration::from_secs(took), clock::now()));
        }
    }
    let mut held = Vec::new();
    for number in 0..8 {
        held.push(pool.bind(asks(number)).await.unwrap());
    }
    let mut waits = Box::pin(pool.bind(asks(0)));
    assert!(futures_util::poll!(&mut waits).is_pending());
    // A slot frees every 25.5 s / 8, after which one would take 1 s and the other 50.
    let hurried = |relative_cost| {
        let deadline = Instant::now() + Duration::from_secs(5);
        pool.bind(BindRequest { deadline, relative_cost, ..asks(0) })
    };
    let mut light = Box::pin(hurried(ask(1).relative_cost()));
    assert!(futures_util::poll!(&mut light).is_pending(), "there is hope");
    drop(light);
    let heavy = hurried(ask(2).relative_cost()).await;
    assert!(matches!(heavy, Err(Rejected::DeadlineUnreachable(_))), "{heavy:?}");
}
