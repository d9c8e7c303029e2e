//! What the run took place on, and what one fsync costs there.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};

use tokio::time::Instant;

use crate::Error;

/// How many times the file is synced.
const SYNCS: usize = 400;

/// File systems that forget: a run on them measures no disk.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// The machine, a line each.
pub fn describe(dir: &Path) -> Vec<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cpu = cpu.map_or("unknown", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let memory: u64 = memory.and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or_default();
    vec![
        format!("{cores} cores of {cpu}, {:.0} GiB of memory", memory as f64 / 1_048_576.0),
        format!("Linux {}, data on {}", said("uname", &["-r"]), file_system(dir)),
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
    ]
}

/// Refuses a directory whose files do not outlive the machine.
pub fn require_disk(dir: &Path) -> Result<(), Error> {
    let kind = file_system(dir);
    if IN_MEMORY.contains(&kind.as_str()) {
        let dir = dir.display();
        return Err(format!("{dir} is {kind}, in memory: name a real disk with --dir").into());
    }
    Ok(())
}

fn file_system(dir: &Path) -> String {
    let dir = dir.display().to_string();
    let told = said("findmnt", &["--noheadings", "--output", "FSTYPE", "--target", &dir]);
    if told.is_empty() { said("stat", &["-f", "-c", "%T", &dir]) } else { told }
}

fn said(program: &str, args: &[&str]) -> String {
    let said = Command::new(program).args(args).output();
    said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default()
}

/// The median time to append 512 bytes and make them durable.
pub fn fsync(dir: &Path) -> Result<Duration, Error> {
    let path = dir.join("fsync");
    let mut file = fs::File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[7; 512])?;
        file.sync_data()?;
        took.push(began.elapsed());
    }
    fs::remove_file(path)?;
    took.sort_unstable();
    Ok(took[SYNCS / 2])
}
