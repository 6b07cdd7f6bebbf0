//! The guide: the pages of `docs/`, with links that work here.
//!
//! | page | what it answers |
//! |---|---|
//! | [`server`] | Which settings does the homeserver need? What does each bring? |
//! | [`receiving`] | How do I see what is there, and what changes? |
//! | [`what_counts`] | Which event is the value of a key? Why did an entry leave? |
//! | [`own_sync`] | How do I feed the maps by myself, with or without matrix-sdk? |
//! | [`sending`] | How do I send, remove and redact? What are delayed events? |
//! | [`heartbeats`] | How do I keep a member there for as long as my program runs? |
//! | [`calls`] | Who is in a call? How do I join? |
//! | [`guarantees`] | What exactly is promised, and what is not? |
//! | [`trust`] | Whom does the crate believe, and about what? |
//! | [`logs`] | What is logged, and what never is? |
//! | [`measurements`] | How fast, how large, how many requests? |
//!
//! This module is there for the documentation alone.
//!
//! Why do links stand before each page? In Markdown the first definition of a link counts: these take the
//! place of the ones at the end of the page, which lead from file to file.

#[doc = "[many heartbeats]: crate::guide::heartbeats#many-heartbeats"]
#[doc = "[own]: crate::guide::own_sync"]
#[doc = include_str!("../docs/server.md")]
pub mod server {}

#[doc = "[README]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/README.md"]
#[doc = "[Media keys]: crate::guide::calls#media-keys"]
#[doc = "[Your own sync loop]: crate::guide::own_sync"]
#[doc = "[what counts]: crate::guide::what_counts"]
#[doc = include_str!("../docs/receiving.md")]
pub mod receiving {}

#[doc = "[calls]: crate::guide::calls"]
#[doc = "[trust]: crate::guide::trust#calls"]
#[doc = include_str!("../docs/what-counts.md")]
pub mod what_counts {}

#[doc = include_str!("../docs/own-sync.md")]
pub mod own_sync {}

#[doc = "[heartbeat]: crate::guide::heartbeats"]
#[doc = include_str!("../docs/sending.md")]
pub mod sending {}

#[doc = "[Guarantees]: crate::guide::guarantees#heartbeats"]
#[doc = "[servers]: crate::guide::server"]
#[doc = include_str!("../docs/heartbeats.md")]
pub mod heartbeats {}

#[doc = "[guarantees]: crate::guide::guarantees#calls"]
#[doc = "[Trust]: crate::guide::trust#calls"]
#[doc = "[the demo]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/docs/demo.md"]
#[doc = include_str!("../docs/calls.md")]
pub mod calls {}

#[doc = "[Measurements]: crate::guide::measurements"]
#[doc = "[many heartbeats]: crate::guide::heartbeats#many-heartbeats"]
#[doc = "[Bindings]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/docs/bindings.md"]
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

#[doc = "[SECURITY.md]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/SECURITY.md"]
#[doc = "[logs]: crate::guide::logs"]
#[doc = include_str!("../docs/trust.md")]
pub mod trust {}

#[doc = include_str!("../docs/logs.md")]
pub mod logs {}

#[doc = "[speed table]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/benches/README.md"]
#[doc = "[its page]: https://github.com/matrix-sdk-sticky/matrix-sdk-sticky/blob/main/benches/js/README.md"]
#[doc = include_str!("../docs/measurements.md")]
pub mod measurements {}
