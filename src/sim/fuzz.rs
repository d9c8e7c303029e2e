//! Lines that nobody meant, where a history or a plan is read.
//!
//! What can be read is also judged: a checker that falls over a strange history proves nothing.

use crate::{
    fuzz::Target,
    sim::{
        checker::{Budget, black_box, witness},
        history::History,
        plan::{Plan, draw},
    },
};

const HISTORIES: &[&str] = &[
    r#"{"quorate_history":1,"source":"by hand","label":"legal"}
{"line":"call","time":1,"id":1,"client":1,"node":2,"call":"put","key":"k","value":"a"}
{"line":"return","time":2,"id":1,"outcome":"ok","answer":"done","revision":1}
{"line":"call","time":3,"id":2,"client":1,"call":"get","key":"k"}
{"line":"return","time":4,"id":2,"outcome":"ok","answer":"got","value":{"value":"a","mod_revision":1},"revision":1}
{"line":"call","time":5,"id":3,"client":2,"call":"cas","key":"k","expected":"a","value":"b"}
{"line":"call","time":5,"id":4,"client":1,"call":"txn","compares":[{"key":"k","value":"a"}],"changes":[{"key":"j","value":null}],"reads":["k"]}
{"line":"return","time":6,"id":3,"outcome":"ok","answer":"swapped","swapped":true,"revision":2}
{"line":"return","time":7,"id":4,"outcome":"ok","answer":"txn","succeeded":false,"reads":[{"value":"b","mod_revision":2}],"revision":2}
{"line":"watch_begins","time":8,"watch":1,"key":"k","range_end":"l","after":0}
{"line":"watch_told","time":9,"watch":1,"key":"k","value":"a","revision":1,"last":true}
{"line":"watch_told","time":9,"watch":1,"key":"k","value":"b","revision":2,"last":true}
{"line":"watch_progress","time":9,"watch":1,"revision":2}
{"line":"watch_compacted","time":9,"watch":1,"through":1}
{"line":"note","time":9,"node":1,"text":"leads"}"#,
    r#"{"quorate_history":1}
{"line":"call","time":1,"id":1,"client":1,"call":"acquire","lock":"l","owner":"one","ttl_ms":5000,"wait_ms":0}
{"line":"return","time":2,"id":1,"outcome":"ok","answer":"acquired","fencing_token":4,"session":7}
{"line":"call","time":3,"id":2,"client":2,"call":"acquire","lock":"l","owner":"two","ttl_ms":5000,"wait_ms":100,"session":9}
{"line":"call","time":3,"id":3,"client":1,"call":"guarded_write","lock":"l","fencing_token":4,"value":"v"}
{"line":"return","time":4,"id":3,"outcome":"ok","answer":"guarded","accepted":true}
{"line":"call","time":5,"id":4,"client":1,"call":"release","lock":"l","fencing_token":4}
{"line":"return","time":6,"id":4,"outcome":"ok","answer":"done","revision":5}
{"line":"return","time":7,"id":2,"outcome":"ok","answer":"acquired","fencing_token":5,"session":9}
{"line":"call","time":8,"id":5,"client":1,"call":"describe","lock":"l"}
{"line":"return","time":9,"id":5,"outcome":"ok","answer":"described","holder":{"owner":"two","fencing_token":5},"revision":5}
{"line":"call","time":10,"id":6,"client":1,"call":"open_session","ttl_ms":1000}
{"line":"return","time":11,"id":6,"outcome":"ok","answer":"opened","session":12,"revision":5}
{"line":"call","time":12,"id":7,"client":2,"call":"renew_lock","lock":"l","fencing_token":5,"session":9}
{"line":"return","time":13,"id":7,"outcome":"ok","answer":"renewed"}
{"line":"call","time":14,"id":8,"client":1,"call":"close_session","session":12}
{"line":"return","time":15,"id":8,"outcome":"refused","reason":"SESSION_NOT_FOUND"}"#,
    r#"{"quorate_history":1}
{"line":"call","time":1,"id":1,"client":1,"call":"append","stream":"s","data":["a","b"],"expected_version":0}
{"line":"return","time":2,"id":1,"outcome":"ok","answer":"appended","first_version":1,"first_position":1}
{"line":"subscription_begins","time":3,"subscription":1,"stream":"","from":1}
{"line":"subscription_told","time":4,"subscription":1,"stream":"s","version":1,"position":1,"data":"a"}
{"line":"subscription_told","time":4,"subscription":1,"stream":"s","version":2,"position":2,"data":"b"}
{"line":"call","time":5,"id":2,"client":1,"call":"read_stream","stream":"s","from":1}
{"line":"return","time":6,"id":2,"outcome":"ok","answer":"events","events":[{"stream":"s","version":1,"position":1,"data":"a"}]}
{"line":"call","time":7,"id":3,"client":1,"call":"append","stream":"s","data":["c"],"expected_version":1}
{"line":"return","time":8,"id":3,"outcome":"refused","reason":"WRONG_EXPECTED_VERSION","actual":2}
{"line":"call","time":9,"id":4,"client":1,"call":"enqueue","queue":"q","value":"x"}
{"line":"return","time":10,"id":4,"outcome":"unknown","reason":"deadline"}
{"line":"call","time":11,"id":5,"client":1,"call":"dequeue","queue":"q"}
{"line":"return","time":12,"id":5,"outcome":"ok","answer":"dequeued","value":"x"}
{"line":"call","time":13,"id":6,"client":1,"call":"register","service":"w","instance":"i","ttl_ms":1000}
{"line":"return","time":14,"id":6,"outcome":"ok","answer":"registered","revision":3}
{"line":"call","time":15,"id":7,"client":1,"call":"resolve","service":"w"}
{"line":"return","time":16,"id":7,"outcome":"ok","answer":"resolved","instances":["i"],"revision":3}"#,
];

#[test]
fn fuzz_histories() {
    let target = Target::new("histories", 300).allocating(4_096, 16 << 20);
    target.damaged_texts(HISTORIES, |text| {
        let Ok(history) = History::read(text.as_bytes()) else { return };
        let mut written = Vec::new();
        history.write(&mut written).expect("a vector takes it");
        let again = History::read(written.as_slice()).expect("it was just written");
        assert_eq!(again, history);
        let _ = witness(&history);
        let _ = black_box(&history, &mut Budget::steps(2_000));
    });
}

#[test]
fn fuzz_plans() {
    let good: Vec<Vec<u8>> = (1..=4)
        .map(|seed| {
            let mut plan = draw(seed);
            plan.faults.truncate(12);
            plan.intents.truncate(12);
            let mut written = Vec::new();
            plan.write(&mut written).expect("a vector takes it");
            written
        })
        .collect();
    Target::new("plans", 400).allocating(1_024, 1 << 20).damaged(&good, |input| {
        let Ok(plan) = Plan::read(input) else { return };
        let mut written = Vec::new();
        plan.write(&mut written).expect("a vector takes it");
        assert_eq!(Plan::read(written.as_slice()).expect("it was just written"), plan);
    });
}
