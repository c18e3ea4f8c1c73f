//! The shared store over real sockets: what it gives, and that nothing it does is worse than a miss.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod stand_in;

use forebay_cache::record::Instants;
use forebay_cache::sealed::Secret;
use forebay_cache::shared::{Dialling, Got, Protocol, Put, Settings, Stream, Tier};
use forebay_cache::{Answer, Content, Entry, Question};
use stand_in::{Mode, StandIn};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

const MAX_WAIT: Duration = Duration::from_secs(30);
const CONTENT: Content = Content(7);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> Instants {
    let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Instants { steady: Duration::from_secs(1_000_000) + START.elapsed(), day }
}

fn settings(protocol: Protocol) -> Settings {
    Settings {
        protocol,
        login: None,
        database: 0,
        prefix: "t:".to_owned(),
        // Far more than loopback takes, even where the machine is busy.
        timeout: Duration::from_secs(2),
        queue: 1 << 20,
        max_answer: 10_000,
        encrypts: false,
    }
}

/// A tier with its tasks, which end with it.
struct Running {
    tier: Arc<Tier>,
    _tasks: JoinSet<()>,
}

fn run(settings: Settings, secret: &str, address: SocketAddr) -> Running {
    let dial = move || -> Dialling {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    };
    let tier = Arc::new(Tier::new(settings, &Secret::new(secret.as_bytes()), Box::new(dial)));
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&tier).read());
    tasks.spawn(Arc::clone(&tier).write());
    tasks.spawn(Arc::clone(&tier).send_queued(now));
    tasks.spawn(Arc::clone(&tier).keep(now));
    Running { tier, _tasks: tasks }
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < MAX_WAIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Running {
    async fn asked(&self) {
        eventually("a store that is asked", async || {
            let state = self.tier.state();
            state.asked && state.connected
        })
        .await;
    }

    fn got(&self, got: Got) -> u64 {
        self.tier.gets().find(|(one, _)| *one == got).unwrap().1
    }

    fn put(&self, put: Put) -> u64 {
        self.tier.puts().find(|(one, _)| *one == put).unwrap().1
    }

    async fn get(&self, number: u8) -> Option<Entry> {
        self.tier.get(&[(question(number), CONTENT)], now()).await.remove(0)
    }

    /// Writes an answer and waits until the store has it.
    async fn store(&self, number: u8, text: &str) {
        let before = self.put(Put::Stored);
        self.tier.put((question(number), CONTENT), entry(text, 60));
        eventually("a stored answer", async || self.put(Put::Stored) > before).await;
    }
}

fn question(number: u8) -> Question {
    Question::from_bytes([number; 32])
}

fn entry(text: &str, seconds: u64) -> Arc<Entry> {
    let now = now().steady;
    Arc::new(Entry {
        answer: Answer::of_bytes(text.as_bytes().to_vec()),
        route: "r".into(),
        model: "m".into(),
        version: None,
        born: now,
        expires: now + Duration::from_secs(seconds),
        gone: now + Duration::from_secs(2 * seconds),
        took: Duration::from_millis(3),
    })
}

fn text(entry: Option<Entry>) -> Option<String> {
    entry.map(|entry| String::from_utf8(entry.answer.bytes().to_vec()).unwrap())
}

async fn share_answers(protocol: Protocol, address: SocketAddr, encrypts: bool) {
    let settings = Settings { encrypts, ..settings(protocol) };
    let (one, two) = (run(settings.clone(), "s", address), run(settings, "s", address));
    one.asked().await;
    two.asked().await;
    assert!(one.get(1).await.is_none());
    one.store(1, "first").await;
    one.store(2, "second\r\n").await;
    let found = two.get(1).await.unwrap();
    assert!(found.is_fresh(now().steady) && found.took == Duration::from_millis(3));
    assert_eq!(text(Some(found)).as_deref(), Some("first"));
    let keys = [(question(2), CONTENT), (question(3), CONTENT), (question(1), Content(8))];
    let found = two.tier.get(&keys, now()).await;
    let found: Vec<_> = found.into_iter().map(text).collect();
    assert_eq!(found, [Some("second\r\n".to_owned()), None, None]);
    assert_eq!((two.got(Got::Hit), two.got(Got::Miss)), (2, 2));
    assert!(one.tier.purge(now().day).await);
    assert!(one.get(1).await.is_none());
    eventually("the purge at the other proxy", async || two.get(1).await.is_none()).await;
    one.store(1, "again").await;
    assert_eq!(text(two.get(1).await).as_deref(), Some("again"));
}

