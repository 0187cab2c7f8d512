//! What comes in: which epochs are open here, which messages are wanted, and what waits for an epoch to open.
//!
//! Knows sequences and epochs; no socket. A message is judged twice, by its header before memory is made for it
//! and when it is whole, because an epoch may end in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use plan::{Epoch, Rank};
use wire::v1::exchange_response::Kind as Answer;

use super::answer::{Answers, NOTHING_WANTED, answer};
use super::config::{MESSAGE_BYTES, PortConfig, Tally};
use super::header::{Header, LinkKey};
use super::secret::Secret;
use crate::seat::{Seat, lock};
use crate::{FabricError, Payload, Tag};

/// Epochs remembered as over; below the oldest of them everything is.
const N_REMEMBERED: usize = 4096;

/// What becomes of a message whose header came.
pub(crate) enum Verdict {
    /// Wanted; the seat, if it is taken, hears of every piece.
    Take(Option<Arc<Seat>>),
    /// Not wanted: its payload is passed over.
    Skip,
}

#[derive(Default)]
pub(crate) struct Arrivals {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: BTreeMap<Epoch, Open>,
    over: BTreeSet<Epoch>,
    /// Everything up to this epoch is over, unless it is open.
    floor: Option<Epoch>,
    /// The highest epoch of an image.
    newest: BTreeMap<u64, Epoch>,
    /// By what their senders have shown, so that nobody takes the place of another.
    links: BTreeMap<(LinkKey, Secret), Link>,
    /// Handed over within this process to ranks that have not opened the epoch.
    handed: BTreeMap<(Epoch, Rank), Vec<Handed>>,
    early_bytes: u64,
}

type Handed = (Rank, Tag, Payload);

struct Open {
    image: u64,
    secret: Secret,
    /// The ranks of this process.
    chairs: BTreeMap<Rank, Chair>,
}

enum Chair {
    Awaited,
    Taken(Arc<Seat>),
    Left,
}

/// The receiving end of a link.
struct Link {
    image: u64,
    /// Number of the next message.
    expected: u64,
    /// The sender was asked for `expected`.
    is_asked: bool,
    /// Came before the epoch was opened. Not reported as received, so it may be dropped and come again.
    kept: Vec<(Tag, Result<Payload, FabricError>)>,
    kept_bytes: u64,
    is_incomplete: bool,
    answers: Arc<Answers>,
}

enum Place {
    Seat(Arc<Seat>),
    Early,
    Over,
    Elsewhere,
    /// Of somebody who has not shown the attempt's secret.
    Strange,
}

impl Arrivals {
    /// Opens an epoch for `rank`. `chairs` are the ranks of this process. Returns the seat, and epochs of the
    /// same image that ended with it.
    pub(crate) fn open(
        &self,
        (epoch, image, secret): (Epoch, u64, Secret),
        rank: Rank,
        n_ranks: usize,
        chairs: impl Iterator<Item = Rank>,
        tally: &Tally,
    ) -> (Arc<Seat>, Vec<Epoch>) {
        let seat = Arc::new(Seat::new(epoch, n_ranks));
        let mut table = lock(&self.table);
        if !table.open.contains_key(&epoch) && table.is_over(epoch, image) {
            seat.abort();
            return (seat, Vec::new());
        }
        let is_superseded = |(&other, open): (&Epoch, &Open)| (open.image == image && other < epoch).then_some(other);
        let superseded: Vec<Epoch> = table.open.iter().filter_map(is_superseded).collect();
        superseded.iter().for_each(|&old| table.end(old));
        table.note_newest(image, epoch);
        table.forget_links(|key, link| link.image == image && key.0.epoch < epoch);

        let open = table.open.entry(epoch).or_insert_with(|| Open {
            image,
            secret,
            chairs: chairs.map(|rank| (rank, Chair::Awaited)).collect(),
        });
        open.chairs.insert(rank, Chair::Taken(seat.clone()));
        for (from, tag, payload) in table.handed.remove(&(epoch, rank)).unwrap_or_default() {
            seat.put(from, tag, Ok(payload));
        }
        let n_strange = table.forget_links(|(key, shown), _| key.epoch == epoch && !shown.is(&secret));
        tally.strange.add(n_strange);
        table.forget_links(|(key, _), link| key.epoch == epoch && link.image != image);
        table.seat_early(epoch, rank, &seat);
        (seat, superseded)
    }

