"""The demo's networks: transformer, text encoder and VAE, and compressed keys and values as an attention processor.

The networks are those of diffusers and transformers, only small. Attention is written as two products and a softmax,
since the fused kernel's backward pass is several times slower than that on a CPU.
"""

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

WIDTH, HEADS, DEPTH = 144, 2, 10
CAPTION_WIDTH = 128
VOCABULARY = 107
RATIO = 2
COMPRESSED_BLOCKS = list(range(DEPTH // 2, DEPTH))
SAMPLE_SIZE = 64  # of the finished model: neighbours are one apart at 512x512
NO_SIZE_CONDITION = {"resolution": None, "aspect_ratio": None}


def autocast(device, enabled=True):
    """bfloat16 where the device computes in it; on other CPUs it is emulated, and several times slower than float32."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native)


def build_vae():
    """AutoencoderKL, 0.98 M parameters; a latent has an eighth of the picture's sides."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=[16, 32, 64, 64],
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        act_fn="silu",
        sample_size=256,
    )


def build_text_encoder():
    """T5 encoder of two layers, 0.34 M parameters."""
    return T5EncoderModel(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=CAPTION_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
        )
    )


def build_transformer(compressed, sample_size=SAMPLE_SIZE):
    """PixArt transformer of 10 blocks, 3.6 M parameters; `compressed` puts K/V compression in the later half.

    Position codes span half of `sample_size` whatever the picture's size: neighbours in a picture of n tokens a side are
    sample_size / 2n apart. No weight depends on it.

    Its start: the output and the cross-attention add nothing, so that training begins with the mean of the data.
    """
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=DEPTH,
        cross_attention_dim=WIDTH,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=CAPTION_WIDTH,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        attention_bias=True,
        interpolation_scale=1,
        use_additional_conditions=False,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    nn.init.normal_(transformer.adaln_single.linear.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.zeros_(block.attn2.to_out[0].bias)
    for index, block in enumerate(transformer.transformer_blocks):
        if compressed and index in COMPRESSED_BLOCKS:
            block.kvc = Compression(WIDTH)
            block.attn1.set_processor(Attention(block.kvc))
        else:
            block.attn1.set_processor(Attention())
        block.attn2.set_processor(Attention())
    return transformer


def load_transformer(transformer, weights):
    """Takes weights from before or after compression was switched on; what compression adds keeps its start."""
    result = transformer.load_state_dict(weights, strict=False)
    if result.unexpected_keys or any("kvc" not in key for key in result.missing_keys):
        raise ValueError(f"weights do not fit the transformer: {result}")


class Compression(nn.Module):
    """Shrinks keys or values by R x R over the grid of tokens; begins as the average of the tokens it joins."""

    def __init__(self, width):
        super().__init__()
        self.sr = nn.Conv2d(width, width, RATIO, RATIO, groups=width)
        self.norm = nn.LayerNorm(width)
        self.sr.weight.data.fill_(1 / RATIO**2)
        self.sr.bias.data.zero_()

    def forward(self, tokens, rows, columns):
        batch, _, width = tokens.shape
        grid = tokens.transpose(1, 2).reshape(batch, width, rows, columns)
        return self.norm(self.sr(grid).flatten(2).transpose(1, 2))


class Attention:
    """Attention processor of diffusers; `compression` is applied to keys and values of self-attention."""

    # Rows and columns of the token grid now computed: `forward` sets it, since a processor sees only a row of tokens.
    grid = (0, 0)

    def __init__(self, compression=None):
        self.compression = compression

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if self.compression is not None:
            key, value = self.compression(key, *Attention.grid), self.compression(value, *Attention.grid)
        batch, n_tokens, width = query.shape

        def heads(tokens):
            tokens = tokens.view(batch, -1, attn.heads, width // attn.heads).transpose(1, 2)
            return tokens.reshape(batch * attn.heads, -1, width // attn.heads)

        scores = torch.bmm(heads(query * (width // attn.heads) ** -0.5), heads(key).transpose(1, 2))
        if attention_mask is not None:
            n_keys = key.shape[1]
            mask = attention_mask.reshape(batch, 1, 1, n_keys).expand(batch, attn.heads, 1, n_keys)
            scores = scores + mask.reshape(batch * attn.heads, 1, n_keys).to(scores.dtype)
        output = torch.bmm(torch.softmax(scores, -1, dtype=scores.dtype), heads(value))
        output = output.view(batch, attn.heads, n_tokens, -1).transpose(1, 2).reshape(batch, n_tokens, width)
        return attn.to_out[1](attn.to_out[0](output))


def predict_noise(transformer, latents, timesteps, embeds, mask):
    """The noise in the latents [n, 4, h, w]. The four channels that would be a learned variance are left out."""
    Attention.grid = (latents.shape[2] // 2, latents.shape[3] // 2)
    output = transformer(
        latents,
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        timestep=timesteps,
        added_cond_kwargs=NO_SIZE_CONDITION,
    )
    return output.sample[:, :4]
