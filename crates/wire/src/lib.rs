//! Generated protobuf code and conversions from and to the plan's types.
//!
//! The messages are documented in `proto/fresco/v1`; what is generated from them is not documented again.
#![forbid(unsafe_code)]

pub mod convert;

/// Messages, clients and servers of the package `fresco.v1`.
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("fresco.v1");
}

/// The package's encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("fresco.v1");
