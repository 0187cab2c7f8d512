//! Memory of tensors that were let go, to be written to again: new memory costs more than the rest of a tensor's way,
//! since the system clears every page of it when it is first touched.
//!
//! A share of every large tensor that is handed out stays here. Once nobody else has one, the memory is free.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use half::bf16;

use crate::seat::lock;

/// Below this, memory comes from the allocator, which keeps as much itself.
const LEAST_BYTES: usize = 256 << 10;

/// Memory of each type that tensors travel in; the ranks of an image compute in one of them.
pub(crate) struct Spares {
    pub(crate) of_f32: SparesOf<f32>,
    pub(crate) of_bf16: SparesOf<bf16>,
}

impl Spares {
    /// Keeps at most `limit_bytes` of each type, what is still in use elsewhere included.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { of_f32: SparesOf::new(limit_bytes), of_bf16: SparesOf::new(limit_bytes) }
    }

    /// Gives all of it back to the system, what is in use as soon as it is let go.
    pub(crate) fn clear(&self) {
        self.of_f32.clear();
        self.of_bf16.clear();
    }
}

/// Memory of numbers of one type.
pub(crate) struct SparesOf<T> {
    limit_bytes: usize,
    /// Handed out, the last one last. Some were let go.
    lent: Mutex<VecDeque<Arc<Vec<T>>>>,
}

impl<T: Copy + Default> SparesOf<T> {
    fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, lent: Mutex::default() }
    }

    /// `n` values, whatever they are.
    pub(crate) fn take(&self, n: usize) -> Vec<T> {
        let fits = |values: &Arc<Vec<T>>| {
            let is_free = Arc::strong_count(values) == 1;
            is_free && (n..=n.saturating_mul(2)).contains(&values.capacity())
        };
        let found = || {
            let mut lent = lock(&self.lent);
            // The last one let go is the likeliest to be in a cache.
            let idx = lent.iter().rposition(fits)?;
            Arc::into_inner(lent.remove(idx)?)
        };
        match found() {
            Some(mut values) => {
                values.resize(n, T::default());
                values
            }
            None => vec![T::default(); n],
        }
    }

    /// Shares `values`, and keeps a share for when the others are let go.
    pub(crate) fn lend(&self, values: Vec<T>) -> Arc<Vec<T>> {
        let values = Arc::new(values);
        if n_bytes(&values) >= LEAST_BYTES {
            let mut lent = lock(&self.lent);
            lent.push_back(values.clone());
            let mut kept_bytes: usize = lent.iter().map(n_bytes).sum();
            while kept_bytes > self.limit_bytes {
                let Some(oldest) = lent.pop_front() else { break };
                kept_bytes -= n_bytes(&oldest);
            }
        }
        values
    }

    fn clear(&self) {
        lock(&self.lent).clear();
    }
}

fn n_bytes<T>(values: &Arc<Vec<T>>) -> usize {
    values.capacity() * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 100_000;

    #[test]
    fn memory_is_written_to_again_once_nobody_has_it() {
        let spares = SparesOf::new(1 << 20);
        let first = spares.lend(vec![1.0; N]);
        let address = first.as_ptr();
        let other = spares.take(N);
        assert_ne!(other.as_ptr(), address, "it is in use");
        drop(first);
        let again = spares.take(N - 1);
        assert_eq!((again.as_ptr(), again.len()), (address, N - 1));
        let other = spares.take(N);
        assert_ne!(other.as_ptr(), address, "it is taken");
    }

    #[test]
    fn memory_much_too_large_is_left_for_others() {
        let spares = SparesOf::new(1 << 20);
        let address = spares.lend(vec![1.0; N]).as_ptr();
        let [smaller, larger, equal] = [N / 2 - 1, N + 1, N].map(|n| spares.take(n));
        assert_ne!(smaller.as_ptr(), address);
        assert_ne!(larger.as_ptr(), address);
        assert_eq!(equal.as_ptr(), address);
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        let spares = SparesOf::new(2 * N * size_of::<f32>());
        let lent: Vec<_> = (0..3).map(|_| spares.lend(vec![1.0; N])).collect();
        let oldest = Arc::downgrade(&lent[0]);
        drop(lent);
        assert_eq!(oldest.strong_count(), 0);
        let kept = Arc::downgrade(&spares.lent.lock().expect("not poisoned")[0]);
        spares.clear();
        assert_eq!(kept.strong_count(), 0);
    }
}
