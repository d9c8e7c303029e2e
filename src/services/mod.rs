//! Floor 5: the gRPC services, and the transport between nodes.

pub mod peer;
