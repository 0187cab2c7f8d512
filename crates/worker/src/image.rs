//! Pictures as the bytes of a file, and their metadata back from those bytes.
//!
//! Leaves out where the bytes go.

use std::collections::HashMap;
use std::io::Cursor;

use anyhow::{Context, ensure};
use candle_core::Tensor;
use model::Rendered;
use plan::ArtifactKind;
use png::BitDepth;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::metadata::{KEYWORD, Metadata};

/// Marks a preview in a PNG.
const PREVIEW_KEYWORD: &str = "fresco-preview";

/// Bits per channel of a PNG, as the metadata says them.
pub fn bit_depth(kind: ArtifactKind) -> Option<u8> {
    match kind {
        ArtifactKind::Png8 => Some(8),
        ArtifactKind::Png16 => Some(16),
        ArtifactKind::Safetensors => None,
    }
}

/// The file of a finished picture. Safetensors hold `latents` `[1, 4, h, w]`, `image` `[1, 3, H, W]` in 0..1 and
/// the text `embeds`, all f32.
///
/// # Errors
/// If the picture has not the shape of one.
pub fn encode(rendered: &Rendered, kind: ArtifactKind, metadata: &Metadata) -> anyhow::Result<Vec<u8>> {
    match kind {
        ArtifactKind::Png8 => encode_png(&rendered.image, BitDepth::Eight, &Said::Metadata(metadata)),
        ArtifactKind::Png16 => encode_png(&rendered.image, BitDepth::Sixteen, &Said::Metadata(metadata)),
        ArtifactKind::Safetensors => encode_safetensors(rendered, metadata),
    }
}

/// A PNG of `image` `[1, 3, height, width]` f32 in 0..1, marked as a preview.
///
/// # Errors
/// If it has not the shape of a picture.
pub fn encode_preview(image: &Tensor) -> anyhow::Result<Vec<u8>> {
    encode_png(image, BitDepth::Eight, &Said::Preview)
}

/// Whether a PNG that begins with `start` is a preview; what stands before its pixels is enough.
pub fn is_preview(start: &[u8]) -> bool {
    let is_mark = |chunk: &png::text_metadata::TEXtChunk| chunk.keyword == PREVIEW_KEYWORD;
    let reader = png::Decoder::new(Cursor::new(start)).read_info();
    reader.is_ok_and(|reader| reader.info().uncompressed_latin1_text.iter().any(is_mark))
}

/// What a PNG says about itself.
enum Said<'a> {
    Metadata(&'a Metadata),
    Preview,
}

