//! Calls that load and unload models reach every endpoint of the pool.

use crate::client::{get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::grpc_client::{SERVICE, call};
use crate::harness::{Proxy, Worker, addresses};
use forebay_protocol::grpc::{Code, pb};

async fn ready(workers: &[Worker]) -> Vec<bool> {
    let mut ready = Vec::new();
    for worker in workers {
        ready.push(get(worker.address, "/v2/models/arith/ready").await.status == 200);
    }
    ready
}

#[tokio::test]
async fn a_model_is_loaded_and_unloaded_at_every_endpoint() {
    let workers = Worker::start_many(3).await;
    let proxy = Proxy::in_front_of(&addresses(&workers), 3, "").await;
    assert_eq!(ready(&workers).await, [true; 3]);
    let change = async |verb: &str| {
        let path = format!("/v2/repository/models/arith/{verb}");
        let answer = post(proxy.address, &path, "").await;
        assert_eq!(answer.status, 200, "{verb}: {}", answer.text());
    };
    change("unload").await;
    assert_eq!(ready(&workers).await, [false; 3]);
    change("load").await;
    assert_eq!(ready(&workers).await, [true; 3]);

    let model_name = "arith".to_owned();
    let unload =
        pb::RepositoryModelUnloadRequest { model_name: model_name.clone(), ..Default::default() };
    let ended = call(proxy.address, &format!("{SERVICE}/RepositoryModelUnload"), &unload).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    assert_eq!(ready(&workers).await, [false; 3]);
    let load = pb::RepositoryModelLoadRequest { model_name, ..Default::default() };
    let ended = call(proxy.address, &format!("{SERVICE}/RepositoryModelLoad"), &load).await;
    assert_eq!(ended.code(), Code::Ok, "{}", ended.words());
    assert_eq!(ready(&workers).await, [true; 3]);

    let answer = post(proxy.address, "/v2/repository/models/nosuch/load", "").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (404, "model_not_found"));
    assert!(answer.text().contains("done at 0 of 3 endpoints"), "{}", answer.text());
}

#[tokio::test]
async fn a_call_that_one_endpoint_refuses_is_no_success() {
    let good = Endpoint::start(Behaviour::Echo).await;
    let bad = Endpoint::start(Behaviour::Failing).await;
    let proxy = Proxy::in_front_of(&[good.address, bad.address], 2, "").await;
    let answer = post(proxy.address, "/v2/repository/models/m/load", "").await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (500, "load_failed"));
    assert!(answer.text().contains("done at 1 of 2 endpoints"), "{}", answer.text());
    assert!(answer.text().contains(&bad.address.to_string()), "{}", answer.text());
    // A call that only reads is answered by one of them.
    let before = good.served() + bad.served();
    post(proxy.address, "/v2/repository/index", "").await;
    assert_eq!(good.served() + bad.served(), before + 1);
}
