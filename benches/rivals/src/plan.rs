//! The order of a run: rounds, in each both systems one after the other, in each all cells.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{
    Error, cells,
    cluster::{Cluster, Recipe},
    echo, failover,
    load::{Measured, Times},
    machine,
    options::{Options, System, Workload},
    put_stream,
    report::{Cell, Report},
};

/// The directory of a run; removed with everything in it when the run ends.
#[derive(Debug)]
struct Place(PathBuf);

impl Place {
    fn new(parent: &Path) -> Result<Self, Error> {
        let dir = parent.join(format!("rivals-data-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let place = Self(dir.canonicalize()?);
        machine::require_disk(&place.0)?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// A whole run and its report.
pub async fn run(options: &Options) -> Result<(), Error> {
    let workloads = options.workloads();
    let place = Place::new(&options.dir)?;
    let recipes = options
        .systems
        .iter()
        .map(|system| Recipe::new(*system, options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut about = machine::describe(&place.0);
    for recipe in &recipes {
        about.push(recipe.version()?);
    }
    about.push(shape(options));
    let mut report = Report::new(about);
    let clusters = workloads.iter().any(|w| !matches!(w, Workload::Echo | Workload::Fsync));
    for round in 0..options.rounds {
        reference(options, &workloads, &place.0, &mut report).await?;
        if !clusters {
            continue;
        }
        // Who comes first changes with each round.
        let mut order: Vec<_> = recipes.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for recipe in order {
            say(&format!("round {} of {}: {}", round + 1, options.rounds, recipe.system.name()));
            let turn = Turn { options, workloads: &workloads, dir: &place.0, recipe, round };
            turn.run(&mut report).await?;
        }
    }
    println!("{}", report.markdown());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", report.json()))?;
    }
    Ok(())
}

/// What does not depend on the systems: the disk and gRPC alone.
async fn reference(
    options: &Options,
    workloads: &BTreeSet<Workload>,
    dir: &Path,
    report: &mut Report,
) -> Result<(), Error> {
    if workloads.contains(&Workload::Fsync) {
        report.reference(Cell::Fsync, micros(machine::fsync(dir)?));
    }
    if workloads.contains(&Workload::Echo) {
        say("echo");
        let bench = echo::Bench::open(dir, options.connections, options.value_size).await?;
        let bench = Arc::new(bench);
        for clients in options.clients_of(Workload::Echo) {
            let measured = bench.cell(clients, times(options)).await?;
            tell(Cell::Rate(Workload::Echo, clients), &measured);
            report.reference(Cell::Rate(Workload::Echo, clients), measured.rate);
        }
        if options.clients.is_empty() {
            report.reference(Cell::EchoStream, bench.stream(times(options)).await?);
        }
    }
    Ok(())
}

/// One system in one round.
struct Turn<'a> {
    options: &'a Options,
    workloads: &'a BTreeSet<Workload>,
    dir: &'a Path,
    recipe: &'a Recipe,
    round: u32,
}

impl Turn<'_> {
    async fn run(&self, report: &mut Report) -> Result<(), Error> {
        let system = self.recipe.system;
        let dir = self.dir.join(format!("{}-{}", system.name(), self.round));
        let mut cluster = Cluster::start(self.recipe, &dir).await?;
        let leader = cluster.wait_until_ready().await?;
        if self.workloads.contains(&Workload::Memory) {
            self.pause(self.options.idle).await;
            self.memory(&cluster, Cell::Idle, report);
        }
        let bench = cells::Bench::open(&cluster, leader, self.options).await?;
        if self.workloads.contains(&Workload::Memory) {
            // Every key is there afterwards, for the reads.
            bench.write(self.options.memory_puts.max(self.options.keys)).await?;
            self.pause(1.0).await;
            self.memory(&cluster, Cell::Loaded, report);
        } else if [Workload::Put, Workload::Get].iter().any(|w| self.workloads.contains(w)) {
            bench.write(self.options.keys).await?;
        }
        self.cells(bench, report).await?;
        if self.workloads.contains(&Workload::PutStream) && system == System::Quorate {
            let rate =
                put_stream::measure(cluster.endpoint(leader), times(self.options), self.options);
            let rate = rate.await?;
            say(&format!("  {:24} {rate:8.0}/s", Cell::PutStream.name()));
            report.add(system, Cell::PutStream, rate, None);
        }
        if self.workloads.contains(&Workload::Failover) {
            let (kills, rounds) = (self.options.kills, self.options.rounds);
            // The first rounds take what does not divide evenly.
            for kill in 0..kills / rounds + u32::from(self.round < kills % rounds) {
                let took = failover::measure(&mut cluster).await?;
                say(&format!("  failover {:2}  {:.0} ms", kill + 1, micros(took) / 1_000.0));
                report.add(system, Cell::Failover, micros(took) / 1_000.0, None);
            }
        }
        Ok(())
    }

    async fn cells(&self, mut bench: cells::Bench, report: &mut Report) -> Result<(), Error> {
        for workload in [Workload::Put, Workload::Get, Workload::Lock, Workload::Handover] {
            if !self.workloads.contains(&workload) {
                continue;
            }
            for clients in self.options.clients_of(workload) {
                let cell = Cell::Rate(workload, clients);
                let (again, measured) = bench.cell(workload, clients, times(self.options)).await?;
                bench = again;
                tell(cell, &measured);
                report.add(self.recipe.system, cell, measured.rate, Some(&measured));
            }
        }
        Ok(())
    }

    /// The largest member counts.
    fn memory(&self, cluster: &Cluster, cell: Cell, report: &mut Report) {
        let megabytes =
            |name| cluster.kilobytes(name).into_iter().map(|kb| kb as f64 / 1_000.0 * 1.024);
        let each: Vec<_> = megabytes("VmRSS").map(|mb| format!("{mb:.1}")).collect();
        let own: Vec<_> = megabytes("RssAnon").map(|mb| format!("{mb:.1}")).collect();
        say(&format!("  {}  {} MB (anonymous: {})", cell.name(), each.join(", "), own.join(", ")));
        let largest = megabytes("VmRSS").fold(0.0, f64::max);
        report.add(self.recipe.system, cell, largest, None);
    }

    async fn pause(&self, seconds: f64) {
        sleep_until(Instant::now() + Duration::from_secs_f64(seconds)).await;
    }
}

fn times(options: &Options) -> Times {
    Times {
        warm_up: Duration::from_secs_f64(options.warm_up),
        measured: Duration::from_secs_f64(options.seconds),
    }
}

fn shape(options: &Options) -> String {
    let Options { rounds, seconds, warm_up, connections, value_size, keys, .. } = options;
    let ids = if options.request_ids { ", Quorate's changes with request ids" } else { "" };
    format!(
        "{rounds} rounds, {seconds} s a cell after {warm_up} s of warm-up, {connections} \
         connections, {value_size} B values, {keys} keys{ids}"
    )
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}

fn tell(cell: Cell, measured: &Measured) {
    let Measured { rate, p50_micros, p99_micros, .. } = measured;
    let name = cell.name();
    say(&format!("  {name:24} {rate:8.0}/s  p50 {p50_micros} us  p99 {p99_micros} us"));
}

/// Progress, beside the table.
fn say(line: &str) {
    eprintln!("{line}");
}
