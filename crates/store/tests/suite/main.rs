//! Every implementation against the one suite, and what is particular to the store in a file.

#![forbid(unsafe_code)]

mod conformance;
mod embedded;
