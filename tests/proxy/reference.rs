//! The reference file names every key that there is.

use forebay::config::{Config, Limits, RouteCache};
use std::path::Path;

#[test]
fn the_reference_file_is_complete() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let source = std::fs::read_to_string(folder.join("reference.toml")).unwrap();
    let missing = Config::keys_missing_from(&source);
    assert!(missing.is_empty(), "not in conf/reference.toml: {missing:?}");
}

#[test]
fn the_reference_is_what_the_keys_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, expected) in [
        ("conf/reference.toml", Config::reference_file()),
        ("docs/reference/configuration.md", Config::reference_page()),
    ] {
        let found = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(found == expected, "the keys of the configuration have changed: run .ci/generate");
    }
}

#[test]
fn the_defaults_that_the_reference_file_states_are_the_defaults() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let source = std::fs::read_to_string(folder.join("reference.toml")).unwrap();
    let stated = Config::parse(&source, &folder).unwrap();
    let bare = "[[listener]]\naddress = \"127.0.0.1:8080\"\n\
                [[listener]]\naddress = \"127.0.0.1:8444\"\n\
                [listener.tls]\ncertificate = \"tls/example.pem\"\nkey = \"tls/example.key\"\n\
                additional_certificates = [{ certificate = \"tls/example.pem\", key = \"tls/example.key\" }]\n\
                client_ca = \"tls/example.pem\"\n\
                [[listener]]\naddress = \"127.0.0.1:8443\"\n\
                protocol = \"tcp\"\npool = \"plain\"\n\
                [pool.plain]\nendpoints = [\"127.0.0.1:8101\"]\n\
                [pool.models]\nendpoints = [\"127.0.0.1:8001\", \"127.0.0.1:8002\"]\nhedge = {}\n\
                [cache]\nkey_file = \"tls/example.secret\"\npersist = \"/var/lib/forebay/cache\"\n\
                [cache.shared]\naddress = \"127.0.0.1:6379\"\nuser = \"forebay\"\n\
                password_file = \"tls/example.password\"\n\
                tls_ca = \"tls/example.pem\"\ntls_name = \"cache.internal\"\n\
                [[route]]\nname = \"models\"\npool = \"models\"\n[route.cache]\n";
    let bare = Config::parse(bare, &folder).unwrap();
    let models = |config: &Config| {
        let mut pool = (**config.pools.iter().find(|p| p.name == "models").unwrap()).clone();
        // Absent by default.
        pool.retry.attempt_timeout = None;
        pool.tcp_user_timeout = None;
        pool.http2_ping_interval = None;
        pool.poll = None;
        pool.ejection.latency_factor = None;
        pool.slots = 0;
        pool.sticky = None;
        pool
    };
    assert_eq!(models(&stated), models(&bare));
    let limits = Limits { client_header: None, ..stated.limits };
    assert_eq!(limits, bare.limits);
    assert_eq!(stated.listeners[0], bare.listeners[0]);
    assert_eq!(stated.listeners[1], bare.listeners[1]);
    assert_eq!(stated.listeners[2].protocol, bare.listeners[2].protocol);
    let mut server = stated.server.clone();
    (server.admin, server.threads) = (None, bare.server.threads);
    assert_eq!(server, bare.server);
    assert_eq!(stated.routes[0].deadline, bare.routes[0].deadline);
    assert_eq!(stated.routes[0].priority, bare.routes[0].priority);
    assert_eq!(stated.routes[0].expose_endpoint, bare.routes[0].expose_endpoint);
    assert_eq!(stated.cache, bare.cache);
    let cache = stated.routes[0].cache.clone().map(|cache| RouteCache { vary: vec![], ..cache });
    assert_eq!(cache, bare.routes[0].cache);
}
