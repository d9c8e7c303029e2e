//! What can go wrong.

use serde::{Deserialize, Serialize};

/// What a disk refuses, once, after so many operations of the kind that succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFault {
    /// A write fails half way with an input/output error.
    Write,
    /// A sync fails.
    Sync,
    /// A sync of the directory fails.
    SyncDirectory,
    /// The disk is full.
    Full,
}

/// In the place of a node: whoever leads when the fault strikes.
pub const LEADER: u64 = 0;

/// A fault. Nodes are numbered from 1, and 0 is [`LEADER`]; what lasts ends by itself, at the latest when faults stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// Power is lost: what was not synced is kept, lost or torn.
    Crash {
        /// The node.
        node: u64,
        /// When it starts again.
        for_ms: u64,
    },
    /// The process is killed; what it wrote stays written.
    Kill {
        /// The node.
        node: u64,
        /// When it starts again.
        for_ms: u64,
    },
    /// The process stands still.
    Pause {
        /// The node.
        node: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Power is lost, and with it all that is on the disk; the node starts again on an empty one.
    Wipe {
        /// The node.
        node: u64,
        /// When it starts again.
        for_ms: u64,
    },
    /// The process is killed, and a bit of its log turns that was known to be durable.
    BitFlip {
        /// The node.
        node: u64,
        /// When it starts again.
        for_ms: u64,
    },
    /// The disk fails; the process ends with it.
    Disk {
        /// The node.
        node: u64,
        /// How.
        kind: DiskFault,
        /// After how many operations of its kind.
        after: u64,
        /// When the process starts again, its disk in order.
        for_ms: u64,
    },
    /// Nothing reaches the disk.
    Stall {
        /// The node.
        node: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The state machine applies nothing.
    SlowApply {
        /// The node.
        node: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The guard of the disk's room says that there is too little.
    Short {
        /// The node.
        node: u64,
        /// For how long.
        for_ms: u64,
    },
    /// These nodes and the others do not reach each other.
    Partition {
        /// One side.
        side: Vec<u64>,
        /// For how long.
        for_ms: u64,
        /// Whether connections just go silent, instead of breaking.
        silent: bool,
    },
    /// Nothing gets from one node to another; the other way is open.
    OneWay {
        /// From whom.
        from: u64,
        /// To whom.
        to: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The connection between two nodes breaks and is made again.
    Break {
        /// One.
        a: u64,
        /// The other.
        b: u64,
    },
    /// Messages are lost.
    Loss {
        /// How many of a hundred.
        percent: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Messages come twice.
    Duplicate {
        /// How many of a hundred.
        percent: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Messages overtake each other.
    Reorder {
        /// How many of a hundred.
        percent: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Messages take longer, by a time drawn for each.
    Delay {
        /// At most so much longer, in milliseconds.
        up_to_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// A wall clock jumps.
    Jump {
        /// The node.
        node: u64,
        /// By how many milliseconds, back where negative.
        by_ms: i64,
    },
    /// Leadership is to be handed to a node; asked of another, which passes it on.
    Transfer {
        /// To whom.
        to: u64,
    },
}

/// A family of faults; a seed turns each on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultFamily {
    /// Power losses.
    Crash,
    /// Killed processes.
    Kill,
    /// Processes that stand still.
    Pause,
    /// Lost disks: wiped, or a bit turned.
    LostDisk,
    /// Disks that fail.
    Disk,
    /// Disks and state machines that stand still, or are short of room.
    Stall,
    /// Partitions.
    Partition,
    /// Links that are open one way.
    OneWay,
    /// Broken connections.
    Break,
    /// Lost messages.
    Loss,
    /// Messages that come twice.
    Duplicate,
    /// Messages that overtake each other.
    Reorder,
    /// Messages that take long.
    Delay,
    /// Clocks that jump, drift and are wrong.
    Clock,
    /// Handed over leadership.
    Transfer,
}

impl FaultFamily {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Crash,
        Self::Kill,
        Self::Pause,
        Self::LostDisk,
        Self::Disk,
        Self::Stall,
        Self::Partition,
        Self::OneWay,
        Self::Break,
        Self::Loss,
        Self::Duplicate,
        Self::Reorder,
        Self::Delay,
        Self::Clock,
        Self::Transfer,
    ];
}

impl Fault {
    /// Its name, as plans have it.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("fault").and_then(|name| name.as_str()).unwrap_or_default().to_owned()
    }

    /// The names of all faults.
    #[must_use]
    pub const fn names() -> [&'static str; 18] {
        [
            "crash",
            "kill",
            "pause",
            "wipe",
            "bit_flip",
            "disk",
            "stall",
            "slow_apply",
            "short",
            "partition",
            "one_way",
            "break",
            "loss",
            "duplicate",
            "reorder",
            "delay",
            "jump",
            "transfer",
        ]
    }

    /// How long it lasts, where it does.
    #[must_use]
    pub fn lasts_ms(&self) -> Option<u64> {
        self.clone().span_mut().copied()
    }

    /// The same, lasting so long.
    #[must_use]
    pub fn lasting_ms(&self, span: u64) -> Self {
        let mut fault = self.clone();
        if let Some(for_ms) = fault.span_mut() {
            *for_ms = span;
        }
        fault
    }

    const fn span_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::Crash { for_ms, .. }
            | Self::Kill { for_ms, .. }
            | Self::Pause { for_ms, .. }
            | Self::Wipe { for_ms, .. }
            | Self::BitFlip { for_ms, .. }
            | Self::Disk { for_ms, .. }
            | Self::Stall { for_ms, .. }
            | Self::SlowApply { for_ms, .. }
            | Self::Short { for_ms, .. }
            | Self::Partition { for_ms, .. }
            | Self::OneWay { for_ms, .. }
            | Self::Loss { for_ms, .. }
            | Self::Duplicate { for_ms, .. }
            | Self::Reorder { for_ms, .. }
            | Self::Delay { for_ms, .. } => Some(for_ms),
            Self::Break { .. } | Self::Jump { .. } | Self::Transfer { .. } => None,
        }
    }

    /// The nodes that it names.
    #[must_use]
    pub fn nodes(&self) -> Vec<u64> {
        self.clone().nodes_mut().into_iter().map(|node| *node).collect()
    }

    /// Whether a disk is lost for good.
    pub(super) const fn loses_disk(&self) -> bool {
        matches!(self, Self::Wipe { .. } | Self::BitFlip { .. })
    }

    /// The same, where it was aimed at whoever leads: that is this node.
    #[must_use]
    pub fn aimed_at(&self, leader: u64) -> Self {
        let mut fault = self.clone();
        fault
            .nodes_mut()
            .into_iter()
            .filter(|node| **node == LEADER)
            .for_each(|node| *node = leader);
        fault
    }

    /// The nodes that it names.
    pub(super) fn nodes_mut(&mut self) -> Vec<&mut u64> {
        match self {
            Self::Crash { node, .. }
            | Self::Kill { node, .. }
            | Self::Pause { node, .. }
            | Self::Wipe { node, .. }
            | Self::BitFlip { node, .. }
            | Self::Disk { node, .. }
            | Self::Stall { node, .. }
            | Self::SlowApply { node, .. }
            | Self::Short { node, .. }
            | Self::Jump { node, .. } => vec![node],
            Self::Partition { side, .. } => side.iter_mut().collect(),
            Self::OneWay { from, to, .. } => vec![from, to],
            Self::Break { a, b } => vec![a, b],
            Self::Transfer { to } => vec![to],
            Self::Loss { .. }
            | Self::Duplicate { .. }
            | Self::Reorder { .. }
            | Self::Delay { .. } => Vec::new(),
        }
    }
}