    /// `rank` neither sends nor receives any more. The epoch is over when all ranks of this process left.
    pub(crate) fn leave(&self, epoch: Epoch, rank: Rank) {
        let mut table = lock(&self.table);
        let Some(open) = table.open.get_mut(&epoch) else { return };
        open.chairs.insert(rank, Chair::Left);
        let is_over = open.chairs.values().all(|chair| matches!(chair, Chair::Left));
        table.forget_links(|(key, _), _| key.epoch == epoch && key.to == rank);
        if is_over {
            table.end(epoch);
        }
    }

    /// Ends all waits of an epoch and forgets its messages, opened or not.
    pub(crate) fn abort(&self, epoch: Epoch) {
        lock(&self.table).end(epoch);
    }

    /// True while an epoch is open here.
    pub(crate) fn is_busy(&self) -> bool {
        !lock(&self.table).open.is_empty()
    }

    /// Hands a tensor to a rank of this process.
    pub(crate) fn hand(&self, link: LinkKey, tag: Tag, payload: Payload) -> Result<(), FabricError> {
        let mut table = lock(&self.table);
        let chair = table.open.get(&link.epoch).and_then(|open| open.chairs.get(&link.to));
        match chair {
            None => return Err(FabricError::Aborted { epoch: link.epoch }),
            Some(Chair::Taken(seat)) => seat.put(link.from, tag, Ok(payload)),
            Some(Chair::Awaited) => {
                table.handed.entry((link.epoch, link.to)).or_default().push((link.from, tag, payload));
            }
            Some(Chair::Left) => {}
        }
        Ok(())
    }

    /// Judges a message by its header.
    pub(crate) fn judge(
        &self,
        (header, secret): (&Header, Secret),
        answers: &Arc<Answers>,
        config: &PortConfig,
        tally: &Tally,
    ) -> Verdict {
        let mut table = lock(&self.table);
        let place = table.place(header, secret, answers, tally);
        let seat = match &place {
            Place::Over | Place::Elsewhere | Place::Strange => return Verdict::Skip,
            Place::Seat(seat) => Some(seat.clone()),
            Place::Early => None,
        };
        if !table.is_next((header, secret), &seat, answers, tally) {
            return Verdict::Skip;
        }
        if header.length > config.message_limit_bytes {
            tally.refused.add(1);
            answers.urgent(answer(Answer::Refused, header.link, header.sequence, config.message_limit_bytes));
            let refused = FabricError::TooLarge { bytes: header.length, limit: config.message_limit_bytes };
            table.take((header, secret), Err(refused), seat, answers);
            return Verdict::Skip;
        }
        if seat.is_none() && !table.make_room(header, secret, config) {
            tally.early_dropped.add(1);
            return Verdict::Skip;
        }
        Verdict::Take(seat)
    }

    /// Takes in a whole message whose checksum was right.
    pub(crate) fn deliver(
        &self,
        (header, secret): (&Header, Secret),
        payload: Payload,
        answers: &Arc<Answers>,
        tally: &Tally,
    ) {
        let mut table = lock(&self.table);
        let seat = match table.place(header, secret, answers, tally) {
            Place::Over | Place::Elsewhere | Place::Strange => return,
            Place::Seat(seat) => Some(seat),
            Place::Early => None,
        };
        if table.is_next((header, secret), &seat, answers, tally) {
            if seat.is_none() {
                tally.early.add(1);
            }
            table.take((header, secret), Ok(payload), seat, answers);
        }
    }

