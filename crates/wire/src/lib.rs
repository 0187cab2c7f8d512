//! Generated protobuf code and conversions from and to the plan's types.

#![forbid(unsafe_code)]
