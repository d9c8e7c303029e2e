//! Instances of services: registered, found by name, and gone with the session they live with.
//!
//! An instance with a TTL lives with a session of its own, one that names a session lives with
//! that, and one with neither lives until it is deregistered. An instance id has one incarnation:
//! registering it again replaces what was there and closes the session that the old one had for
//! itself. Renewals are renewals of the session and stay out of the log.
//!
//! A row says only that an instance is draining: one that says nothing, as those written before
//! there were states, is serving.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{
        Space, View, keyspace,
        outcome::{Decision, invalid, refusal},
        session::{self, End, Kind},
        span,
        store::StoreError,
        tx::{self, Tx},
        validate::too_large,
    },
    pb::{
        command::v1::{Reason, Refusal},
        discovery::v1::{
            DeregisterRequest, DeregisterResponse, Instance, InstanceState, ListServicesResponse,
            RegisterRequest, RegisterResponse, ResolveRequest, ResolveResponse, Service,
            SetInstanceStateRequest, SetInstanceStateResponse,
        },
    },
    types::{Duration, KeyRange, SessionId},
};

/// The service that the cluster's own nodes are instances of.
pub(crate) const NODE_SERVICE: &str = "quorate";

/// The longest name of a service, instance or zone, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 512;
/// The largest weight.
const WEIGHT_MAX: u32 = 65_535;
/// The most entries of an instance's or event's metadata.
const METADATA_ENTRIES_MAX: usize = 64;
/// The most that such metadata may hold, keys and values together, in bytes.
const METADATA_BYTES_MAX: usize = 16 * 1024;

pub(crate) fn validate_register(request: &RegisterRequest) -> Result<(), Refusal> {
    validate_text("service", &request.service, 1, NAME_BYTES_MAX)?;
    validate_text("instance_id", &request.instance_id, 0, NAME_BYTES_MAX)?;
    validate_text("zone", &request.zone, 0, NAME_BYTES_MAX)?;
    validate_address(&request.address)?;
    validate_metadata(&request.metadata)?;
    if request.weight > WEIGHT_MAX {
        let sentence = format!("`weight` is {}; it must be at most {WEIGHT_MAX}", request.weight);
        return Err(invalid(sentence));
    }
    if request.state != 0 {
        validate_state(request.state)?;
    }
    let ttl = own_ttl(request)?;
    if ttl.is_some() && request.session_id != 0 {
        let sentence = "`ttl` must be absent when `session_id` is given: the session's TTL counts";
        return Err(invalid(sentence));
    }
    Ok(())
}

pub(crate) fn validate_deregister(request: &DeregisterRequest) -> Result<(), Refusal> {
    validate_text("service", &request.service, 1, NAME_BYTES_MAX)?;
    validate_text("instance_id", &request.instance_id, 1, NAME_BYTES_MAX)
}

pub(crate) fn validate_set_state(request: &SetInstanceStateRequest) -> Result<(), Refusal> {
    validate_text("service", &request.service, 1, NAME_BYTES_MAX)?;
    validate_text("instance_id", &request.instance_id, 1, NAME_BYTES_MAX)?;
    validate_state(request.state)
}

fn validate_state(state: i32) -> Result<(), Refusal> {
    match InstanceState::try_from(state) {
        Ok(InstanceState::Serving | InstanceState::Draining) => Ok(()),
        _ => Err(invalid(format!(
            "`state` is {state}; it must be 1 (INSTANCE_STATE_SERVING) or 2 (INSTANCE_STATE_DRAINING)"
        ))),
    }
}

/// Checks a name's length, and that it holds no zero byte: rows use that to end a name.
pub(crate) fn validate_text(
    field: &str,
    text: &str,
    bytes_min: usize,
    bytes_max: usize,
) -> Result<(), Refusal> {
    let sentence = if text.len() < bytes_min {
        format!("`{field}` is empty; it must have {bytes_min} to {bytes_max} bytes")
    } else if text.len() > bytes_max {
        format!("`{field}` has {} bytes; at most {bytes_max} are allowed", text.len())
    } else if text.contains('\0') {
        format!("`{field}` holds a zero byte, which names must not")
    } else {
        return Ok(());
    };
    Err(invalid(sentence))
}

/// Checks the metadata of an instance or event.
pub(crate) fn validate_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if metadata.len() > METADATA_ENTRIES_MAX {
        let sentence = format!(
            "`metadata` has {} entries; at most {METADATA_ENTRIES_MAX} are allowed",
            metadata.len()
        );
        return Err(refusal(Reason::TooLarge, sentence));
    }
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_BYTES_MAX {
        return Err(too_large("`metadata`", bytes, METADATA_BYTES_MAX));
    }
    Ok(())
}

