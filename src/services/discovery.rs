//! `quorate.discovery.v1.DiscoveryService`: the instances of services.

use tonic::{Request, Response, Status};

use crate::{
    machine::{ChangeKind, Space, View, decode_instance, refusal},
    pb::{
        command::v1::{Reason, command::Op},
        discovery::v1::{
            DeregisterRequest, DeregisterResponse, Instance, InstanceEvent, ListServicesRequest,
            ListServicesResponse, RegisterRequest, RegisterResponse, RenewRequest, RenewResponse,
            ResolveRequest, ResolveResponse, SetInstanceStateRequest, SetInstanceStateResponse,
            WatchRequest, WatchResponse, discovery_service_server::DiscoveryService,
            instance_event,
        },
    },
    services::{
        call::{Context, expect_result, invalid, read, revision, view_here},
        gate::Call,
        snapshot::opening,
    },
    streaming::{Changes, Update, Updates, follow},
    types::{KeyRange, SessionId},
    wire::status::{from_refusal, from_store_error},
};

/// What stands between service and instance id in a row's key.
const SEPARATOR: char = '\0';

/// The service on one node.
#[derive(Clone, Debug)]
pub(crate) struct Discovery(pub(crate) Context);

#[tonic::async_trait]
impl DiscoveryService for Discovery {
    async fn register(
        &self,
        mut request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let call = Call::of(&mut request);
        expect_result!(self.0.change(Op::Register(request.into_inner()), &call).await?, Register)
    }

    async fn renew(
        &self,
        mut request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let call = Call::of(&mut request);
        let RenewRequest { service, instance_id } = request.into_inner();
        let gone = || {
            let sentence =
                format!("the instance {instance_id:?} of {service:?} is gone: register it again");
            let refusal = refusal(Reason::InstanceNotFound, sentence);
            from_refusal(refusal.with("service", &service).with("instance_id", &instance_id))
        };
        // There at a moment after the call began, and its session renewed after that.
        let view = self.0.view(false, &call).await?;
        let instance = view
            .instance(&service, &instance_id)
            .map_err(|error| from_store_error(&error))?
            .ok_or_else(gone)?;
        if instance.session_id == 0 {
            return Ok(Response::new(RenewResponse { ttl: None }));
        }
        let session = SessionId::new(instance.session_id);
        let ttl =
            self.0.node.renew(session, call.deadline).await.map_err(|refusal| {
                match refusal.reason() {
                    Reason::SessionNotFound => gone(),
                    _ => self.0.refused(refusal),
                }
            })?;
        Ok(Response::new(RenewResponse { ttl: prost_types::Duration::try_from(ttl).ok() }))
    }

    async fn deregister(
        &self,
        mut request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::Deregister(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, Deregister)
    }

    async fn set_instance_state(
        &self,
        mut request: Request<SetInstanceStateRequest>,
    ) -> Result<Response<SetInstanceStateResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::SetInstanceState(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, SetInstanceState)
    }

    async fn resolve(
        &self,
        mut request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        let call = Call::of(&mut request);
        let request = request.into_inner();
        if request.service.is_empty() {
            return Err(invalid("service is empty"));
        }
        let view = view_here!(self.0, &request, &call);
        Ok(Response::new(read(view, move |view| resolve(view, &request)).await?))
    }

    type WatchStream = Updates<WatchResponse>;

    async fn watch(
        &self,
        mut request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&mut request);
        let service = request.into_inner().service;
        if service.contains(SEPARATOR) {
            return Err(invalid("service holds a zero byte"));
        }
        let range = if service.is_empty() {
            KeyRange::prefix(b"")
        } else {
            KeyRange::prefix(format!("{service}{SEPARATOR}").as_bytes())
        };
        let view = self.0.view(false, &call).await?;
        let revision = revision(&view)?;
        let there = read(view, move |view| instances(view, service)).await?;
        let pieces = opening(there.into_iter().map(registered), |events, done| WatchResponse {
            events,
            revision: if done { revision.value() } else { 0 },
            caught_up: done,
            fell_behind: false,
        });
        let cursor = Changes::new(self.0.node.clone(), Space::Instances, range).caught_up(revision);
        Ok(Response::new(follow(self.0.terms(call), pieces, cursor, watch_response)))
    }

    async fn list_services(
        &self,
        mut request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let call = Call::of(&mut request);
        let view = view_here!(self.0, request.get_ref(), &call);
        let services = |view: &View| view.services().map_err(|error| from_store_error(&error));
        Ok(Response::new(read(view, services).await?))
    }
}

