//! Plans are data: drawn the same each time, written and read back, refused in words.

use std::collections::BTreeSet;

use super::*;

fn text(plan: &Plan) -> String {
    let mut out = Vec::new();
    plan.write(&mut out).expect("memory takes it");
    String::from_utf8(out).expect("JSON is text")
}

#[test]
fn a_plan_is_read_back_as_it_was_written() {
    for seed in 0..50 {
        let plan = draw(seed);
        assert_eq!(plan, draw(seed));
        assert_eq!(Plan::read(text(&plan).as_bytes()).expect("it was written so"), plan);
        assert!(plan.intents.len() >= 200);
        assert!(plan.settings.faults_until_ms >= 29_500);
    }
}

#[test]
fn every_fault_is_drawn_and_a_majority_of_disks_spared() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let plan = draw(seed);
        let mut lost = BTreeSet::new();
        for timed in &plan.faults {
            let value = serde_json::to_value(&timed.fault).expect("a fault is JSON");
            seen.insert(value["fault"].as_str().expect("its name").to_owned());
            if let Fault::Wipe { node, .. } | Fault::BitFlip { node, .. } = timed.fault {
                lost.insert(node);
            }
        }
        assert!(2 * lost.len() < plan.settings.nodes as usize, "seed {seed}");
    }
    assert_eq!(seen, Fault::names().map(str::to_owned).into());
}

#[test]
fn a_wrong_line_is_named() {
    let whole = text(&draw(3));
    let settings = whole.lines().next().expect("it has settings");
    let refused = |text: &str| Plan::read(text.as_bytes()).expect_err("it is wrong").to_string();
    assert!(refused("").contains("begins with its settings"));
    assert!(refused("{\"quorate_plan\":2}").contains("version 2"));
    let stranger =
        format!("{settings}\n\n{{\"at_ms\":1,\"fault\":\"pause\",\"node\":9,\"for_ms\":1}}");
    assert_eq!(
        refused(&stranger),
        format!("line 3: node 9 is none of {} nodes", draw(3).settings.nodes)
    );
    assert!(refused(&format!("{settings}\n{{}}")).starts_with("line 2: neither"));
    assert!(refused(&format!("{settings}\n{{\"at_ms\":1,\"fault\":\"flood\"}}")).contains("flood"));
    for (line, words) in [
        ("{\"at_ms\":1,\"fault\":\"loss\",\"percent\":101,\"for_ms\":1}", "of a hundred"),
        ("{\"at_ms\":1,\"fault\":\"pause\",\"node\":1,\"for_ms\":18446744073709551615}", "an hour"),
        ("{\"at_ms\":1,\"fault\":\"jump\",\"node\":1,\"by_ms\":-9223372036854775808}", "years"),
        ("{\"client\":900,\"think_ms\":1,\"do\":\"renew_session\"}", "client 900"),
        ("{\"client\":1,\"think_ms\":1,\"do\":\"open_session\",\"ttl_ms\":9999999}", "an hour"),
        (
            "{\"client\":1,\"think_ms\":1,\"do\":\"append\",\"stream\":\"e\",\"count\":1e9}",
            "line 2",
        ),
    ] {
        let refused = refused(&format!("{settings}\n{line}"));
        assert!(refused.starts_with("line 2: ") && refused.contains(words), "{refused}");
    }
}
