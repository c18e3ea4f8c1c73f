//! Kept answers outlive the process, or the cache starts empty with a word.

use super::*;
use rustix::process::Signal;
use std::path::Path;

async fn start(endpoint: SocketAddr, folder: &Path) -> Proxy {
    let text = format!(
        "{}[cache]\npersist = {folder:?}\nencrypt = true\n",
        config(endpoint, "ttl = \"10m\"")
    );
    let proxy = Proxy::start(&text).await;
    proxy.wait_ready(1).await;
    proxy
}

async fn stop(mut proxy: Proxy) {
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success(), "{}", proxy.messages());
}

/// Waits until the file was read, and returns the number of answers in it.
async fn taken(proxy: &Proxy) -> u64 {
    eventually("the end of reading", async || {
        let outcomes = ["read", "none", "refused"].map(|it| format!("outcome=\"{it}\""));
        for outcome in &outcomes {
            if proxy.metric("forebay_cache_snapshots_total", &[outcome]).await > 0.5 {
                return Some(());
            }
        }
        None
    })
    .await;
    get(proxy.admin, "/cache").await.json()["file"]["taken"].as_u64().unwrap()
}

#[tokio::test]
async fn a_restart_keeps_the_answers_with_their_ages() {
    let (worker, folder) = (Worker::start(anywhere()).await, Folder::new());
    let folder = folder.0.join("kept");
    let proxy = start(worker.address, &folder).await;
    assert_eq!(taken(&proxy).await, 0);
    let first = ask(&proxy, &request(2.0), false).await;
    assert_eq!(status(&first), "stored");
    ask(&proxy, &request(3.0), false).await;
    // Ages are whole seconds.
    eventually("an age", async || {
        let again = ask(&proxy, &request(2.0), false).await;
        (again.header("age") != "0").then_some(())
    })
    .await;
    stop(proxy).await;
    // As if a process had been killed while it wrote.
    for name in ["answers.new-17", "secret.new-17"] {
        std::fs::write(folder.join(name), "a part").unwrap();
    }
    for name in ["answers", "secret"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert!(!bytes.windows(5).any(|part| part == b"arith"), "it is encrypted");
    }
    let proxy = start(worker.address, &folder).await;
    assert_eq!(taken(&proxy).await, 2);
    let kept = ask(&proxy, &request(2.0), true).await;
    assert!(is_hit(&kept), "{:?}", kept.headers);
    assert!(kept.header("age").parse::<u64>().unwrap() >= 1);
    assert_eq!(read(&kept).outputs, read(&first).outputs);
    assert!(proxy.messages().contains("the cache starts with"));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "nothing is left of that");

    // A purge takes the file as well, whatever it means.
    post(proxy.admin, "/cache/purge?model=arith", "").await;
    assert!(!folder.join("answers").exists());
    stop(proxy).await;
    let proxy = start(worker.address, &folder).await;
    assert_eq!(taken(&proxy).await, 0);
    assert_eq!(status(&ask(&proxy, &request(2.0), false).await), "stored");
}

#[tokio::test]
async fn with_a_file_that_is_of_no_use_the_cache_starts_empty_with_a_word() {
    let (worker, folder) = (Worker::start(anywhere()).await, Folder::new());
    let proxy = start(worker.address, &folder.0).await;
    taken(&proxy).await;
    ask(&proxy, &request(2.0), false).await;
    stop(proxy).await;
    let file = folder.0.join("answers");
    let whole = std::fs::read(&file).unwrap();
    let huge = [0; 64];
    for (bytes, word) in [
        (&whole[..whole.len() - 1], "it is not whole, or sealed with another key"),
        (&huge[..], "it has another form than this version writes"),
        (&[], "it is not whole"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let proxy = start(worker.address, &folder.0).await;
        assert_eq!(taken(&proxy).await, 0);
        let lines = proxy.messages();
        let said = lines.lines().filter(|line| line.contains("the cache starts empty"));
        assert!(
            said.clone().count() == 1 && said.clone().all(|line| line.contains(word)),
            "{lines}"
        );
        assert_eq!(status(&ask(&proxy, &request(2.0), false).await), "stored");
        stop(proxy).await;
    }
    // The last one has written a good file.
    let proxy = start(worker.address, &folder.0).await;
    assert_eq!(taken(&proxy).await, 1);
    stop(proxy).await;
    // Another secret, and a folder that is none.
    std::fs::write(folder.0.join("secret"), [b'x'; 32]).unwrap();
    let proxy = start(worker.address, &folder.0).await;
    assert_eq!(taken(&proxy).await, 0);
    drop(proxy);
    let proxy = start(worker.address, &file).await;
    assert!(proxy.messages().contains("the cache is not kept over restarts"));
    assert_eq!(status(&ask(&proxy, &request(2.0), false).await), "stored");
    stop(proxy).await;
}
