//! Three members of either system, each a process of its own, on a loopback address of the run's
//! own, with default settings. Dropping it kills them and removes their data.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, interval, timeout};

use crate::{
    Error,
    connection::Connection,
    options::{Options, System},
    process::Process,
};

/// How many members a cluster has.
pub const MEMBERS: usize = 3;

/// How long a cluster may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long one look at a member may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The program of a system and how its members are started.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub system: System,
    pub program: PathBuf,
    pub flags: Vec<String>,
}

impl Recipe {
    pub fn new(system: System, options: &Options) -> Result<Self, Error> {
        let (program, flags) = match system {
            System::Quorate => (quorate(options)?, &options.quorate_flags),
            System::Etcd => (options.etcd.clone(), &options.etcd_flags),
        };
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Ok(Self { system, program, flags })
    }

    /// What the program says of its version, in one line.
    pub fn version(&self) -> Result<String, Error> {
        let said = std::process::Command::new(&self.program).arg("--version").output();
        let said = said.map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }
}

/// The release build of this repository, unless a flag names one.
fn quorate(options: &Options) -> Result<PathBuf, Error> {
    if let Some(given) = &options.quorate {
        return Ok(given.clone());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let built = target.join("release/quorate");
    if !built.exists() {
        return Err("no release build of quorate: run `cargo build --release` in the repository, \
                    or name one with --quorate"
            .into());
    }
    Ok(built)
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    recipe: Recipe,
    dir: PathBuf,
    ip: IpAddr,
    members: Vec<Option<Process>>,
}

impl Cluster {
    /// Starts the members over empty data and waits until all know one leader.
    pub async fn start(recipe: &Recipe, dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        let members = (0..MEMBERS).map(|_| None).collect();
        let mut cluster =
            Self { recipe: recipe.clone(), dir: dir.to_owned(), ip: own_address()?, members };
        for member in 0..MEMBERS {
            cluster.start_member(member)?;
        }
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    pub const fn system(&self) -> System {
        self.recipe.system
    }

    /// Where clients reach a member.
    pub fn endpoint(&self, member: usize) -> SocketAddr {
        self.at(7400, member)
    }

    /// Starts a member over the data that it had, with the same command.
    pub fn start_member(&mut self, member: usize) -> Result<(), Error> {
        let args = match self.recipe.system {
            System::Quorate => self.quorate_args(member),
            System::Etcd => self.etcd_args(member),
        };
        let log = self.log(member);
        self.members[member] = Some(Process::start(&self.recipe.program, &args, &log)?);
        Ok(())
    }

    /// Kills a member with SIGKILL.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.kill();
        }
    }

    /// A line of `/proc/PID/status` of each member, in kilobytes.
    pub fn kilobytes(&self, name: &str) -> Vec<u64> {
        self.members.iter().flatten().filter_map(|process| process.kilobytes(name)).collect()
    }

    /// Waits until every member names the same leader, and returns that.
    pub async fn wait_until_ready(&mut self) -> Result<usize, Error> {
        let give_up = Instant::now() + READY_LIMIT;
        let mut ticks = interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            let mut leaders = Vec::new();
            for member in 0..MEMBERS {
                leaders.push(self.leader_according_to(member).await);
            }
            // A member says of itself whether it leads; the others must know the same one.
            let leading = leaders
                .iter()
                .position(|seen| matches!(seen, Some((own, leader)) if own == leader));
            if let Some(leading) = leading {
                let id = leaders[leading].map(|(own, _)| own);
                if leaders.iter().all(|seen| seen.map(|(_, leader)| leader) == id) {
                    return Ok(leading);
                }
            }
            self.check_members()?;
            if Instant::now() > give_up {
                let name = self.recipe.system.name();
                return Err(format!("{name} is not ready after {READY_LIMIT:?}").into());
            }
        }
    }

    /// A member's own id and the id of the leader that it knows.
    async fn leader_according_to(&self, member: usize) -> Option<(u64, u64)> {
        let look = async {
            let mut connection =
                Connection::open(self.recipe.system, self.endpoint(member)).await.ok()?;
            connection.leader().await.ok()
        };
        timeout(LOOK_LIMIT, look).await.ok()?.filter(|(_, leader)| *leader != 0)
    }

    fn check_members(&mut self) -> Result<(), Error> {
        for member in 0..MEMBERS {
            let Some(process) = &mut self.members[member] else { continue };
            if process.has_ended() {
                let log = std::fs::read_to_string(self.log(member)).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                let name = self.recipe.system.name();
                return Err(format!("member {member} of {name} ended: {last}").into());
            }
        }
        Ok(())
    }

    fn at(&self, base: u16, member: usize) -> SocketAddr {
        SocketAddr::new(self.ip, base + u16::try_from(member).expect("few members"))
    }

    fn log(&self, member: usize) -> PathBuf {
        self.dir.join(format!("{member}.log"))
    }

    fn quorate_args(&self, member: usize) -> Vec<String> {
        let id = |member: usize| member + 1;
        let peers: Vec<_> = (0..MEMBERS)
            .map(|member| format!("{}={}", id(member), self.at(7410, member)))
            .collect();
        let mut args = vec![
            "node".to_owned(),
            format!("--id={}", id(member)),
            format!("--data-dir={}", self.dir.join(member.to_string()).display()),
            format!("--listen={}", self.at(7400, member)),
            format!("--peer-listen={}", self.at(7410, member)),
            format!("--admin-listen={}", self.at(7420, member)),
            "--bootstrap".to_owned(),
            format!("--initial-cluster={}", peers.join(",")),
        ];
        args.extend(self.recipe.flags.iter().cloned());
        args
    }

    fn etcd_args(&self, member: usize) -> Vec<String> {
        let url = |base, member| format!("http://{}", self.at(base, member));
        let peers: Vec<_> =
            (0..MEMBERS).map(|member| format!("m{member}={}", url(7410, member))).collect();
        let mut args = vec![
            format!("--name=m{member}"),
            format!("--data-dir={}", self.dir.join(member.to_string()).display()),
            format!("--listen-client-urls={}", url(7400, member)),
            format!("--advertise-client-urls={}", url(7400, member)),
            format!("--listen-peer-urls={}", url(7410, member)),
            format!("--initial-advertise-peer-urls={}", url(7410, member)),
            format!("--initial-cluster={}", peers.join(",")),
            "--initial-cluster-state=new".to_owned(),
        ];
        args.extend(self.recipe.flags.iter().cloned());
        args
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.clear();
        let _left = std::fs::remove_dir_all(&self.dir);
    }
}

/// An address in 127.0.0.0/8 whose ports are free, so that no outgoing connection of anybody takes
/// the port of a member that is down for a moment.
fn own_address() -> Result<IpAddr, Error> {
    let own = std::process::id();
    for attempt in 0..64 {
        let number = own.wrapping_mul(64).wrapping_add(attempt);
        let byte = |number: u32| u8::try_from(number % 250 + 2).expect("from 2 to 251");
        let ip = Ipv4Addr::new(127, byte(number / 62_500), byte(number / 250), byte(number));
        let free =
            |base: u16| (base..).take(MEMBERS).all(|port| TcpListener::bind((ip, port)).is_ok());
        if [7400, 7410, 7420].into_iter().all(free) {
            return Ok(ip.into());
        }
    }
    Err("no loopback address with free ports".into())
}
