//! Bytes on their way to the coordinator in messages: every one it takes is a sign of life of the rank they are of.
//!
//! While they are being taken the rank is at work; before and after that it waits for the coordinator.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parallel::{AtWork, Pulse};
use tokio_stream::Stream;

/// Messages of one call.
pub(crate) struct Outgoing<T> {
    messages: std::vec::IntoIter<T>,
    pulse: Arc<Pulse>,
    sending: Option<AtWork<Arc<Pulse>>>,
}

impl<T> Outgoing<T> {
    /// `messages` in order, of the rank with this pulse.
    pub(crate) fn new(messages: Vec<T>, pulse: &Arc<Pulse>) -> Self {
        Self { messages: messages.into_iter(), pulse: Arc::clone(pulse), sending: None }
    }
}

// Nothing in it is pinned.
impl<T> Unpin for Outgoing<T> {}

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        self.pulse.beat();
        let next = self.messages.next();
        self.sending = next.as_ref().map(|_| {
            let before = self.sending.take();
            before.unwrap_or_else(|| Pulse::at_work_while(Arc::clone(&self.pulse)))
        });
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_rank_is_at_work_while_its_bytes_are_taken_and_waits_for_the_answer() {
        let pulse = Arc::new(Pulse::default());
        let _upload = pulse.aside_while();
        let mut messages = Outgoing::new(vec![1, 2], &pulse);
        assert!(pulse.waits(), "nothing was taken yet");
        assert_eq!(messages.next().await, Some(1));
        assert!(!pulse.waits(), "the next is to be taken");
        assert_eq!(messages.next().await, Some(2));
        assert!(!pulse.waits());
        assert_eq!(messages.next().await, None);
        assert!(pulse.waits(), "all were taken");
        assert_eq!(pulse.n_moves(), 3);
        let mut cut_off = Outgoing::new(vec![1, 2], &pulse);
        assert_eq!(cut_off.next().await, Some(1));
        drop(cut_off);
        assert!(pulse.waits(), "the call has ended");
    }
}
