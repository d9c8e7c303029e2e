//! Identifiers and counters.

use core::fmt;

use uuid::Uuid;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The value before the first one.
            pub const ZERO: Self = Self(0);

            /// Takes a plain number, as it came from the wire or the disk.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The plain number, for the wire, the disk and arithmetic.
            #[must_use]
            pub const fn value(self) -> u64 {
                self.0
            }

            /// The one after this; the largest stays the largest, which no honest count reaches.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The one before this; zero stays zero.
            #[must_use]
            pub const fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }

            /// Whether this is the value before the first one.
            #[must_use]
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter! {
    /// A leader's term (Raft §5.1).
    Term, "t"
}
counter! {
    /// A place in a group's log; the first entry is at 1.
    LogIndex, "i"
}
counter! {
    /// A node's id, chosen by the operator; 0 is nobody.
    NodeId, "n"
}
counter! {
    /// A Raft group's id.
    GroupId, "g"
}
counter! {
    /// A revision of the keyspace: one for each entry that changes it.
    Revision, "r"
}
counter! {
    /// An event's place in the global order; dense, from 1.
    Position, "p"
}
counter! {
    /// A session's id: the index of the entry that opened it; 0 is none.
    SessionId, "s"
}
counter! {
    /// A lock's fencing token: the revision of its grant.
    FencingToken, "f"
}

impl GroupId {
    /// The group that everything lives in at first.
    pub const SYSTEM: Self = Self(1);
}

impl LogIndex {
    /// The index `count` places further on, or the largest.
    #[must_use]
    pub const fn forward(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// How many places this lies behind `earlier`; zero where it does not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            #[must_use]
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Reads the text form; `None` where it is not a UUID.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Uuid::try_parse(text).ok().map(Self)
            }

            /// The UUID.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

identity! {
    /// A cluster's id, drawn when it is founded.
    ClusterId
}
identity! {
    /// A disk's incarnation: drawn when a data directory is made, so that a wiped disk is not
    /// taken for the one before it.
    Incarnation
}
