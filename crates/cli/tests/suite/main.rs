//! The binary `fresco`, run as people run it.
//!
//! Every test has a temporary folder of its own and the demo model. Leaves out whether pictures are right;
//! that is measured against reference values elsewhere.
#![forbid(unsafe_code)]

mod bad_input;
mod bad_model;
mod bench;
mod desk;
mod doctor;
mod farm;
mod habits;
mod limits;
mod model_command;
mod names;
mod operations;
mod render;
mod settings;
mod signals;
mod verify;
