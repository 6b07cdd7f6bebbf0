//! matrix-sdk by itself, as a library that does what our client does with it: log in, restore, join, sync, log
//! out. It is there for its size, to compare ours with:
//!
//! ```console
//! $ cargo build --profile ffi -p matrix-sdk-sticky-ffi --lib --example matrix_sdk_alone
//! $ strip --strip-unneeded target/ffi/libmatrix_sdk_sticky_ffi.so target/ffi/examples/libmatrix_sdk_alone.so
//! ```
#![recursion_limit = "256"]

use matrix_sdk::{
    Client, authentication::matrix::MatrixSession, config::SyncSettings, ruma::OwnedRoomOrAliasId,
};

/// Does it all, with what only the caller knows, so that nothing of it can be left out.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "a library's function has to have a name")]
pub extern "C" fn matrix_sdk_alone() -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.ok().and_then(|runtime| runtime.block_on(all())).unwrap_or(1)
}

async fn all() -> Option<i32> {
    let words: Vec<String> = std::env::args().collect();
    let [homeserver, user, password, session, room, store] = words.get(1..7)? else { return None };
    let client = Client::builder().server_name_or_homeserver_url(homeserver);
    let client = client.sqlite_store(store, Some(password)).build().await.ok()?;
    match serde_json::from_str::<MatrixSession>(session) {
        Ok(session) => client.restore_session(session).await.ok()?,
        Err(_) => drop(client.matrix_auth().login_username(user, password).send().await.ok()?),
    }
    let room = OwnedRoomOrAliasId::try_from(room.clone()).ok()?;
    client.join_room_by_id_or_alias(&room, &[]).await.ok()?;
    client.sync(SyncSettings::new()).await.ok()?;
    client.matrix_auth().logout().await.ok()?;
    Some(0)
}
