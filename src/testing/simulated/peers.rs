//! Nodes among themselves: cut off, catching up, refused.

use std::fs;

use bytes::Bytes;

use super::*;

#[test]
fn a_leader_that_reaches_nobody_is_replaced_and_follows_when_it_is_back() {
    simulate(Setup::new(21, 3), async |world: World| {
        let old = world.leader(&[]).await;
        let client = world.client_of(world.ids().filter(|id| *id != old));
        client.kv().set("k", "1").await.expect("put");
        let began = now();
        world.isolate(old);
        let new = world.leader(&[old]).await;
        world.note(format!("node {new} leads {:?} after node {old} was cut off", now() - began));
        client.kv().set("k", "2").await.expect("there is a majority");
        let alone = world.client_of([old]).with_timeout(Duration::from_secs(1));
        alone.kv().get("k").await.expect_err("it must not answer from what it knows");
        world.rejoin(old);
        let value = soon("an answer", async {
            loop {
                if let Ok(Some(kv)) = alone.kv().get("k").await {
                    return kv.value;
                }
            }
        });
        assert_eq!(value.await, "2");
        world.converge().await;
    });
}

#[test]
fn one_way_losses_cost_no_acknowledged_change() {
    simulate(Setup::new(22, 3), async |world: World| {
        let client = world.client().with_timeout(Duration::from_secs(30));
        for round in 0..6_u64 {
            let leader = world.leader(&[]).await;
            let other = world.ids().find(|id| *id != leader).expect("there are three");
            let (from, to) = if round % 2 == 0 { (leader, other) } else { (other, leader) };
            turmoil::partition_oneway(name(from), name(to));
            client.kv().set(format!("k/{round}"), "v").await.expect("somebody takes it");
            pause(Duration::from_secs(2)).await;
            turmoil::repair_oneway(name(from), name(to));
        }
        world.converge().await;
        for round in 0..6 {
            let kv = client.kv().get(format!("k/{round}")).await.expect("read");
            assert_eq!(kv.expect("it was acknowledged").version, 1);
        }
    });
}

#[test]
fn a_node_far_behind_gets_a_snapshot_also_where_the_transfer_is_cut_again_and_again() {
    let settings = |config: &mut Config| config.retained_log_bytes = 1 << 20;
    let setup = Setup { settings: &settings, ..Setup::new(23, 3) };
    simulate(setup, async |world: World| {
        let leader = world.leader(&[]).await;
        let (behind, other) = match leader {
            1 => (2, 3),
            2 => (3, 1),
            _ => (1, 2),
        };
        let client = world.client_of([leader, other]).with_timeout(Duration::from_secs(30));
        client.kv().set("k", "1").await.expect("put");
        let last = world.status(behind).await.expect("it is up").last_index;
        world.crash(behind).await;
        for n in 0..64 {
            let value = Bytes::from(vec![n; 64 << 10]);
            client.kv().set(format!("k/{n}"), value).await.expect("put");
        }
        let first = world.status(leader).await.expect("it is up").first_index;
        assert!(first > last + 1, "the log still reaches back: {first}, {last}");
        world.restart(behind).await;
        for _ in 0..4 {
            pause(Duration::from_millis(300)).await;
            world.cut(&name(leader), &name(behind));
            pause(Duration::from_secs(2)).await;
            world.mend(&name(leader), &name(behind));
        }
        let began = now();
        world.converge().await;
        world.note(format!("converged {:?} after the last cut", now() - began));
    });
}

#[test]
fn a_node_whose_disk_was_wiped_is_refused_and_the_others_go_on() {
    let trace = simulate(Setup::new(24, 3), async |world: World| {
        let leader = world.leader(&[]).await;
        let wiped = world.ids().find(|id| *id != leader).expect("there are three");
        let client = world.client_of(world.ids().filter(|id| *id != wiped));
        client.kv().set("k", "1").await.expect("put");
        world.crash(wiped).await;
        fs::remove_dir_all(world.data_dir(wiped)).expect("it can be removed");
        world.restart(wiped).await;
        soon("the end of the node", world.gone(wiped)).await;
        client.kv().set("k", "2").await.expect("there is a majority");
    });
    let refused = trace.iter().any(|line| line.contains("refuses this node"));
    assert!(refused, "{trace:#?}");
}
