//! Feed: one roster for each room of a client, which all of its streams share.
//!
//! In: streams that are polled, and requests to ask the server anew. Out: for each stream what is shown in another
//! way than it was told last. Never: a task, or a decision; the watch and its roster make them.
//!
//! Why no task? An application that looks at nothing shall cost nothing. Whichever stream is polled drives the
//! watch, for all of them, and every stream is woken when the watch has something to do. So a stream that nobody
//! polls holds up no other one.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use matrix_sdk::Room;
use tokio::sync::{OnceCell, mpsc};

use super::{
    change::RtcChange,
    roster::Pending,
    snapshot::RtcSnapshot,
    watch::{News, Watch},
};
use crate::{context::RoomContext, driver::Timer};

/// The feed of a room, once its first stream has started it.
#[derive(Default)]
pub(super) struct Feed {
    started: OnceCell<Started>,
}

impl Feed {
    /// Adds a stream. Returns the sessions now, after the server has been asked anew, and what changes from here on.
    pub(super) async fn subscribe(context: &RoomContext, room: &Room) -> (RtcSnapshot, Updates) {
        let feed: Arc<Self> = context.shared();
        let mut is_first = false;
        let start = async {
            is_first = true;
            Started::new(context, room).await
        };
        let started = feed.started.get_or_init(|| start).await;
        let id = started.state().attach();
        let mut updates = Updates { feed: feed.clone(), id };
        if !is_first {
            updates.refresh(started).await;
        }
        (updates.snapshot(started), updates)
    }
}

struct Started {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    refreshes: mpsc::UnboundedSender<u64>,
    timer: Arc<dyn Timer>,
}

struct State {
    news: Pin<Box<dyn Stream<Item = News> + Send>>,
    latest: RtcSnapshot,
    /// The last refresh that was asked for, and the last one that is done.
    wanted: u64,
    answered: u64,
    /// Whether the server has answered what it was asked last.
    has_answered: bool,
    /// What each stream has not been told yet.
    streams: BTreeMap<u64, Pending>,
    next_id: u64,
}

impl Started {
    async fn new(context: &RoomContext, room: &Room) -> Self {
        let (refreshes, refreshed) = mpsc::unbounded_channel();
        let mut watch = Watch::start(context, room, refreshed).await;
        let latest = watch.snapshot();
        let news = stream::unfold(watch, async |mut watch| {
            let news = watch.next().await;
            Some((news, watch))
        });
        let state = State {
            news: news.boxed(),
            latest,
            wanted: 0,
            answered: 0,
            has_answered: true,
            streams: BTreeMap::new(),
            next_id: 0,
        };
        let timer = context.timer().clone();
        Self { state: Mutex::new(state), wakers: Arc::default(), refreshes, timer }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the watch do what it can, for all streams. The stream with this id is woken when there is more.
    fn drive(&self, id: u64, cx: &mut Context<'_>) -> MutexGuard<'_, State> {
        let mut state = self.state();
        self.wakers.add(id, cx.waker());
        let waker = Waker::from(self.wakers.clone());
        let mut is_news = false;
        while let Poll::Ready(Some(news)) =
            state.news.poll_next_unpin(&mut Context::from_waker(&waker))
        {
            state.handle_news(news);
            is_news = true;
        }
        if is_news {
            // The others take what is theirs. This stream does that now.
            self.wakers.wake_others(id);
        }
        state
    }
}

impl State {
    fn attach(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.streams.insert(id, Pending::default());
        id
    }

    fn handle_news(&mut self, News { transitions, snapshot, answered, has_answered }: News) {
        self.latest = snapshot;
        (self.answered, self.has_answered) = (answered, has_answered);
        for transition in transitions {
            for pending in self.streams.values_mut() {
                pending.add(transition.clone());
            }
        }
    }
}

/// The changes for one stream, each with the sessions from then on.
pub(super) struct Updates {
    feed: Arc<Feed>,
    id: u64,
}

impl Updates {
    /// Has the server asked anew, and waits for its answer, or until it has not come in time.
    async fn refresh(&mut self, started: &Started) {
        let wanted = {
            let mut state = started.state();
            state.wanted += 1;
            state.wanted
        };
        // The watch is there for as long as the feed is.
        let _ = started.refreshes.send(wanted);
        poll_fn(|cx| match started.drive(self.id, cx).answered >= wanted {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// The sessions now. Their changes so far are not told any more. If the server has not answered, the state does
    /// not count as known, even if it was before: the caller wants to know what is so now.
    fn snapshot(&mut self, started: &Started) -> RtcSnapshot {
        let mut state = started.state();
        state.streams.insert(self.id, Pending::default());
        RtcSnapshot {
            is_state_known: state.latest.is_state_known && state.has_answered,
            taken_at: started.timer.now(),
            ..state.latest.clone()
        }
    }
}

impl Stream for Updates {
    type Item = (Vec<RtcChange>, RtcSnapshot);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(started) = self.feed.started.get() else { return Poll::Ready(None) };
        let mut state = started.drive(self.id, cx);
        let changes = state.streams.get_mut(&self.id).map(Pending::take_changes);
        match changes.unwrap_or_default() {
            changes if changes.is_empty() => Poll::Pending,
            changes => {
                let snapshot =
                    RtcSnapshot { taken_at: started.timer.now(), ..state.latest.clone() };
                Poll::Ready(Some((changes, snapshot)))
            }
        }
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        if let Some(started) = self.feed.started.get() {
            started.state().streams.remove(&self.id);
            started.wakers.remove(self.id);
        }
    }
}

/// The wakers of all streams. The watch wakes every one, because any of them may have been dropped, or may not be
/// polled any more.
#[derive(Default)]
struct Wakers {
    wakers: Mutex<HashMap<u64, Waker>>,
}

impl Wakers {
    fn add(&self, id: u64, waker: &Waker) {
        self.all().insert(id, waker.clone());
    }

    fn remove(&self, id: u64) {
        self.all().remove(&id);
    }

    fn wake_others(&self, id: u64) {
        let others: Vec<_> = self.all().extract_if(|other, _| *other != id).collect();
        others.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        let all = std::mem::take(&mut *self.all());
        all.into_values().for_each(Waker::wake);
    }
}
