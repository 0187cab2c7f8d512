//! Whole-system tests, one module a subject.
#![forbid(unsafe_code)]

mod architecture;
mod folders;
mod gpu;
mod parity;
mod poison;
mod rows;
mod split;
mod tables;
mod tidy;
