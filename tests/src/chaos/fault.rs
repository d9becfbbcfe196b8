//! The kinds of faults: their names, and what each may do to a run.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Signal 9, and started again.
    Kill,
    /// Signal 9 to all at once, and started again.
    Outage,
    /// SIGSTOP, later SIGCONT.
    Pause,
    /// Two sides that do not hear each other.
    Partition,
    /// One node does not hear another, which hears it.
    OneWay,
    /// What one node sends and gets is late.
    Slow,
    /// What one node sends and gets is lost, doubled and overtaken, some of it.
    Lossy,
    /// No room left on one node's disk.
    DiskFull,
    /// An empty data folder.
    Wipe,
    /// A data folder as it was before.
    Restore,
    /// Some bits of the data folder's files turned.
    Flip,
    /// Started again under another address.
    Readdress,
    /// One node's clock jumps by hours.
    Clock,
    /// Asked to end, and started again as another program: none of the nemesis's, but an operator's.
    Replace,
}

impl Kind {
    /// Those of the nemesis.
    pub(crate) const ALL: [Self; 13] = [
        Self::Kill,
        Self::Outage,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Slow,
        Self::Lossy,
        Self::DiskFull,
        Self::Wipe,
        Self::Restore,
        Self::Flip,
        Self::Readdress,
        Self::Clock,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Outage => "outage",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Slow => "slow",
            Self::Lossy => "lossy",
            Self::DiskFull => "disk-full",
            Self::Wipe => "wipe",
            Self::Restore => "restore",
            Self::Flip => "flip",
            Self::Readdress => "readdress",
            Self::Clock => "clock",
            Self::Replace => "replace",
        }
    }

    /// Whether a disk loses what it holds: only one at a time may.
    pub(crate) const fn destroys(self) -> bool {
        matches!(self, Self::Wipe | Self::Restore | Self::Flip)
    }

    /// Whether nothing else may happen meanwhile.
    pub(crate) fn is_alone(self) -> bool {
        self.destroys() || self == Self::Outage
    }

    /// Whether it separates nodes that all run: each side may then go on by itself.
    pub(crate) const fn separates(self) -> bool {
        self.worsens() || matches!(self, Self::Partition | Self::OneWay | Self::Pause)
    }

    /// Whether a link is there, but a bad one.
    pub(crate) const fn worsens(self) -> bool {
        matches!(self, Self::Slow | Self::Lossy)
    }

    /// Whether it takes namespaces of the network or of mounts.
    pub(crate) const fn needs_isolation(self) -> bool {
        self.worsens() || matches!(self, Self::Partition | Self::OneWay | Self::DiskFull)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no fault: the faults are {names}")
        })
    }
}