#[tokio::test]
async fn proxies_share_answers_and_purges() {
    for encrypts in [false, true] {
        share_answers(Protocol::Redis, StandIn::redis().await.address, encrypts).await;
        share_answers(Protocol::Memcached, StandIn::memcached().await.address, encrypts).await;
    }
}

/// A program from a package, on a port of its own, which ends with it.
struct Program(std::process::Child, SocketAddr);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn program(name: &str, arguments: &[&str]) -> Option<Program> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = free.port().to_string();
    let mut command = std::process::Command::new(name);
    command.args(arguments).args(["-p", &port]).stdout(std::process::Stdio::null());
    if name != "memcached" {
        command = std::process::Command::new(name);
        command.args(["--port", &port, "--save", "", "--bind", "127.0.0.1"]).args(arguments);
        command.stdout(std::process::Stdio::null());
    }
    let program = Program(command.spawn().ok()?, free);
    eventually(name, async || TcpStream::connect(free).await.is_ok()).await;
    Some(program)
}

#[tokio::test]
async fn the_real_programs_understand_it() {
    for name in ["redis-server", "valkey-server"] {
        let Some(redis) = program(name, &["--requirepass", "secret"]).await else {
            eprintln!("skipped: no {name} on this machine");
            continue;
        };
        let login = Some((String::new(), "secret".to_owned()));
        let with = Settings { login, database: 3, ..settings(Protocol::Redis) };
        let one = run(with.clone(), "s", redis.1);
        one.asked().await;
        one.store(1, "first").await;
        let two = run(with, "s", redis.1);
        two.asked().await;
        assert_eq!(text(two.get(1).await).as_deref(), Some("first"));
        assert!(two.tier.purge(now().day).await && two.get(1).await.is_none());
    }
    match program("memcached", &["-l", "127.0.0.1", "-u", "nobody", "-U", "0"]).await {
        Some(memcached) => share_answers(Protocol::Memcached, memcached.1, false).await,
        None => eprintln!("skipped: no memcached on this machine"),
    }
}

#[tokio::test]
async fn what_others_write_is_a_miss_and_counted() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    one.store(2, "second").await;
    let keys = store.keys();
    assert_eq!(keys.len(), 2);
    // An answer that is moved to another question, one that is changed, one that is cut, and one of another secret.
    store.change(|values| {
        let moved = values[&keys[0]].clone();
        values.insert(keys[1].clone(), moved);
    });
    assert!(one.get(2).await.is_none() && one.get(1).await.is_some());
    store.change(|values| values.get_mut(&keys[0]).unwrap()[60] ^= 1);
    assert!(one.get(1).await.is_none());
    store.change(|values| values.get_mut(&keys[0]).unwrap().truncate(20));
    assert!(one.get(1).await.is_none());
    store.change(|values| values.get_mut(&keys[0]).unwrap().clear());
    assert!(one.get(1).await.is_none());
    assert_eq!(one.got(Got::Unverified), 4);
    let other = run(settings(Protocol::Redis), "another secret", store.address);
    other.asked().await;
    other.store(1, "poison").await;
    assert!(one.get(1).await.is_none());
    assert_eq!(one.got(Got::Unverified), 5);
    assert!(one.tier.state().asked, "the store answers, so it is asked");
}

#[tokio::test]
async fn an_answer_whose_time_is_over_is_not_taken() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    let later = |seconds: u64| {
        let (by, now) = (Duration::from_secs(seconds), now());
        Instants { steady: now.steady + by, day: now.day + by }
    };
    let get = async |now| one.tier.get(&[(question(1), CONTENT)], now).await.remove(0);
    assert!(get(later(50)).await.is_some());
    assert!(get(later(61)).await.is_none());
    let hour = Duration::from_secs(3600);
    for day in [now().day - hour, now().day + hour] {
        assert!(get(Instants { day, ..now() }).await.is_none(), "the clock was set");
    }
    assert_eq!(one.got(Got::Over), 3);
}

#[tokio::test]
async fn a_store_that_fails_is_a_miss_and_soon_not_asked() {
    let (here, mut all) = (LocalSet::new(), JoinSet::new());
    for mode in [Mode::Refuses, Mode::Huge, Mode::Garbage, Mode::Closes, Mode::Stalls] {
        all.spawn_local_on(async move { fail(StandIn::redis().await, mode).await }, &here);
        all.spawn_local_on(async move { fail(StandIn::memcached().await, mode).await }, &here);
    }
    here.run_until(all.join_all()).await;
}