fn encode_png(image: &Tensor, bit_depth: BitDepth, said: &Said<'_>) -> anyhow::Result<Vec<u8>> {
    let (_, channels, height_px, width_px) = image.dims4()?;
    ensure!(channels == 3, "a picture has three channels, this one {channels}");
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, u32::try_from(width_px)?, u32::try_from(height_px)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(bit_depth);
    match said {
        Said::Preview => encoder.add_text_chunk(PREVIEW_KEYWORD.into(), "of a picture at work".into())?,
        Said::Metadata(metadata) => {
            encoder.add_itxt_chunk(KEYWORD.into(), metadata.json()?)?;
            let (keyword, text) = ("parameters".to_owned(), metadata.parameters());
            // The plain chunk is what most tools look for; it can hold Latin-1 alone.
            if text.chars().all(|c| u32::from(c) <= 0xff) {
                encoder.add_text_chunk(keyword, text)?;
            } else {
                encoder.add_itxt_chunk(keyword, text)?;
            }
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&samples(image, bit_depth)?)?;
    writer.finish()?;
    Ok(bytes)
}

/// Pixels in file order. Values are rounded half to even, as the reference rounds them.
fn samples(image: &Tensor, bit_depth: BitDepth) -> anyhow::Result<Vec<u8>> {
    let interleaved = kernels::with_values(image, |values| {
        let n_pixels = values.len() / 3;
        let pixels = (0..n_pixels).flat_map(|idx| [0, 1, 2].map(|channel| values[channel * n_pixels + idx]));
        match bit_depth {
            BitDepth::Eight => pixels.map(|value| (value * 255.0).round_ties_even() as u8).collect(),
            _ => pixels.flat_map(|value| ((value * 65535.0).round_ties_even() as u16).to_be_bytes()).collect(),
        }
    });
    interleaved.context("read the picture's values")
}

fn encode_safetensors(rendered: &Rendered, metadata: &Metadata) -> anyhow::Result<Vec<u8>> {
    let tensors = [("latents", &rendered.latents), ("image", &rendered.image), ("embeds", &rendered.embeds)];
    let little_endian = |tensor: &Tensor| {
        kernels::with_values(tensor, |values| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    };
    let bytes = tensors.iter().map(|(_, tensor)| little_endian(tensor)).collect::<Result<Vec<_>, _>>()?;
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| Ok((*name, TensorView::new(Dtype::F32, tensor.dims().to_vec(), bytes)?)));
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    let header = HashMap::from([(KEYWORD.to_owned(), metadata.json()?)]);
    Ok(safetensors::serialize(views, Some(header))?)
}

/// What a file of ours says about itself.
#[derive(Debug)]
pub struct Stored {
    /// How it is written.
    pub kind: ArtifactKind,
    /// What it says.
    pub metadata: Metadata,
}

/// Reads the metadata of a picture, or says why there is none.
///
/// # Errors
/// If the file is no picture of ours.
pub fn read(bytes: &[u8]) -> Result<Stored, String> {
    const PNG_MARK: &[u8] = b"\x89PNG";
    let (json, is_png) = if bytes.starts_with(PNG_MARK) {
        (png_metadata(bytes)?, true)
    } else {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|_| "is neither a PNG nor a safetensors file")?;
        (header.metadata().as_ref().and_then(|entries| entries.get(KEYWORD)).cloned(), false)
    };
    let json = json.ok_or("holds no metadata of fresco: it was not rendered by it, or a tool has removed them")?;
    let metadata: Metadata =
        serde_json::from_str(&json).map_err(|error| format!("holds metadata that cannot be read: {error}"))?;
    let kind = match (is_png, metadata.bit_depth) {
        (false, _) => ArtifactKind::Safetensors,
        (true, Some(16)) => ArtifactKind::Png16,
        (true, _) => ArtifactKind::Png8,
    };
    Ok(Stored { kind, metadata })
}

fn png_metadata(bytes: &[u8]) -> Result<Option<String>, String> {
    let damaged = |error: png::DecodingError| format!("is a damaged PNG: {error}");
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(damaged)?;
    let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    chunk.map(png::text_metadata::ITXtChunk::get_text).transpose().map_err(damaged)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn check_samples(values: &[f32; 3], bit_depth: BitDepth, expected: &[u8]) {
        let image = Tensor::from_slice(values, (1, 3, 1, 1), &Device::Cpu).expect("the sizes agree");
        assert_eq!(samples(&image, bit_depth).expect("is a picture"), expected);
    }

    #[test]
    fn values_are_rounded_half_to_even() {
        // 0.5 / 255 and 1.5 / 255 as f32 give exactly 0.5 and 1.5 again.
        check_samples(&[0.5 / 255.0, 1.5 / 255.0, 1.0], BitDepth::Eight, &[0, 2, 255]);
        check_samples(&[0.0, 0.5, 1.0], BitDepth::Sixteen, &[0, 0, 0x80, 0, 0xff, 0xff]);
    }

    #[test]
    fn pixels_are_interleaved() {
        let planes: Vec<f32> = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0].map(|level: f32| level / 255.0).to_vec();
        let image = Tensor::from_vec(planes, (1, 3, 1, 2), &Device::Cpu).expect("the sizes agree");
        assert_eq!(samples(&image, BitDepth::Eight).expect("is a picture"), [10, 30, 50, 20, 40, 60]);
    }

    #[test]
    fn a_file_without_metadata_is_said_to_be_one() {
        let image = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).expect("can be made");
        let bytes = encode_preview(&image).expect("can be encoded");
        assert!(is_preview(&bytes) && is_preview(&bytes[..bytes.len() - 12]));
        assert!(!is_preview(b"\x89PNG") && !is_preview(b"GIF89a"));
        assert!(read(&bytes).expect_err("there is none").starts_with("holds no metadata of fresco"));
        assert_eq!(read(b"GIF89a").expect_err("there is none"), "is neither a PNG nor a safetensors file");
        assert!(read(&bytes[..20]).expect_err("there is none").starts_with("is a damaged PNG"));
    }
}