fn validate_address(address: &str) -> Result<(), Refusal> {
    let good = address.len() <= ADDRESS_BYTES_MAX
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
            let host_good = !host.is_empty()
                && !host.contains(|c: char| c.is_whitespace() || c.is_control())
                && (bracketed || !host.contains(':'));
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            host_good && digits && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    if good {
        return Ok(());
    }
    let sentence = format!(
        "`address` is \"{}\"; it must be `host:port`, as 10.0.0.1:80 or [::1]:80",
        address.escape_debug()
    );
    Err(invalid(sentence))
}

/// The TTL of the instance's own session; none where it is absent or 0.
fn own_ttl(request: &RegisterRequest) -> Result<Option<Duration>, Refusal> {
    match &request.ttl {
        None | Some(prost_types::Duration { seconds: 0, nanos: 0 }) => Ok(None),
        ttl => span::read_ttl(ttl.as_ref()).map(Some),
    }
}

/// The key of an instance in its space.
pub(crate) fn row_key(service: &str, id: &str) -> Vec<u8> {
    [service.as_bytes(), b"\0", id.as_bytes()].concat()
}

/// Registers an instance, or replaces the one that has its id.
pub(crate) fn register(tx: &mut Tx<'_>, request: &RegisterRequest) -> Decision<RegisterResponse> {
    let own_ttl = match validate_register(request).and_then(|()| own_ttl(request)) {
        Ok(ttl) => ttl,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let given = SessionId::new(request.session_id);
    let (session, ttl) = if let Some(ttl) = own_ttl {
        (session::start(tx, Kind::Instance, ttl, &request.service), Some(ttl))
    } else if given.is_zero() {
        (given, None)
    } else {
        match session::load_bindable(tx, given)? {
            Some(row) => (given, Some(row.ttl())),
            None => return Ok(Err(session::not_found(given))),
        }
    };
    let id = match request.instance_id.as_str() {
        "" => choose_id(tx, &request.service)?,
        id => id.to_owned(),
    };
    let key = row_key(&request.service, &id);
    let before = tx.row(Space::Instances, &key)?;
    let ttl = ttl.map(span::to_wire);
    let instance = Instance {
        service: request.service.clone(),
        instance_id: id,
        address: request.address.clone(),
        zone: request.zone.clone(),
        weight: request.weight.max(1),
        metadata: request.metadata.clone(),
        ttl,
        session_id: session.value(),
        revision: tx.revision_for(Space::Instances, &key).value(),
        register_time: Some(tx.now.to_timestamp()),
        state: kept_state(request.state()).into(),
    };
    // The row moves to its new session before the old one ends, or it would end with that.
    let value = instance.encode_to_vec().into();
    let revision = tx.write_row(Space::Instances, &key, value, session)?;
    let session_before = SessionId::new(before.map_or(0, |row| row.session_id));
    if session_before != session {
        end_own(tx, session_before)?;
    }
    Ok(Ok(RegisterResponse {
        instance_id: instance.instance_id,
        session_id: session.value(),
        ttl,
        revision: revision.value(),
    }))
}

/// An id that no instance of the service has: from the entry's number, so that every node chooses
/// the same.
fn choose_id(tx: &Tx<'_>, service: &str) -> Result<String, StoreError> {
    let index = tx.entry_number();
    let mut id = format!("i-{index}");
    let mut turn = 1_u64;
    while tx.row(Space::Instances, &row_key(service, &id))?.is_some() {
        turn += 1;
        id = format!("i-{index}-{turn}");
    }
    Ok(id)
}

/// The state as a row has it: serving is said by saying nothing.
const fn kept_state(state: InstanceState) -> InstanceState {
    match state {
        InstanceState::Draining => InstanceState::Draining,
        InstanceState::Serving | InstanceState::Unspecified => InstanceState::Unspecified,
    }
}

/// The instance that a row holds, with its state said in full.
///
/// # Errors
/// Where the row is none of an instance.
pub(crate) fn decode_instance(row: Bytes) -> Result<Instance, StoreError> {
    let mut instance: Instance = tx::decode(row)?;
    if instance.state() != InstanceState::Draining {
        instance.set_state(InstanceState::Serving);
    }
    Ok(instance)
}

/// Says whether an instance takes new calls. All else of it stays, the session that it lives with
/// too; the state that it has already changes nothing.
pub(crate) fn set_state(
    tx: &mut Tx<'_>,
    request: &SetInstanceStateRequest,
) -> Decision<SetInstanceStateResponse> {
    let key = row_key(&request.service, &request.instance_id);
    let Some(row) = tx.row(Space::Instances, &key)? else {
        return Ok(Err(not_found(&request.service, &request.instance_id)));
    };
    let session = SessionId::new(row.session_id);
    let mut instance: Instance = tx::decode(row.value)?;
    let state = kept_state(request.state());
    if kept_state(instance.state()) == state {
        return Ok(Ok(SetInstanceStateResponse { revision: instance.revision }));
    }
    instance.set_state(state);
    instance.revision = tx.revision_for(Space::Instances, &key).value();
    let value = instance.encode_to_vec().into();
    let revision = tx.write_row(Space::Instances, &key, value, session)?;
    Ok(Ok(SetInstanceStateResponse { revision: revision.value() }))
}

fn not_found(service: &str, id: &str) -> Refusal {
    let sentence = format!("service \"{service}\" has no instance \"{id}\"");
    let refusal = refusal(Reason::InstanceNotFound, sentence);
    refusal.with("service", service).with("instance_id", id)
}

/// Removes an instance.
pub(crate) fn deregister(
    tx: &mut Tx<'_>,
    request: &DeregisterRequest,
) -> Decision<DeregisterResponse> {
    let (service, id) = (&request.service, &request.instance_id);
    let Some(row) = tx.delete_row(Space::Instances, &row_key(service, id))? else {
        return Ok(Err(not_found(service, id)));
    };
    end_own(tx, row.session)?;
    Ok(Ok(DeregisterResponse { revision: tx.head.revision.value() }))
}

/// Removes the registrations of the nodes of the cluster that a state was restored from.
pub(crate) fn remove_nodes(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let range = KeyRange::prefix(&row_key(NODE_SERVICE, ""));
    let instances: Vec<Instance> = keyspace::rows(tx, Space::Instances, &range)
        .map(|row| tx::decode(row?.value))
        .collect::<Result<_, StoreError>>()?;
    for instance in instances {
        tx.delete_row(Space::Instances, &row_key(NODE_SERVICE, &instance.instance_id))?;
        end_own(tx, SessionId::new(instance.session_id))?;
    }
    Ok(())
}

/// Removes the instances that live with a session that ends.
pub(crate) fn remove_all(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    for key in keyspace::bound_rows(tx, session, Space::Instances)? {
        tx.delete_row(Space::Instances, &key)?;
    }
    Ok(())
}

/// Closes a session that was opened for an instance which is no more.
fn end_own(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    match session::load(tx, session)? {
        Some(row) if row.kind() == Kind::Instance => session::end(tx, &[session], End::Closed),
        _ => Ok(()),
    }
}

impl View {
    /// `discovery.v1.DiscoveryService/Resolve`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn resolve(&self, request: &ResolveRequest) -> Result<ResolveResponse, StoreError> {
        let mut instances = self.read_instances(&row_key(&request.service, ""))?;
        if !request.zone.is_empty() {
            instances.retain(|instance| instance.zone == request.zone);
        }
        Ok(ResolveResponse { instances, revision: self.head()?.revision.value() })
    }

    /// One instance; `None` where it is gone or never was.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn instance(&self, service: &str, id: &str) -> Result<Option<Instance>, StoreError> {
        let row = keyspace::row(self.reader().as_ref(), Space::Instances, &row_key(service, id))?;
        row.map(|row| decode_instance(row.value)).transpose()
    }

    /// All instances, by service and id, for a watch of all services.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        self.read_instances(b"")
    }

    /// `discovery.v1.DiscoveryService/ListServices`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn services(&self) -> Result<ListServicesResponse, StoreError> {
        let mut services: Vec<Service> = Vec::new();
        for instance in self.instances()? {
            match services.last_mut() {
                Some(last) if last.name == instance.service => last.instance_count += 1,
                _ => services.push(Service { name: instance.service, instance_count: 1 }),
            }
        }
        Ok(ListServicesResponse { services, revision: self.head()?.revision.value() })
    }

    fn read_instances(&self, prefix: &[u8]) -> Result<Vec<Instance>, StoreError> {
        let range = KeyRange::prefix(prefix);
        let rows = keyspace::rows(self.reader().as_ref(), Space::Instances, &range);
        rows.map(|row| decode_instance(row?.value)).collect()
    }
}

#[cfg(test)]
mod tests;
