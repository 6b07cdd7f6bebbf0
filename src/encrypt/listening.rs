//! Listening to what the SDK's crypto machine says, although the SDK makes another one.
//!
//! In: how to open a stream of news of the machine. Out: the news, and when some may have been missed.
//!
//! The SDK makes its machine anew after another process, such as a notification extension, has written
//! the crypto store. The streams of devices and identities do not end then: each goes on to listen to
//! the store of the old machine, which says nothing any more. So which machine there is is compared
//! after each response of the main loop, as news of devices come with one. Only a client whose base
//! client is known can tell.

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use matrix_sdk::Client;
use tokio::sync::broadcast::error::RecvError;

use super::Encryptor;

/// What a machine says.
#[derive(Debug)]
pub(crate) enum Told<T> {
    News(T),
    /// Another stream was opened. Nobody knows what happened between the two.
    Missed,
}

/// Listens, and opens another stream once the SDK has made its machine anew.
pub(crate) fn listening<T, F>(
    client: &Client,
    open: impl Fn() -> F + Send + 'static,
) -> BoxStream<'static, Told<T>>
where
    T: Send + 'static,
    F: Future<Output = Option<BoxStream<'static, T>>> + Send + 'static,
{
    let client = client.clone();
    reopening(open, move || until_remade(client.clone()))
}

/// Opens another stream once one has ended, or `ended` says that it will say no more.
fn reopening<T, F, E>(
    open: impl Fn() -> F + Send + 'static,
    ended: impl Fn() -> E + Send + 'static,
) -> BoxStream<'static, Told<T>>
where
    T: Send + 'static,
    F: Future<Output = Option<BoxStream<'static, T>>> + Send + 'static,
    E: Future<Output = ()> + Send + 'static,
{
    let streams = stream::unfold((open, ended, false), |(open, ended, is_another)| {
        // In this order: a machine that is made anew in between is noticed.
        let (opening, end) = (open(), ended());
        async move {
            let news = opening.await?.map(Told::News).take_until(Box::pin(end));
            let missed = stream::iter(is_another.then_some(Told::Missed));
            Some((missed.chain(news), (open, ended, true)))
        }
    });
    streams.flatten().boxed()
}

/// Resolves once the SDK has made its machine anew.
async fn until_remade(client: Client) {
    let mut updates = client.subscribe_to_all_room_updates();
    let first = machine(&client).await;
    while !matches!(updates.recv().await, Err(RecvError::Closed)) {
        if machine(&client).await != first {
            return;
        }
    }
    std::future::pending().await
}

async fn machine(client: &Client) -> Option<usize> {
    Encryptor::of(client)?.machine_number().await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
    };

    use futures_util::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn a_stream_that_ends_is_opened_again() {
        let opened = Arc::<AtomicUsize>::default();
        let count = opened.clone();
        let open = move || {
            let number = count.fetch_add(1, Relaxed);
            ready(Some(stream::once(ready(number)).boxed()))
        };
        let mut told = reopening(open, pending);
        let mut next = || told.next().now_or_never().unwrap().unwrap();
        assert!(matches!(next(), Told::News(0)));
        assert!(matches!(next(), Told::Missed));
        assert!(matches!(next(), Told::News(1)));
        assert_eq!(opened.load(Relaxed), 2);
    }

    /// The streams of devices and identities are such.
    #[test]
    fn a_stream_that_falls_silent_is_opened_again() {
        let remade = Arc::new(Notify::new());
        let open = || ready(Some(stream::iter([1]).chain(stream::pending()).boxed()));
        let ended = {
            let remade = remade.clone();
            move || {
                let remade = remade.clone();
                async move { remade.notified().await }
            }
        };
        let mut told = reopening(open, ended);
        assert!(matches!(told.next().now_or_never(), Some(Some(Told::News(1)))));
        assert!(told.next().now_or_never().is_none());
        remade.notify_one();
        assert!(matches!(told.next().now_or_never(), Some(Some(Told::Missed))));
        assert!(matches!(told.next().now_or_never(), Some(Some(Told::News(1)))));
    }
}
