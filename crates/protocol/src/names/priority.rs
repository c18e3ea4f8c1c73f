//! The urgency of a request: three classes, which all programs must name and order alike.

use std::fmt;
use std::str::FromStr;

/// The urgency of a request. Ordered: the lesser value goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Before all others.
    High,
    /// The default of a request that states none.
    #[default]
    Normal,
    /// Work for times when nothing else is queued.
    Batch,
}

/// A word that names no priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected high, normal or batch")]
pub struct UnknownPriority;

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Batch];

    /// The word on the wire, in logs and in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Batch => "batch",
        }
    }

    /// The protocol's parameter `priority`, where 1 is the most urgent level, a greater number is
    /// less urgent, and 0 (`None` here) leaves the choice to the worker.
    pub const fn from_level(level: u64) -> Option<Self> {
        match level {
            0 => None,
            1 => Some(Self::High),
            2 => Some(Self::Normal),
            _ => Some(Self::Batch),
        }
    }
}

impl FromStr for Priority {
    type Err = UnknownPriority;
    fn from_str(word: &str) -> Result<Self, UnknownPriority> {
        let found = Self::ALL.into_iter().find(|priority| priority.as_str() == word);
        found.ok_or(UnknownPriority)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_levels_name_the_same_classes_in_the_same_order() {
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse(), Ok(priority));
        }
        assert_eq!("urgent".parse::<Priority>(), Err(UnknownPriority));
        assert!(Priority::ALL.is_sorted());
        assert_eq!([1, 2, 3].map(Priority::from_level), Priority::ALL.map(Some));
        assert_eq!(Priority::from_level(0), None);
        assert_eq!(Priority::from_level(u64::MAX), Some(Priority::Batch));
    }
}