fn resolve(view: &View, request: &ResolveRequest) -> Result<ResolveResponse, Status> {
    view.resolve(request).map_err(|error| from_store_error(&error))
}

/// The instances of a service, or of all where the name is empty.
fn instances(view: &View, service: String) -> Result<Vec<Instance>, Status> {
    if service.is_empty() {
        return view.instances().map_err(|error| from_store_error(&error));
    }
    Ok(resolve(view, &ResolveRequest { service, ..Default::default() })?.instances)
}

fn registered(instance: Instance) -> InstanceEvent {
    let revision = instance.revision;
    let kind = instance_event::Kind::Registered.into();
    InstanceEvent { kind, instance: Some(instance), revision }
}

fn watch_response(update: Update<Changes>) -> WatchResponse {
    let events = update.items.into_iter().map(|change| {
        let revision = change.kv.mod_revision;
        match change.kind {
            ChangeKind::Put => {
                // The machine wrote it; what it wrote it can read.
                let instance = decode_instance(change.kv.value).unwrap_or_default();
                let kind = instance_event::Kind::Registered.into();
                InstanceEvent { kind, instance: Some(instance), revision }
            }
            ChangeKind::Delete => {
                let key = String::from_utf8_lossy(&change.kv.key);
                let (service, id) = key.split_once(SEPARATOR).unwrap_or((&key, ""));
                let instance = Instance {
                    service: service.to_owned(),
                    instance_id: id.to_owned(),
                    ..Default::default()
                };
                let kind = instance_event::Kind::Removed.into();
                InstanceEvent { kind, instance: Some(instance), revision }
            }
        }
    });
    WatchResponse {
        events: events.collect(),
        revision: update.place.value(),
        caught_up: update.caught_up,
        fell_behind: update.fell_behind,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        machine::Change,
        pb::{discovery::v1::InstanceState, kv::v1::KeyValue},
        types::Revision,
    };

    #[test]
    fn rows_are_told_as_registrations_and_removals() {
        let instance = Instance {
            service: "api".to_owned(),
            instance_id: "a1".to_owned(),
            address: "h:1".to_owned(),
            revision: 3,
            ..Default::default()
        };
        let change = |kind, revision, value| Change {
            space: Space::Instances,
            kind,
            kv: KeyValue {
                key: "api\0a1".into(),
                value,
                mod_revision: revision,
                ..Default::default()
            },
            replaced: Revision::ZERO,
            prev: None,
        };
        let told = watch_response(Update {
            items: vec![
                change(ChangeKind::Put, 3, instance.encode_to_vec().into()),
                change(ChangeKind::Delete, 4, Default::default()),
            ],
            place: Revision::new(4),
            caught_up: true,
            fell_behind: false,
        });
        let serving = Instance { state: InstanceState::Serving.into(), ..instance };
        assert_eq!(told.events[0], registered(serving));
        assert_eq!(
            (told.events[1].kind(), told.events[1].revision),
            (instance_event::Kind::Removed, 4)
        );
        let removed = told.events[1].instance.as_ref().unwrap();
        assert_eq!((removed.service.as_str(), removed.instance_id.as_str()), ("api", "a1"));
        assert!(told.caught_up);
    }
}