    /// Asks for a message again whose payload did not match its checksum.
    pub(crate) fn spoilt(&self, (link, secret): (LinkKey, Secret), answers: &Answers) {
        let mut table = lock(&self.table);
        let is_open = table.open.contains_key(&link.epoch);
        match table.links.get_mut(&(link, secret)) {
            Some(incoming) if is_open => incoming.ask(link, answers),
            Some(incoming) => incoming.is_incomplete = true,
            None if is_open => answers.urgent(answer(Answer::Missing, link, 0, 0)),
            None => {}
        }
    }

    /// Answers how far a link's messages came.
    pub(crate) fn probed(&self, header: &Header, secret: Secret, answers: &Arc<Answers>, tally: &Tally) {
        let mut table = lock(&self.table);
        if let Place::Seat(_) = table.place(header, secret, answers, tally) {
            let link = table.link(header, secret, answers);
            if link.expected < header.sequence {
                link.ask(header.link, answers);
            } else {
                answers.received(header.link, link.expected, 0);
            }
        }
    }
}

impl Table {
    fn is_over(&self, epoch: Epoch, image: u64) -> bool {
        self.floor.is_some_and(|floor| epoch <= floor)
            || self.over.contains(&epoch)
            || self.newest.get(&image).is_some_and(|&newest| epoch < newest)
    }

    fn note_newest(&mut self, image: u64, epoch: Epoch) {
        let newest = self.newest.entry(image).or_insert(epoch);
        *newest = (*newest).max(epoch);
        if self.newest.len() > N_REMEMBERED {
            let oldest = self.newest.iter().min_by_key(|&(_, epoch)| epoch).map(|(&image, _)| image);
            oldest.map(|image| self.newest.remove(&image));
        }
    }

    fn end(&mut self, epoch: Epoch) {
        for chair in self.open.remove(&epoch).into_iter().flat_map(|open| open.chairs.into_values()) {
            if let Chair::Taken(seat) = chair {
                seat.abort();
            }
        }
        self.handed.retain(|&(of, _), _| of != epoch);
        self.forget_links(|(key, _), _| key.epoch == epoch);
        self.over.insert(epoch);
        if self.over.len() > N_REMEMBERED {
            self.floor = self.over.pop_first();
        }
    }

    /// Says how many messages were forgotten with them.
    fn forget_links(&mut self, is_forgotten: impl Fn(&(LinkKey, Secret), &Link) -> bool) -> u64 {
        let (mut forgotten_bytes, mut n_messages) = (0, 0);
        self.links.retain(|key, link| {
            let is_forgotten = is_forgotten(key, link);
            if is_forgotten {
                forgotten_bytes += link.kept_bytes;
                n_messages += link.kept.len() as u64;
            }
            !is_forgotten
        });
        self.early_bytes -= forgotten_bytes;
        n_messages
    }

    /// Gives a rank that opened its epoch what came before, and tells the senders.
    fn seat_early(&mut self, epoch: Epoch, rank: Rank, seat: &Seat) {
        for (&(key, _), link) in self.links.iter_mut().filter(|((key, _), _)| key.epoch == epoch && key.to == rank) {
            for (tag, tensor) in link.kept.drain(..) {
                seat.put(key.from, tag, tensor);
            }
            self.early_bytes -= std::mem::take(&mut link.kept_bytes);
            let answers = link.answers.clone();
            if link.is_incomplete {
                link.ask(key, &answers);
            } else {
                answers.received(key, link.expected, 0);
            }
        }
    }

