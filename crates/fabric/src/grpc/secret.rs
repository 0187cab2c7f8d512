//! What the ranks of an attempt know and nobody else does: a stream that has shown it carries their tensors.
//!
//! It keeps strangers out, not listeners: whoever reads the wire reads the secret.

/// The secret of one attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret([u8; Self::N_BYTES]);

impl Secret {
    /// Bytes of a secret.
    pub const N_BYTES: usize = 32;
    /// Of an epoch that asks for none.
    pub const NONE: Self = Self([0; Self::N_BYTES]);

    /// A secret of these bytes, which nobody can guess.
    pub fn new(bytes: [u8; Self::N_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; Self::N_BYTES] {
        &self.0
    }

    /// Whether it is `other`; how long that takes does not tell how much of it is.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::NONE { "Secret(none)" } else { "Secret(..)" })
    }
}
