//! Model folders as people have them: which are rendered, which are refused, and which are the same model.
#![forbid(unsafe_code)]

mod desk;
mod identity;
mod published;
mod unused;
