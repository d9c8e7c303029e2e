//! Each attempt of a call is a span that names its endpoint and its number.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

use super::{fleet::Fleet, round_robin};

/// Writes down the attempts that it is shown.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Seen {
    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if span.metadata().name() == "attempt" {
            let mut words = Words(String::new());
            span.record(&mut words);
            self.0.lock().expect("no test panics with it").push(words.0);
        }
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_a_span_with_its_endpoint_and_number() {
    let seen = Seen::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    // While there is only one dispatcher, whichever thread reaches a span first decides for all
    // whether anybody wants it: other tests run beside this one.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::callsite::rebuild_interest_cache();
    let fleet = Fleet::of(2);
    let balance = round_robin(&fleet);
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    fleet.change(0, |nature| nature.takes_nothing = true);
    for _ in 0..2 {
        fleet.call(&balance).await.expect("the other answers");
    }
    let seen = seen.0.lock().expect("no test panics with it").clone();
    let expected = [
        r#"endpoint="n0:1" attempt=1 "#,
        r#"endpoint="n1:1" attempt=2 "#,
        r#"endpoint="n0:1" attempt=1 "#,
        r#"endpoint="n1:1" attempt=2 "#,
    ];
    assert_eq!(seen, expected);
}
