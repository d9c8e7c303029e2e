//! Why a configuration of this module cannot work.
//!
//! One error for all parts: each says which figure is wrong and which rule it breaks. Nothing here
//! corrects a figure.

/// Why a configuration cannot work. `field` is the name of the figure, as in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The figure must be above zero.
    #[error("{field} is zero")]
    Zero {
        /// Which figure.
        field: &'static str,
    },
    /// A share cannot be above 100 %.
    #[error("{field} is above 100 percent")]
    AbovePercent {
        /// Which figure.
        field: &'static str,
    },
    /// The figure has a range.
    #[error("{field} is not within {range}")]
    OutOfRange {
        /// Which figure.
        field: &'static str,
        /// The range, in words.
        range: &'static str,
    },
}

impl ConfigError {
    /// Refuses zero.
    pub(super) const fn zero(wrong: bool, field: &'static str) -> Result<(), Self> {
        if wrong { Err(Self::Zero { field }) } else { Ok(()) }
    }

    /// Refuses a share above the whole.
    pub(super) const fn percent(figure: u32, field: &'static str) -> Result<(), Self> {
        if figure > 100 { Err(Self::AbovePercent { field }) } else { Ok(()) }
    }

    /// Refuses what is not `inside`.
    pub(super) const fn range(
        inside: bool,
        field: &'static str,
        range: &'static str,
    ) -> Result<(), Self> {
        if inside { Ok(()) } else { Err(Self::OutOfRange { field, range }) }
    }
}
