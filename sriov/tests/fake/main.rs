//! attach and restore on the kernel in memory: every step made to fail, every driver's ways.
#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

mod alias;
mod attaching;
mod faults;
mod giving_back;
mod node;
