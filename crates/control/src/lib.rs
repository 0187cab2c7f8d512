//! The coordinator's state machine: jobs, members, leases, epochs. No I/O, no clock, no randomness.

#![forbid(unsafe_code)]
