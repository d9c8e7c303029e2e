//! That shares hold through the whole balancer: weights as they change, a key's own endpoint, a
//! zone that lacks some; and that no count is lost between threads.

use http::Extensions;

use super::{MS, fleet::Fleet};
use crate::{
    client::balance::{
        Balance, HashKey, Maglev, Policy, RingHash, RoundRobin, View, Weighted, ZoneAware,
        policy::{Candidates, testing},
    },
    resilience::ewma::{PeakEwma, ValidConfig},
    types::Instant,
};

/// A balancer whose connections all stand.
async fn over(fleet: &Fleet, policy: impl Policy) -> Balance {
    let builder = Balance::builder().policy(policy).connect(fleet.clone()).seed(1);
    let balance = builder.resolve(fleet.list());
    let all = |view: &View| view.endpoints.iter().all(|endpoint| endpoint.state == "READY");
    balance.ready().await.expect("it comes up");
    fleet.until_view(&balance, all).await;
    balance
}

async fn calls(fleet: &Fleet, balance: &Balance, count: u32) {
    for _ in 0..count {
        fleet.call(balance).await.expect("it answers");
    }
}

#[tokio::test(start_paused = true)]
async fn weights_are_kept_and_follow_what_is_told() {
    let fleet = Fleet::of(3);
    fleet.tell(|list| list[2] = list[2].clone().with_weight(8));
    let balance = over(&fleet, Weighted::new()).await;
    calls(&fleet, &balance, 1_000).await;
    let served = fleet.served();
    assert!(served[2].abs_diff(800) <= 6, "{served:?}");
    fleet.tell(|list| list[2] = list[2].clone().with_weight(1));
    fleet.until_view(&balance, |view| view.endpoints[2].weight == 1).await;
    calls(&fleet, &balance, 300).await;
    assert!(fleet.served()[2].abs_diff(served[2] + 100) <= 6, "{:?}", fleet.served());
}

#[tokio::test(start_paused = true)]
async fn a_key_finds_its_endpoint_again_when_that_comes_back() {
    a_key_comes_home(RingHash::new()).await;
    a_key_comes_home(Maglev::new()).await;
}

async fn a_key_comes_home(policy: impl Policy) {
    let name = policy.name();
    let fleet = Fleet::of(3);
    let balance = over(&fleet, policy).await;
    let call = async || {
        let key = |hints: &mut Extensions| _ = hints.insert(HashKey::of("a user"));
        fleet.call_with(&balance, key).await.expect(name);
    };
    call().await;
    let home = fleet.served().iter().position(|served| *served == 1).expect("one served");
    for _ in 0..20 {
        call().await;
    }
    assert_eq!(fleet.served()[home], 21, "{name}");
    fleet.kill(home);
    for _ in 0..20 {
        call().await;
    }
    assert_eq!(fleet.served()[home], 21, "{name}");
    fleet.revive(home);
    fleet.until_view(&balance, |view| view.endpoints[home].state == "READY").await;
    call().await;
    assert_eq!(fleet.served()[home], 22, "{name}");
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_lacks_an_endpoint_spills_in_proportion() {
    let fleet = Fleet::of(4);
    fleet.tell(|list| {
        for (at, endpoint) in list.iter_mut().enumerate() {
            *endpoint = endpoint.clone().in_zone(if at < 2 { "here" } else { "there" });
        }
    });
    let balance = over(&fleet, ZoneAware::new("here", RoundRobin::new())).await;
    calls(&fleet, &balance, 100).await;
    assert_eq!(fleet.served(), [50, 50, 0, 0]);
    fleet.kill(0);
    calls(&fleet, &balance, 1_000).await;
    let served = fleet.served();
    // Half of the zone is left, and trusted with 1.4 times that.
    assert!(served[1].abs_diff(750) < 60, "{served:?}");
    assert!(served[2].min(served[3]) > 100, "{served:?}");
}

/// In the resilience module no thread is named, so this is shown here.
#[test]
fn what_many_threads_do_at_once_all_counts() {
    const EACH: u32 = 20_000;
    const THREADS: u32 = 4;
    let cost = PeakEwma::new(ValidConfig::default(), Instant::ZERO);
    let ready = testing::weighing(&[1, 2, 5]);
    let picker = Weighted::new().picker(&Candidates { ready: &ready, all: &[] });
    let work = |thread: u32| {
        let mut counts = [0; 3];
        for (number, call) in (0..EACH).zip(testing::asked(thread.into())) {
            cost.observe(MS * number * thread, Instant::ZERO);
            counts[picker.pick(&ready, &call)] += 1;
        }
        counts
    };
    let counts: Vec<[u32; 3]> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (1..=THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let highest = MS * (EACH - 1) * THREADS;
    let seen = cost.cost(Instant::ZERO);
    assert!(seen.abs_diff(highest) < highest / 1_000_000, "{seen:?}, not {highest:?}");
    for (place, share) in [(0, EACH / 2), (1, EACH), (2, EACH * 5 / 2)] {
        let count: u32 = counts.iter().map(|counts| counts[place]).sum();
        assert!(count.abs_diff(share) < 12, "{counts:?}");
    }
}