async fn fail(store: StandIn, mode: Mode) {
    let protocol = if store.is_redis() { Protocol::Redis } else { Protocol::Memcached };
    let timeout = if mode == Mode::Stalls { Duration::from_millis(100) } else { MAX_WAIT };
    let one = run(Settings { timeout, ..settings(protocol) }, "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    store.set(mode);
    eventually("a store that is given up", async || {
        assert!(one.get(1).await.is_none(), "{mode:?}");
        !one.tier.state().asked
    })
    .await;
    let asked = store.gets();
    assert!(one.get(1).await.is_none());
    one.tier.put((question(2), CONTENT), entry("second", 60));
    assert!(one.got(Got::Skipped) > 0 && one.put(Put::Skipped) > 0);
    assert_eq!(store.gets(), asked, "{mode:?}: it is not asked");
    store.set(Mode::Serves);
    one.asked().await;
    assert_eq!(text(one.get(1).await).as_deref(), Some("first"), "{mode:?}");
    assert!(one.tier.state().given_up > 0);
}

#[tokio::test]
async fn a_full_store_still_gives_what_it_has() {
    for store in [StandIn::redis().await, StandIn::memcached().await] {
        let protocol = if store.is_redis() { Protocol::Redis } else { Protocol::Memcached };
        let one = run(settings(protocol), "s", store.address);
        one.asked().await;
        one.store(1, "first").await;
        store.set(Mode::Full);
        one.tier.put((question(2), CONTENT), entry("second", 60));
        eventually("a write that finds no room", async || one.put(Put::Full) == 1).await;
        assert!(one.get(2).await.is_none());
        assert!(one.get(1).await.is_some() && one.tier.state().asked);
        assert_eq!(one.tier.state().queued_bytes, 0);
    }
}

#[tokio::test]
async fn a_killed_store_is_used_again_when_it_is_back() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    let address = store.kill();
    eventually("a lost connection", async || {
        assert!(one.get(2).await.is_none());
        !one.tier.state().asked
    })
    .await;
    assert!(!one.tier.purge(now().day).await, "there is none to say it to");
    let _store = StandIn::start(true, None, address).await;
    one.asked().await;
    assert!(one.get(1).await.is_none());
    one.store(1, "again").await;
    assert_eq!(text(one.get(1).await).as_deref(), Some("again"));
}

#[tokio::test]
async fn a_purge_that_the_store_did_not_hear_is_made_good() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    store.set(Mode::Refuses);
    assert!(!one.tier.purge(now().day).await);
    store.set(Mode::Serves);
    one.asked().await;
    assert!(one.get(1).await.is_none());
    let two = run(settings(Protocol::Redis), "s", store.address);
    two.asked().await;
    eventually("the purge in the store", async || two.get(1).await.is_none()).await;
}

#[tokio::test]
async fn with_a_lost_epoch_nothing_old_is_given() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    store.change(|values| values.retain(|key, _| !key.ends_with("epoch")));
    eventually("a new epoch", async || one.get(1).await.is_none()).await;
    assert!(one.tier.state().asked && store.keys().len() == 1);
}

#[tokio::test]
async fn a_store_that_comes_back_from_before_a_purge_undoes_nothing() {
    for store in [StandIn::redis().await, StandIn::memcached().await] {
        let protocol = if store.is_redis() { Protocol::Redis } else { Protocol::Memcached };
        let one = run(settings(protocol), "s", store.address);
        one.asked().await;
        one.store(1, "first").await;
        let mut before = None;
        store.change(|values| before = Some(values.clone()));
        let before = before.unwrap();
        assert!(one.tier.purge(now().day).await);
        store.change(|values| *values = before.clone());
        eventually("the epoch of the purge", async || {
            assert!(one.get(1).await.is_none());
            let mut is_again = false;
            store.change(|values| is_again = values["t:epoch"] > before["t:epoch"]);
            is_again
        })
        .await;
        // A proxy that was not there then has nothing old either.
        let two = run(settings(protocol), "s", store.address);
        two.asked().await;
        assert!(one.get(1).await.is_none() && two.get(1).await.is_none());
        one.store(1, "again").await;
        assert_eq!(text(two.get(1).await).as_deref(), Some("again"));
    }
}

