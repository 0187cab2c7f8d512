//! Versioned keys and transactions; knows bytes, not jobs.

#![forbid(unsafe_code)]
