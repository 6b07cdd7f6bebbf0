//! For who builds a library of their own, around a client of theirs and this.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use matrix_sdk::{Client, ClientBuilder, config::RequestConfig, ruma::api::MatrixVersion};
use matrix_sdk_sticky::matrix_sdk_base::{
    BaseClient, DmRoomDefinition, ThreadingSupport, cross_process_lock::CrossProcessLockConfig,
    store::StoreConfig,
};
use matrix_sdk_sticky_ffi::{EntryFilter, StartError, Sticky, SyncSource, SyncState};
use tokio::runtime::Runtime;

/// Of a server that nobody asks.
fn builder() -> ClientBuilder {
    Client::builder()
        .homeserver_url("http://127.0.0.1:9")
        .server_versions([MatrixVersion::V1_14])
        .request_config(RequestConfig::new().disable_retry())
}

#[test]
fn without_its_base_client_a_client_is_said_to_be_unable_to_encrypt_and_with_it_able() {
    let runtime = Runtime::new().unwrap();
    let store = StoreConfig::new(CrossProcessLockConfig::multi_process("own"));
    let base = BaseClient::new(store, ThreadingSupport::Disabled, DmRoomDefinition::default());
    let (without, with) = runtime.block_on(async {
        let with = builder().base_client(base.clone()).build().await.unwrap();
        (builder().build().await.unwrap(), with)
    });
    let new = |client: &Client, base| Sticky::new(client, base, SyncSource::Auto, runtime.handle());

    let unable = new(&without, None).unwrap();
    assert!(!unable.can_encrypt());
    let able = new(&with, Some(base.clone())).unwrap();
    assert!(able.can_encrypt());
    for sticky in [&unable, &able] {
        assert!(matches!(sticky.state(), SyncState::Connecting));
        assert!(sticky.entries(EntryFilter::default()).unwrap().is_empty());
        let nonsense = EntryFilter { sender: Some("nonsense".to_owned()), ..Default::default() };
        sticky.entries(nonsense).unwrap_err();
    }

    // Twice is once too often, and a base client is its client's alone.
    let StartError::Start { reason } = new(&with, None).unwrap_err();
    assert!(reason.contains("in use already"), "{reason}");
    drop(unable);
    let StartError::Start { reason } = new(&without, Some(base)).unwrap_err();
    assert!(reason.contains("not the one"), "{reason}");
    // Dropped where there is no runtime, as by an application's own thread.
    drop((able, with, without));
}
