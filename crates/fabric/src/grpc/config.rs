//! What can be set of a port, and what it counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fault::Faults;

/// Counted for a message beside its payload wherever bytes are bounded, so that empty ones are bounded too.
pub(crate) const MESSAGE_BYTES: u64 = 256;

/// What can be set of a port. The defaults suit ranks on one local network.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// A wait ends when the peer sent nothing for this long. Longer than the longest computation between sends, a
    /// block of a 4096² picture on a CPU. A peer that is dead is found out by its connection, one that is stopped by its
    /// lease; this is for a computation that never ends in a process that lives.
    pub silence: Duration,
    /// A message that is begun and not gone on with for this long ends its stream, and what a peer leaves unanswered
    /// for this long is not waited for at the end.
    pub stall: Duration,
    /// A peer that could not be reached for this long is gone.
    pub reconnect: Duration,
    /// Bytes a link may have under way before `send` waits, 256 for every message beside its payload; or twice the message
    /// that is to be sent, if that is more.
    pub credit_bytes: u64,
    /// The largest message sent or taken, in bytes.
    pub message_limit_bytes: u64,
    /// Bytes kept, in all, of epochs that are not open here yet. Beyond it they are dropped and sent again later.
    pub early_limit_bytes: u64,
    /// Memory of received tensors kept to be written to again while an epoch is open, in bytes.
    pub spare_limit_bytes: usize,
    /// How long a link may be without an answer before it asks for one.
    pub probe: Duration,
    /// How long an answer may wait for others to leave with it.
    pub answer_delay: Duration,
    /// How long a connection may take to say something sensible.
    pub hello: Duration,
    /// Largest HTTP/2 DATA payload and piece written at once, in bytes.
    pub piece_bytes: u32,
    /// HTTP/2 flow-control window of a stream, in bytes.
    pub window_bytes: u32,
    /// For tests: what goes wrong on the way out.
    pub faults: Option<Faults>,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30 * 60),
            stall: Duration::from_secs(60),
            reconnect: Duration::from_secs(5),
            credit_bytes: 64 << 20,
            message_limit_bytes: 1 << 30,
            early_limit_bytes: 256 << 20,
            spare_limit_bytes: 128 << 20,
            probe: Duration::from_millis(200),
            answer_delay: Duration::from_millis(2),
            hello: Duration::from_secs(5),
            piece_bytes: 512 << 10,
            window_bytes: 1 << 20,
            faults: None,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a port has counted since it was bound.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(crate) struct Tally {
            $(pub(crate) $name: Count,)*
        }

        impl Tally {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Messages of an epoch that is over: dropped.
    old_epoch,
    /// Messages of an epoch not open here yet: kept.
    early,
    /// Messages of an epoch not open here yet, beyond the limit: dropped, asked for when it opens.
    early_dropped,
    /// Messages of another image than the epoch's: dropped.
    other_image,
    /// Messages of senders that had not shown the attempt's secret: dropped.
    strange,
    /// Messages that had come before: dropped.
    repeated,
    /// Messages before which others were missing: dropped and asked for.
    out_of_order,
    /// Headers, payloads or answers that do not match their checksum: dropped and asked for.
    corrupt,
    /// Messages larger than the limit: refused.
    refused,
    /// Messages sent once more.
    resent,
    /// Bytes of tensors handed over to other processes.
    sent_bytes,
    /// Bytes of tensors that came whole from other processes.
    received_bytes,
    /// Connections made to peers, the first ones included.
    connected,
    /// Streams ended because what came was no tensor stream.
    malformed,
    /// Connections ended because they said nothing.
    silent,
    /// Connections refused because there were too many.
    crowded,
}

#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}
