//! Generated protobuf code and conversions from and to the plan's types.
//!
//! The messages are documented in `proto/fresco/v1`; what is generated from them is not documented again.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod convert;
pub mod model_facts;

/// Messages, clients and servers of the package `fresco.v1`.
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("fresco.v1");
}

/// Messages, clients and servers of KEDA's package `externalscaler`.
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// The encoded `FileDescriptorSet` of both packages, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
