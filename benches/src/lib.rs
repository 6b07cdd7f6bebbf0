//! What the benchmarks share: the events, and rooms that somebody looks at.

pub mod cases;
pub mod corpus;
pub mod memory;
pub mod watched;

pub use self::watched::{SetClock, Watched};