    fn place(&self, header: &Header, secret: Secret, answers: &Answers, tally: &Tally) -> Place {
        let epoch = header.link.epoch;
        let place = match self.open.get(&epoch) {
            Some(open) if !open.secret.is(&secret) => Place::Strange,
            Some(open) if open.image != header.image => Place::Elsewhere,
            Some(open) => match open.chairs.get(&header.link.to) {
                Some(Chair::Taken(seat)) => Place::Seat(seat.clone()),
                Some(Chair::Awaited) => Place::Early,
                Some(Chair::Left) => Place::Over,
                None => Place::Elsewhere,
            },
            None if self.is_over(epoch, header.image) => Place::Over,
            None => Place::Early,
        };
        match place {
            Place::Over => tally.old_epoch.add(1),
            Place::Elsewhere => tally.other_image.add(1),
            Place::Strange => {
                // Whoever it is learns nothing.
                tally.strange.add(1);
                return place;
            }
            Place::Seat(_) | Place::Early => return place,
        }
        answers.received(header.link, NOTHING_WANTED, 0);
        place
    }

    /// The link of a message. A new one for one that is wanted: bogus headers must not fill the table.
    fn link(&mut self, header: &Header, secret: Secret, answers: &Arc<Answers>) -> &mut Link {
        let link = self.links.entry((header.link, secret)).or_insert_with(|| Link {
            image: header.image,
            expected: 0,
            is_asked: false,
            kept: Vec::new(),
            kept_bytes: 0,
            is_incomplete: false,
            answers: answers.clone(),
        });
        if !Arc::ptr_eq(&link.answers, answers) {
            link.answers = answers.clone();
        }
        link
    }

    /// True if this is the message its link waits for. If not, says so to the sender.
    fn is_next(
        &mut self,
        (header, secret): (&Header, Secret),
        seat: &Option<Arc<Seat>>,
        answers: &Arc<Answers>,
        tally: &Tally,
    ) -> bool {
        if seat.is_none() && !self.links.contains_key(&(header.link, secret)) {
            return header.sequence == 0;
        }
        let link = self.link(header, secret, answers);
        if header.sequence == link.expected {
            return true;
        }
        if header.sequence < link.expected {
            tally.repeated.add(1);
            if seat.is_some() {
                answers.received(header.link, link.expected, 0);
            }
        } else {
            tally.out_of_order.add(1);
            if seat.is_none() {
                link.is_incomplete = true;
            } else if !link.is_asked {
                link.ask(header.link, answers);
            }
        }
        false
    }

    fn take(
        &mut self,
        (header, secret): (&Header, Secret),
        tensor: Result<Payload, FabricError>,
        seat: Option<Arc<Seat>>,
        answers: &Arc<Answers>,
    ) {
        let link = self.link(header, secret, answers);
        link.expected += 1;
        link.is_asked = false;
        let n_bytes = tensor.as_ref().map_or(0, Payload::n_bytes) as u64;
        match seat {
            Some(seat) => {
                answers.received(header.link, link.expected, n_bytes);
                seat.put(header.link.from, header.tag, tensor);
            }
            None => {
                link.kept.push((header.tag, tensor));
                link.kept_bytes += n_bytes + MESSAGE_BYTES;
                self.early_bytes += n_bytes + MESSAGE_BYTES;
            }
        }
    }

    /// Makes room for an early message at the expense of older epochs, which are likelier never to open. What is
    /// dropped was not reported as received: its sender has it and is asked for it when the epoch opens.
    fn make_room(&mut self, header: &Header, secret: Secret, config: &PortConfig) -> bool {
        let need_bytes = header.length + MESSAGE_BYTES;
        while self.early_bytes + need_bytes > config.early_limit_bytes {
            let oldest = self.links.iter_mut().find(|(_, link)| !link.kept.is_empty());
            match oldest {
                Some((key, link)) if key.0.epoch < header.link.epoch => {
                    self.early_bytes -= std::mem::take(&mut link.kept_bytes);
                    let key = *key;
                    self.links.remove(&key);
                }
                _ => {
                    if let Some(link) = self.links.get_mut(&(header.link, secret)) {
                        link.is_incomplete = true;
                    }
                    return false;
                }
            }
        }
        true
    }
}

impl Link {
    fn ask(&mut self, key: LinkKey, answers: &Answers) {
        self.is_asked = true;
        self.is_incomplete = false;
        answers.urgent(answer(Answer::Missing, key, self.expected, 0));
    }
}
