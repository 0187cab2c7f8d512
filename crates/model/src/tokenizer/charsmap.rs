//! SentencePiece's table of characters and what they are written as, walked the way SentencePiece walks it: at
//! each place the longest entry wins, wherever characters or letters with their accents end.
//!
//! The library's own reading cuts the text into letters with their accents first, so an entry can neither end
//! inside one nor go on behind it.
//!
//! Layout: length of the trie in bytes (u32), the trie (u32 units), replacements (text, each ended by a zero byte);
//! all little-endian. The trie is a double array as darts-clone writes it: bits 0–7 of a unit are the byte that
//! leads to it, bit 8 says that an entry ends there, bit 9 and bits 10–30 are the distance to its children; the
//! child for byte 0 of a unit with an entry has bit 31 set and holds the offset of its replacement.

use tokenizers::{NormalizedString, Normalizer};

/// The table, checked: every entry has a replacement that can be read.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads the table.
    ///
    /// # Errors
    /// If it is no such table, as one line.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or("charsmap: shorter than its first number")?;
        let trie_len = u32::from_le_bytes(*head) as usize;
        let (trie, replacements) = rest.split_at_checked(trie_len).ok_or_else(|| {
            format!("charsmap: a trie of {trie_len} bytes is announced, {} bytes are there", rest.len())
        })?;
        let (units, odd) = trie.as_chunks::<4>();
        if units.is_empty() || !odd.is_empty() {
            return Err(format!("charsmap: a trie of {trie_len} bytes is not one or more units of 4 bytes"));
        }
        let replacements = str::from_utf8(replacements).map_err(|error| format!("charsmap: replacements: {error}"))?;
        let units = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let charsmap = Self { units, replacements: replacements.to_owned() };
        for (at, &unit) in charsmap.units.iter().enumerate() {
            if !is_value(unit) && has_entry(unit) && charsmap.replacement(at ^ children(unit)).is_none() {
                return Err(format!("charsmap: the entry at unit {at} has no replacement"));
            }
        }
        Ok(charsmap)
    }

    /// Length in bytes of the longest entry `text` begins with, and its replacement.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut at = children(self.units[0]);
        let mut found = None;
        for (idx, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(&unit) = self.units.get(at).filter(|&&unit| leads_to(unit) == u32::from(byte)) else { break };
            at ^= children(unit);
            // In a damaged table an entry may end inside a character.
            if has_entry(unit) && text.is_char_boundary(idx + 1) {
                found = self.replacement(at).map(|replacement| (idx + 1, replacement));
            }
        }
        found
    }

    /// The replacement that the unit at `at` points to.
    fn replacement(&self, at: usize) -> Option<&str> {
        let value = self.units.get(at).copied().filter(|&unit| is_value(unit))?;
        let behind = self.replacements.get((value & 0x7fff_ffff) as usize..)?;
        Some(behind.split_once('\0').map_or(behind, |(replacement, _)| replacement))
    }
}

impl Normalizer for Charsmap {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        // Each character written, and how many of the text's it uses up: 1 - change.
        let mut written: Vec<(char, isize)> = Vec::with_capacity(text.get().len());
        let mut n_dropped_first = 0;
        let mut rest = text.get();
        while let Some(first) = rest.chars().next() {
            let Some((n_bytes, replacement)) = self.longest(rest) else {
                written.push((first, 0));
                rest = &rest[first.len_utf8()..];
                continue;
            };
            let (entry, behind) = rest.split_at(n_bytes);
            let mut n_unused = entry.chars().count();
            for letter in replacement.chars() {
                written.push((letter, if n_unused > 0 { 0 } else { 1 }));
                n_unused = n_unused.saturating_sub(1);
            }
            match written.last_mut() {
                Some((_, change)) => *change -= n_unused.cast_signed(),
                None => n_dropped_first += n_unused,
            }
            rest = behind;
        }
        text.transform(written, n_dropped_first);
        Ok(())
    }
}

fn is_value(unit: u32) -> bool {
    unit >> 31 == 1
}

fn has_entry(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// The byte that leads to this unit; more than a byte for one that holds a value.
fn leads_to(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

/// Distance to the children, to be combined with the place of the unit by exclusive or.
fn children(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 0x200) >> 6)) as usize
}
