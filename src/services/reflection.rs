//! Server reflection, so that tools such as grpcurl find everything by themselves: v1, and v1alpha
//! for older ones. Each of the two also tells of the other.

use tonic::service::Routes;
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::Builder,
};

use crate::pb::DESCRIPTORS;

/// What every listener serves besides its own services.
const ALWAYS: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Adds both versions of the reflection service. They list `services`, health and themselves.
pub(crate) fn add(routes: Routes, services: &[&str]) -> Routes {
    const WHOLE: &str = "the descriptors of our own protos are whole";
    let builder = || {
        let builder = Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // What the details of a status are, so that tools can print them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(v1alpha::FILE_DESCRIPTOR_SET);
        services
            .iter()
            .chain(&ALWAYS)
            .fold(builder, |builder, name| builder.with_service_name(*name))
    };
    routes
        .add_service(builder().build_v1().expect(WHOLE))
        .add_service(builder().build_v1alpha().expect(WHOLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_is_built_from_our_descriptors() {
        let _ = add(Routes::default(), &["quorate.kv.v1.KvService"]);
    }
}
