//! Request ids: what makes it safe to send a change again; and spans of time as requests carry
//! them.

use crate::{
    client::Error,
    host,
    pb::{discovery, event, kv, lock, session},
    types::Duration,
};

/// A request that carries an id.
pub(crate) trait Identified {
    fn request_id_mut(&mut self) -> &mut String;
}

/// Gives the request a fresh id where it has none. Every attempt then carries the same.
pub(crate) fn identified<R: Identified>(mut request: R) -> R {
    let id = request.request_id_mut();
    if id.is_empty() {
        *id = host::random().to_string();
    }
    request
}

/// A span as requests carry it.
pub(super) fn to_proto(span: Duration, what: &str) -> Result<prost_types::Duration, Error> {
    prost_types::Duration::try_from(span)
        .map_err(|_| Error::invalid(format!("{what}: {span:?} is too long")))
}

macro_rules! identified {
    ($($request:path),+ $(,)?) => {
        $(impl Identified for $request {
            fn request_id_mut(&mut self) -> &mut String {
                &mut self.request_id
            }
        })+

        /// What can be identified.
        #[cfg(test)]
        const IDENTIFIED: &[&str] = &[$(stringify!($request)),+];
    };
}

identified!(
    kv::v1::PutRequest,
    kv::v1::DeleteRangeRequest,
    kv::v1::TxnRequest,
    kv::v1::CompactRequest,
    lock::v1::AcquireRequest,
    lock::v1::ReleaseRequest,
    discovery::v1::RegisterRequest,
    discovery::v1::DeregisterRequest,
    discovery::v1::SetInstanceStateRequest,
    event::v1::AppendRequest,
    event::v1::SetStreamLimitsRequest,
    event::v1::TrimStreamRequest,
    event::v1::DeleteStreamRequest,
    session::v1::OpenSessionRequest,
    session::v1::CloseSessionRequest,
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::{DescriptorPool, ServiceDescriptor};
    use uuid::Uuid;

    use super::*;
    use crate::pb::DESCRIPTORS;

    #[test]
    fn an_empty_id_is_filled_and_a_given_one_kept() {
        let fresh = identified(kv::v1::PutRequest::default());
        assert!(Uuid::parse_str(&fresh.request_id).is_ok());
        let given =
            identified(kv::v1::PutRequest { request_id: "7:1:0".to_owned(), ..Default::default() });
        assert_eq!(given.request_id, "7:1:0");
    }

    #[test]
    fn every_call_that_can_carry_an_id_is_given_one() {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("it was built so");
        let inputs = |service: ServiceDescriptor| {
            service.methods().map(|method| method.input()).collect::<Vec<_>>()
        };
        let can: BTreeSet<_> = pool
            .services()
            .flat_map(inputs)
            .filter(|input| input.get_field_by_name("request_id").is_some())
            .map(|input| input.full_name().trim_start_matches("quorate.").replace('.', "::"))
            .collect();
        let are = IDENTIFIED.iter().map(|name| name.replace(' ', "")).collect();
        assert_eq!(can, are);
    }
}
