//! Messages of both interfaces, generated from `gateway/proto` by `make gateway-protos`.
//!
//! Requests and replies that carry tensors are read and written without these types, see `grpc::wire`.

#![allow(dead_code, clippy::all, clippy::pedantic)]

pub mod inference {
    include!("inference.rs");
}

pub mod tensorflow {
    include!("tensorflow.rs");

    pub mod error {
        include!("tensorflow.error.rs");
    }

    pub mod serving {
        include!("tensorflow.serving.rs");
    }
}

pub mod health {
    include!("grpc.health.v1.rs");
}

pub mod reflection {
    include!("grpc.reflection.v1.rs");
}

/// The serialized `FileDescriptorSet` of all of them, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");
