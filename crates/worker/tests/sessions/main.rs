//! A real worker at a coordinator that decides nothing: each test does.
#![forbid(unsafe_code)]

mod bulk;
mod checkpoints;
mod fake;
mod refusals;