#[tokio::test]
async fn a_value_that_is_no_epoch_is_replaced_as_by_a_purge() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    for wrong in ["what", "", "ffffffffffffffff", "0000000000000000"] {
        one.store(1, "first").await;
        store.change(|values| {
            values.insert("t:epoch".to_owned(), wrong.into());
        });
        eventually("a new epoch", async || {
            let mut is_new = false;
            store.change(|values| is_new = values["t:epoch"] != wrong.as_bytes());
            is_new && one.get(1).await.is_none()
        })
        .await;
        assert!(one.tier.state().asked, "{wrong}");
    }
}

#[tokio::test]
async fn asking_too_much_at_once_is_no_failure_of_the_store() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    one.store(1, "first").await;
    let many = vec![(question(1), CONTENT); 2000];
    for _ in 0..20 {
        let found = one.tier.get(&many, now()).await;
        assert!(found[0].is_some() && found[1999].is_none());
    }
    assert!(one.got(Got::Busy) > 0 && one.tier.state().asked);
    assert_eq!(one.tier.state().given_up, 0);
}

#[tokio::test]
async fn memory_has_an_answer_of_the_store_for_a_while_only() {
    let store = StandIn::redis().await;
    let one = run(settings(Protocol::Redis), "s", store.address);
    one.asked().await;
    let before = one.put(Put::Stored);
    one.tier.put((question(1), CONTENT), entry("long", 3600));
    one.tier.put((question(2), CONTENT), entry("short", 50));
    eventually("stored answers", async || one.put(Put::Stored) == before + 2).await;
    let minute = Duration::from_secs(60);
    let get = async |number, now| one.tier.get(&[(question(number), CONTENT)], now).await.remove(0);
    // By a clock that is ahead it is older, but memory has it no longer or shorter.
    for ahead in [0, 1000] {
        let at = Instants { day: now().day + Duration::from_secs(ahead), ..now() };
        let found = get(1, at).await.unwrap();
        assert_eq!((found.expires - at.steady, found.gone), (minute, found.expires), "{ahead}");
    }
    let at = now();
    let found = get(2, at).await.unwrap();
    assert!(found.expires - at.steady <= Duration::from_secs(50));
    assert!(found.gone - at.steady > minute, "the times of its own are shorter");
}

#[tokio::test]
async fn a_wrong_password_is_said_and_costs_nothing() {
    let store = StandIn::start(true, Some("right"), "127.0.0.1:0".parse().unwrap()).await;
    let login = |password: &str| Some((String::new(), password.to_owned()));
    let with = Settings { login: login("wrong"), ..settings(Protocol::Redis) };
    let one = run(with, "s", store.address);
    eventually("the reason", async || {
        one.tier.state().trouble.is_some_and(|why| why.contains("WRONGPASS"))
    })
    .await;
    assert!(one.get(1).await.is_none());
    let two =
        run(Settings { login: login("right"), ..settings(Protocol::Redis) }, "s", store.address);
    two.asked().await;
    two.store(1, "first").await;
}

#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    let store = StandIn::redis().await;
    let one = run(Settings { queue: 20_000, ..settings(Protocol::Redis) }, "s", store.address);
    one.asked().await;
    store.set(Mode::Stalls);
    let long = "x".repeat(9_000);
    for number in 0..100 {
        one.tier.put((question(number), CONTENT), entry(&long, 60));
        assert!(one.tier.state().queued_bytes <= 20_000);
    }
    assert!(one.put(Put::Dropped) >= 90);
    one.tier.put((question(1), CONTENT), entry(&"x".repeat(10_001), 60));
    assert!(one.put(Put::Dropped) >= 91, "one that is too long is not stored");
    eventually("the end of what waits", async || one.tier.state().queued_bytes == 0).await;
    assert!(one.put(Put::Away) > 0);
}

#[tokio::test]
async fn a_stalled_store_costs_a_look_up_no_more_than_its_timeout() {
    let store = StandIn::redis().await;
    let timeout = Duration::from_millis(20);
    let one = run(Settings { timeout, ..settings(Protocol::Redis) }, "s", store.address);
    one.asked().await;
    store.set(Mode::Stalls);
    let mut waits = Vec::new();
    for number in 0..200 {
        let began = Instant::now();
        assert!(one.get(number).await.is_none());
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    assert!(waits[190] < Duration::from_millis(5), "{:?}", &waits[180..]);
    assert!(one.got(Got::Late) + one.got(Got::Away) < 20);
}
