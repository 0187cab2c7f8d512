//! Who a store is: an id that its folders are marked with, and a key that its attempts' secrets are made with.
//!
//! Both are made when the store is first used and stay with it, whatever path it is moved to.

use std::time::SystemTime;

use hmac::{Hmac, Mac};
use plan::{Epoch, ImageId, Rank, WorkerId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use store::{Leadership, Store, StoreError, Txn};

/// The key of the store's record of itself.
pub(crate) const KEY: &str = "identity";

/// What a store says of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Names the store: a UUID.
    pub(crate) id: String,
    /// When it was first used.
    pub(crate) since: String,
    /// What nobody outside knows.
    pub(crate) secret: [u8; 32],
}

impl Identity {
    /// As it stands in the store; made and written down if it does not.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub(crate) fn of(store: &dyn Store, leadership: &Leadership) -> Result<Self, StoreError> {
        if let Some(found) = store.get(KEY)? {
            return serde_json::from_slice(&found.value)
                .map_err(|error| StoreError::Corrupt { place: format!("record `{KEY}`"), reason: error.to_string() });
        }
        let mut secret = [0; 32];
        // Two UUIDs of version 4 hold 244 bits from the system's source of randomness.
        secret[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let made = Self { id: uuid::Uuid::now_v7().to_string(), since: now(), secret };
        let value = serde_json::to_vec(&made)
            .map_err(|error| StoreError::Corrupt { place: format!("record `{KEY}`"), reason: error.to_string() })?;
        store.commit(&Txn::new(leadership).put(KEY, None, value))?;
        Ok(made)
    }

    /// What the worker in this seat shows when it hands in or fetches something of the attempt. The same after a restart,
    /// and nothing has to be written down for it.
    pub(crate) fn seat_secret(&self, epoch: Epoch, image: &ImageId, rank: Rank, worker: &WorkerId) -> Vec<u8> {
        self.seat_mac(epoch, image, rank, worker).finalize().into_bytes().to_vec()
    }

    /// What the ranks of an attempt show each other before their tensors are taken.
    pub(crate) fn exchange_secret(&self, epoch: Epoch, image: &ImageId) -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("a key of any length will do");
        mac.update(b"tensors of an attempt");
        mac.update(&epoch.0.to_le_bytes());
        mac.update(&image.image.0.to_le_bytes());
        mac.update(image.job.0.as_bytes());
        mac.finalize().into_bytes().to_vec()
    }

    /// Whether `shown` is the secret of this seat, without telling by the time it takes how much of it is right.
    pub(crate) fn is_seat_secret(
        &self,
        shown: &[u8],
        (epoch, image): (Epoch, &ImageId),
        rank: Rank,
        worker: &WorkerId,
    ) -> bool {
        self.seat_mac(epoch, image, rank, worker).verify_slice(shown).is_ok()
    }

    fn seat_mac(&self, epoch: Epoch, image: &ImageId, rank: Rank, worker: &WorkerId) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.secret).expect("a key of any length will do");
        mac.update(&epoch.0.to_le_bytes());
        mac.update(&rank.0.to_le_bytes());
        mac.update(&image.image.0.to_le_bytes());
        // With its length, so that no two seats have one text.
        for text in [&image.job.0, &worker.0] {
            mac.update(&(text.len() as u64).to_le_bytes());
            mac.update(text.as_bytes());
        }
        mac
    }
}

/// The time, for people: `2026-11-28T06:55:00Z`.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).field("since", &self.since).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use plan::{ImageIdx, JobId};
    use store::MemoryStore;

    use super::*;

    #[test]
    fn a_store_is_the_same_at_every_start() {
        let store = MemoryStore::new();
        let identity = || {
            let leadership = store.lead("coordinator", std::time::Duration::from_secs(1)).expect("is granted");
            Identity::of(&store, &leadership).expect("the store answers")
        };
        let first = identity();
        assert_eq!(identity(), first);
        assert!(!format!("{first:?}").contains("secret"), "logs do not tell it");
    }

    #[test]
    fn every_seat_has_a_secret_of_its_own() {
        let identity = Identity { id: "x".into(), since: now(), secret: [7; 32] };
        let other_store = Identity { secret: [8; 32], ..identity.clone() };
        let image = |job: &str, idx| ImageId { job: JobId(job.into()), image: ImageIdx(idx) };
        let (a, b) = (WorkerId("a".into()), WorkerId("b".into()));
        let secret = identity.seat_secret(Epoch(1), &image("j", 0), Rank(0), &a);
        let is_it = |identity: &Identity, epoch, image: &ImageId, rank, worker| {
            identity.is_seat_secret(&secret, (Epoch(epoch), image), Rank(rank), worker)
        };
        assert!(is_it(&identity, 1, &image("j", 0), 0, &a));
        assert!(!is_it(&other_store, 1, &image("j", 0), 0, &a));
        assert!(!is_it(&identity, 2, &image("j", 0), 0, &a));
        assert!(!is_it(&identity, 1, &image("j", 1), 0, &a));
        assert!(!is_it(&identity, 1, &image("k", 0), 0, &a));
        assert!(!is_it(&identity, 1, &image("j", 0), 1, &a));
        assert!(!is_it(&identity, 1, &image("j", 0), 0, &b));
        assert!(!identity.is_seat_secret(&[], (Epoch(1), &image("j", 0)), Rank(0), &a));
    }

    #[test]
    fn every_attempt_has_a_secret_for_its_tensors() {
        let identity = Identity { id: "x".into(), since: now(), secret: [7; 32] };
        let other_store = Identity { secret: [8; 32], ..identity.clone() };
        let image = |job: &str, idx| ImageId { job: JobId(job.into()), image: ImageIdx(idx) };
        let secret = identity.exchange_secret(Epoch(1), &image("j", 0));
        assert_eq!(secret.len(), 32);
        assert_eq!(identity.exchange_secret(Epoch(1), &image("j", 0)), secret);
        for other in [
            other_store.exchange_secret(Epoch(1), &image("j", 0)),
            identity.exchange_secret(Epoch(2), &image("j", 0)),
            identity.exchange_secret(Epoch(1), &image("j", 1)),
            identity.exchange_secret(Epoch(1), &image("k", 0)),
            identity.seat_secret(Epoch(1), &image("j", 0), Rank(0), &WorkerId("a".into())),
        ] {
            assert_ne!(other, secret);
        }
    }
}
