//! docs/metrics.md, the dashboard and what a node exports say the same.

use std::collections::BTreeSet;

use quorate::observe::Metrics;

const TABLE: &str = include_str!("../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../docs/grafana-dashboard.json");

/// What a node exports, as a query names it, with its kind.
fn exported() -> BTreeSet<(String, String)> {
    let text = Metrics::new().encode();
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = kinds.map(|line| {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        let total = if kind == "counter" { "_total" } else { "" };
        (format!("{name}{total}"), kind.to_owned())
    });
    families.collect()
}

#[test]
fn every_metric_is_in_the_table_and_the_table_names_no_other() {
    let rows = TABLE.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim);
        let name = cells.nth(1)?.strip_prefix('`')?.strip_suffix('`')?;
        let kind = cells.next()?;
        let metric = name.starts_with("quorate_") || name.starts_with("process_");
        metric.then(|| (name.to_owned(), kind.to_owned()))
    });
    let told: BTreeSet<_> = rows.collect();
    let exported = exported();
    assert!(exported.len() > 25, "metrics were found: {exported:?}");
    let missing: Vec<_> = exported.difference(&told).collect();
    assert!(missing.is_empty(), "docs/metrics.md does not tell {missing:?}");
    let gone: Vec<_> = told.difference(&exported).collect();
    assert!(gone.is_empty(), "docs/metrics.md tells what is not exported: {gone:?}");
}

#[test]
fn the_dashboard_asks_only_for_what_is_exported() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    let exported = exported();
    let known = |name: &str| {
        exported.iter().any(|(family, kind)| {
            let part = name.strip_prefix(family.as_str());
            match kind.as_str() {
                "histogram" => part.is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end)),
                _ => part == Some(""),
            }
        })
    };
    let mut expressions = Vec::new();
    expressions_of(&dashboard, &mut expressions);
    assert!(expressions.len() > 30, "expressions were found");
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics: Vec<_> = words
            .filter(|word| word.starts_with("quorate_") || word.starts_with("process_"))
            .collect();
        assert!(!metrics.is_empty(), "{expression} asks for no metric");
        for name in metrics {
            assert!(known(name), "{name} is not exported: {expression}");
        }
    }
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    assert_eq!(dashboard["__inputs"][0]["pluginId"], "prometheus");
    let source = format!("${{{}}}", dashboard["__inputs"][0]["name"].as_str().expect("a name"));
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").collect();
    let titles: Vec<_> = rows.iter().map(|row| row["title"].as_str().expect("a title")).collect();
    assert_eq!(titles, ["Traffic", "Stages of a write", "Raft", "Storage", "Streams", "Process"]);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut places = BTreeSet::new();
    for panel in panels {
        let at = &panel["gridPos"];
        assert!(places.insert((at["x"].as_u64(), at["y"].as_u64())), "{at} is taken twice");
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], source.as_str());
        }
    }
}

/// Every query in a value.
fn expressions_of<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == "expr" => found.push(text),
                    _ => expressions_of(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| expressions_of(value, found));
        }
        _ => {}
    }
}
