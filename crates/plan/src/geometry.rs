//! Sizes: the picture in pixels, its latent, its token grid, and bands of their rows.
//!
//! Arithmetic on row and column counts only. Everything is 64-bit: one tensor of a 4096² decode has
//! exactly 2³² elements.

use std::fmt;
use std::str::FromStr;

use crate::request::RequestError;
use serde::{Deserialize, Serialize};

/// Side of a square token in latent cells; the checkpoint's `patch_size`.
pub const TOKEN_CELLS: usize = 2;

/// A picture's size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSize {
    /// Columns.
    pub width_px: u32,
    /// Rows.
    pub height_px: u32,
}

impl ImageSize {
    /// Width and height are multiples of this: eight pixels a latent cell, two cells a token.
    pub const MULTIPLE_PX: u32 = 16;
    /// No side is longer: four times the pixels of the largest picture the model was made for, and a bound on what
    /// one request can make anybody reckon with.
    pub const MOST_PX: u32 = 8192;

    /// A size that can be rendered.
    ///
    /// # Errors
    /// If a side is zero, not a multiple of [`Self::MULTIPLE_PX`] or longer than [`Self::MOST_PX`].
    pub fn new(width_px: u32, height_px: u32) -> Result<Self, RequestError> {
        for (side, px) in [("width", width_px), ("height", height_px)] {
            if px > Self::MOST_PX {
                return Err(RequestError::Long { side, px });
            }
            if px == 0 || !px.is_multiple_of(Self::MULTIPLE_PX) {
                return Err(RequestError::Side { side, px, below: px / 16 * 16, above: (px / 16 + 1) * 16 });
            }
        }
        Ok(Self { width_px, height_px })
    }

    /// The latent of this picture, for a VAE that shrinks each side by `factor`.
    pub fn latent(self, factor: usize) -> LatentSize {
        LatentSize { rows: self.height_px as usize / factor, cols: self.width_px as usize / factor }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width_px, self.height_px)
    }
}

impl FromStr for ImageSize {
    type Err = RequestError;

    /// Reads `WIDTHxHEIGHT`, or one number for a square.
    fn from_str(text: &str) -> Result<Self, RequestError> {
        let side =
            |part: &str| part.trim().parse::<u32>().map_err(|_| RequestError::SizeSyntax { text: text.to_owned() });
        match text.split_once(['x', 'X', '×']) {
            Some((width, height)) => Self::new(side(width)?, side(height)?),
            None => side(text).and_then(|px| Self::new(px, px)),
        }
    }
}

/// Rows and columns of the compressed picture being denoised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSize {
    /// Rows of cells.
    pub rows: usize,
    /// Columns of cells.
    pub cols: usize,
}

impl LatentSize {
    /// The token grid: one token for each 2×2 cells.
    pub fn tokens(self) -> TokenGrid {
        TokenGrid { rows: self.rows / TOKEN_CELLS, cols: self.cols / TOKEN_CELLS }
    }
}

/// Rows and columns of tokens, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Rows of tokens.
    pub rows: usize,
    /// Columns of tokens.
    pub cols: usize,
}

impl TokenGrid {
    /// How many tokens there are.
    pub fn n_tokens(self) -> usize {
        self.rows * self.cols
    }

    /// The grid left by a convolution of kernel and stride `ratio`: a last row or column that does not
    /// fill a kernel is dropped, as in the reference.
    pub fn compressed(self, ratio: usize) -> Self {
        Self { rows: self.rows / ratio, cols: self.cols / ratio }
    }
}

/// A band of consecutive rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRange {
    /// First row of the band.
    pub start: usize,
    /// One past its last row.
    pub end: usize,
}

impl RowRange {
    /// All of `n_rows` rows.
    pub fn all(n_rows: usize) -> Self {
        Self { start: 0, end: n_rows }
    }

    /// How many rows the band holds.
    pub fn n_rows(self) -> usize {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_as_width_by_height() {
        assert_eq!("176x240".parse::<ImageSize>(), Ok(ImageSize { width_px: 176, height_px: 240 }));
        assert_eq!("512".parse::<ImageSize>(), Ok(ImageSize { width_px: 512, height_px: 512 }));
    }

    #[test]
    fn a_size_that_cannot_be_rendered_names_its_neighbours() {
        let message = "500x512".parse::<ImageSize>().expect_err("500 is no multiple of 16").to_string();
        assert_eq!(message, "width 500 px is not a multiple of 16: use 496 or 512");
        assert!("0x16".parse::<ImageSize>().is_err());
        let message = "16x4294967295".parse::<ImageSize>().expect_err("too long").to_string();
        assert_eq!(message, "height 4294967295 px is out of range: use at most 8192");
        assert!("8192".parse::<ImageSize>().is_ok());
        assert!("8208x16".parse::<ImageSize>().is_err());
        assert!("-16x16".parse::<ImageSize>().is_err());
        assert!("wide".parse::<ImageSize>().is_err());
    }

    #[test]
    fn an_odd_grid_drops_its_last_row_when_compressed() {
        let grid = ImageSize { width_px: 176, height_px: 240 }.latent(8).tokens();
        assert_eq!(grid, TokenGrid { rows: 15, cols: 11 });
        assert_eq!(grid.compressed(2), TokenGrid { rows: 7, cols: 5 });
    }
}
