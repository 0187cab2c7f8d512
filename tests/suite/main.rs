//! Whole-system tests, one module a subject.
#![forbid(unsafe_code)]

mod architecture;
mod folders;
mod parity;
mod rows;
mod split;
mod tables;
mod tidy;
