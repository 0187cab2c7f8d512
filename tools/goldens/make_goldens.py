"""Writes a small PixArt-Sigma model with random weights, and what the reference implementations compute for it.

    make_goldens.py OUT --seed 11 [--heads 4 --head-dim 24 --layers 4 --ratio 2 --kv-layers 2,3 ...]

Needs torch, diffusers, transformers, sentencepiece and safetensors. Writes

    OUT/model/              a pipeline folder in the diffusers layout; the tokenizer is `spiece.model` alone
    OUT/model-kv/           the same with compressed keys and values in some blocks
    OUT/original.pth        with --original: the weights of model-kv under the names of the original repository
    OUT/cases.json          what was asked: prompts, guidance, steps, size, seed of the noise
    OUT/golden.safetensors  token ids, caption, noise, and for both folders forwards, every step's latents, the image

Everything is computed in float32 on one thread. With `--dtype` the weights are first rounded to that storage, so the
values are those of a program that reads the rounded files and calculates in float32.
"""

import argparse
import copy
import io
import json
import os
import shutil

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5EncoderModel

STORAGE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_TOKENS = 300
LATENT_CHANNELS = 4
NO_SIZE_CONDITION = {"resolution": None, "aspect_ratio": None}
CORPUS = [
    "a snowy mountain at dusk with two moons over a calm sea",
    "concept art of a ruined castle in thick fog",
    "the quick brown fox jumps over the lazy dog",
    "neon city skyline at night, heavy rain",
    "portrait of an old sailor, oil painting",
    "red desert dunes under a ringed planet",
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights")
    parser.add_argument("--noise-seed", type=int, help="seed of the initial noise (default: SEED + 2)")

    model = parser.add_argument_group("transformer")
    model.add_argument("--heads", type=int, default=4)
    model.add_argument("--head-dim", type=int, default=24)
    model.add_argument("--layers", type=int, default=4)
    model.add_argument("--ratio", type=int, default=2, help="R: compressed keys and values shrink by R x R")
    model.add_argument("--kv-layers", type=numbers, help="blocks that compress, such as 0,2 (default: the later half)")
    model.add_argument("--sample-size", type=int, default=16, help="latent side the position code is based on")
    model.add_argument("--interp", type=float, default=1.0, help="divisor of the position coordinates")

    text = parser.add_argument_group("text encoder")
    text.add_argument("--caption", type=int, default=48, help="its width")
    text.add_argument("--text-layers", type=int, default=3)

    vae = parser.add_argument_group("VAE")
    vae.add_argument("--vae", type=numbers, default=[16, 16, 32, 32], help="width of each level, finest first; any number of levels")
    vae.add_argument("--groups", type=int, default=8, help="groups of every group norm")
    vae.add_argument("--layers-per-block", type=int, default=2, help="resnets a level (the decoder has one more)")

    files = parser.add_argument_group("files")
    files.add_argument("--dtype", choices=STORAGE, default="fp32", help="storage the weights are rounded to")
    files.add_argument("--shard", type=int, default=1, metavar="N", help="files for transformer and text encoder, with an index")
    files.add_argument("--original", action="store_true", help="write original.pth too")

    case = parser.add_argument_group("what is rendered")
    case.add_argument("--prompt", default="A snowy mountain at dusk, two moons")
    case.add_argument("--negative", default="")
    case.add_argument("--guidance", type=float, default=4.5)
    case.add_argument("--steps", type=int, default=6)
    case.add_argument("--size", default="192x128", help="WIDTHxHEIGHT in pixels")

    args = parser.parse_args()
    if args.noise_seed is None:
        args.noise_seed = args.seed + 2
    if args.kv_layers is None:
        args.kv_layers = list(range(args.layers // 2, args.layers))
    args.width, args.height = (int(side) for side in args.size.split("x"))
    return args


def numbers(text):
    return [int(part) for part in text.split(",")]


# Building the three networks --------------------------------------------------------------------------------------


def train_tokenizer(folder):
    """A Unigram vocabulary over a few sentences, with the special ids of T5."""
    os.makedirs(folder, exist_ok=True)
    model = io.BytesIO()  # given a path, the trainer would write it into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 40), model_writer=model, vocab_size=64, hard_vocab_limit=False, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, minloglevel=2)
    with open(os.path.join(folder, "spiece.model"), "wb") as file:
        file.write(model.getvalue())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": MAX_TOKENS, "extra_ids": 0, **special, "legacy": True}
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "special_tokens_map.json"), special)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def build_transformer(args):
    return PixArtTransformer2DModel(
        num_attention_heads=args.heads, attention_head_dim=args.head_dim, num_layers=args.layers,
        cross_attention_dim=args.heads * args.head_dim, caption_channels=args.caption, in_channels=LATENT_CHANNELS, out_channels=8,
        patch_size=2, sample_size=args.sample_size, interpolation_scale=args.interp, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, attention_bias=True, use_additional_conditions=False).eval()


def build_text_encoder(args, vocabulary):
    return T5EncoderModel(T5Config(
        vocab_size=vocabulary, d_model=args.caption, d_kv=8, d_ff=2 * args.caption, num_layers=args.text_layers, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0)).eval()


def build_vae(args):
    levels = len(args.vae)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, block_out_channels=args.vae,
        layers_per_block=args.layers_per_block, norm_num_groups=args.groups, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, act_fn="silu", sample_size=128, scaling_factor=0.13025).eval()


def build_sampler():
    return DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000, algorithm_type="dpmsolver++",
        solver_order=2, solver_type="midpoint", lower_order_final=True, prediction_type="epsilon", timestep_spacing="linspace")


class KvCompression(nn.Module):
    """The original repository's compression: a depth-wise convolution of kernel = stride = R, then a layer norm."""

    def __init__(self, width, ratio):
        super().__init__()
        self.sr = nn.Conv2d(width, width, ratio, ratio, groups=width)
        self.sr_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens, grid):
        n, _, width = tokens.shape
        picture = tokens.transpose(1, 2).reshape(n, width, *grid)
        return self.sr_norm(self.sr(picture).flatten(2).transpose(1, 2))


class CompressedAttention:
    """A diffusers attention processor: keys and values pass through one and the same compression."""

    grid = None  # rows and columns of tokens, set before every forward

    def __init__(self, compression):
        self.compression = compression

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        n, tokens, width = hidden_states.shape

        def heads(x):
            return x.reshape(n, -1, attn.heads, width // attn.heads).transpose(1, 2)

        q = attn.to_q(hidden_states)
        k = self.compression(attn.to_k(hidden_states), self.grid)
        v = self.compression(attn.to_v(hidden_states), self.grid)
        mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return attn.to_out[0](mixed.transpose(1, 2).reshape(n, tokens, width))


# Random weights ---------------------------------------------------------------------------------------------------
# Every tensor is drawn anew: freshly initialised modules have zero projections and constant norms, which hide mistakes.


def randomise_transformer(transformer, generator):
    for name, p in transformer.named_parameters():
        scale = 0.3 if "scale_shift_table" in name else 0.5 / max(1, p.shape[-1]) ** 0.5 if p.ndim > 1 else 0.1
        p.copy_(torch.randn(p.shape, generator=generator) * scale)


def randomise_vae(vae, generator):
    for name, p in vae.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            p.copy_(noise / p[0].numel() ** 0.5)
        else:
            p.copy_(1 + 0.2 * noise if "weight" in name else 0.1 * noise)


def randomise_text_encoder(text_encoder, generator):
    for name, p in text_encoder.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_(1 + 0.2 * noise)
        elif "relative" in name:
            p.copy_(noise * 0.5)
        else:
            p.copy_(noise if "shared" in name or "embed" in name else noise / p.shape[-1] ** 0.5)


def randomise_compression(compression, ratio, generator):
    centre = {"sr.weight": 1 / ratio**2, "sr_norm.weight": 1.0}
    for name, p in compression.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3 / ratio + centre.get(name, 0))


def round_weights(module, dtype):
    for p in module.parameters():
        p.copy_(p.to(dtype).float())


def fit_output_layer(transformer, caption, generator):
    """Fits the last layer so that pure noise is roughly recognised as noise.

    Samples then stay bounded, and every layer matters to them.
    """
    width = transformer.proj_out.in_features
    hidden, wanted, seen = [], [], {}
    hook = transformer.proj_out.register_forward_hook(lambda module, inputs, output: seen.update(hidden=inputs[0]))
    for t in (999, 900, 700, 400):
        x = torch.randn(12, LATENT_CHANNELS, 16, 16, generator=generator)
        transformer(
            x, encoder_hidden_states=caption["embeds"].expand(12, -1, -1), encoder_attention_mask=caption["mask"].expand(12, -1),
            timestep=torch.full((12,), t), added_cond_kwargs=NO_SIZE_CONDITION)
        hidden.append(seen["hidden"].reshape(-1, width))
        wanted.append(x.reshape(12, LATENT_CHANNELS, 8, 2, 8, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16))
    hook.remove()
    hidden, wanted = torch.cat(hidden), torch.cat(wanted)
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], 1)
    ridge = 1e-2 * len(hidden) * torch.eye(width + 1)
    solution = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.T @ wanted)
    print("residual of the fitted output layer:", (hidden @ solution - wanted).pow(2).mean().item())
    # [2 x 2 cells, 8 channels, width]: the first four channels are the predicted noise.
    transformer.proj_out.weight.view(4, 8, width)[:, :4] = solution[:-1].T.reshape(4, 4, width)
    transformer.proj_out.bias.view(4, 8)[:, :4] = solution[-1].reshape(4, 4)


# Files ------------------------------------------------------------------------------------------------------------


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)


def save_folder(folder, networks, sampler, dtype):
    for name, network in networks.items():
        # The copy is converted, never the network: `.to` would round buffers that are no part of the files.
        copy.deepcopy(network).to(dtype).save_pretrained(os.path.join(folder, name))
    sampler.save_pretrained(os.path.join(folder, "scheduler"))
    write_json(os.path.join(folder, "model_index.json"), {
        "_class_name": "PixArtSigmaPipeline", "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"]})


def save_compressed_folder(plain, folder, compressions, case, dtype):
    """Copies a model folder and adds the tensors of the compression to its transformer."""
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    path = os.path.join(folder, "transformer", "diffusion_pytorch_model.safetensors")
    tensors = load_file(path)
    for layer, compression in compressions.items():
        for name, p in compression.named_parameters():
            tensors[f"transformer_blocks.{layer}.attn1.{name}"] = p.detach().to(dtype)
    save_file(tensors, path)
    config_path = os.path.join(folder, "transformer", "config.json")
    with open(config_path) as file:
        config = json.load(file)
    config["kv_compress"] = case["kv"]
    write_json(config_path, config)
    return tensors


def split_into_shards(path, n_shards):
    """Replaces one safetensors file by `n_shards` of about equal size and an index, as published folders have them."""
    tensors = load_file(path)
    total = sum(t.nbytes for t in tensors.values())
    stem = path.removesuffix(".safetensors")
    shards, so_far = [{} for _ in range(n_shards)], 0
    for name, tensor in tensors.items():
        shards[min(n_shards - 1, so_far * n_shards // total)][name] = tensor
        so_far += tensor.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        shard_path = f"{stem}-{number:05}-of-{n_shards:05}.safetensors"
        save_file(shard, shard_path, metadata={"format": "pt"})
        index["weight_map"].update({name: os.path.basename(shard_path) for name in shard})
    write_json(path + ".index.json", index)
    os.remove(path)


def original_names(tensors, layers, n_caption):
    """The tensors of a transformer folder under the names of the original repository, with its two unused buffers."""
    t, out = tensors, {}
    width = t["scale_shift_table"].shape[1]
    out["pos_embed"] = torch.randn(1, 64, width)
    out["y_embedder.y_embedding"] = torch.randn(MAX_TOKENS, n_caption)

    def rename(new, old):
        for end in ("weight", "bias"):
            out[f"{new}.{end}"] = t[f"{old}.{end}"]

    def join(new, old, parts):
        for end in ("weight", "bias"):
            out[f"{new}.{end}"] = torch.cat([t[f"{old}.{part}.{end}"] for part in parts])

    rename("x_embedder.proj", "pos_embed.proj")
    rename("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    rename("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    rename("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1")
    rename("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2")
    rename("t_block.1", "adaln_single.linear")
    rename("final_layer.linear", "proj_out")
    out["final_layer.scale_shift_table"] = t["scale_shift_table"]
    for layer in range(layers):
        new, old = f"blocks.{layer}", f"transformer_blocks.{layer}"
        out[f"{new}.scale_shift_table"] = t[f"{old}.scale_shift_table"]
        join(f"{new}.attn.qkv", f"{old}.attn1", ["to_q", "to_k", "to_v"])
        rename(f"{new}.attn.proj", f"{old}.attn1.to_out.0")
        rename(f"{new}.cross_attn.q_linear", f"{old}.attn2.to_q")
        join(f"{new}.cross_attn.kv_linear", f"{old}.attn2", ["to_k", "to_v"])
        rename(f"{new}.cross_attn.proj", f"{old}.attn2.to_out.0")
        rename(f"{new}.mlp.fc1", f"{old}.ff.net.0.proj")
        rename(f"{new}.mlp.fc2", f"{old}.ff.net.2")
        if f"{old}.attn1.sr.weight" in t:
            rename(f"{new}.attn.sr", f"{old}.attn1.sr")
            rename(f"{new}.attn.norm", f"{old}.attn1.sr_norm")
    return out


# Reference values -------------------------------------------------------------------------------------------------


def encode(prompt, pieces, text_encoder):
    """Token ids padded to 300, their mask, and the encoded caption. Prompts are lower-cased and stripped, nothing else."""
    ids = pieces.encode(prompt.lower().strip())[: MAX_TOKENS - 1] + [1]
    padding = MAX_TOKENS - len(ids)
    mask = torch.tensor([[1] * len(ids) + [0] * padding])
    ids = torch.tensor([ids + [0] * padding])
    return {"ids": ids, "mask": mask, "embeds": text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state}


def forward(transformer, x, t, caption):
    CompressedAttention.grid = (x.shape[2] // 2, x.shape[3] // 2)
    return transformer(
        x, encoder_hidden_states=caption["embeds"], encoder_attention_mask=caption["mask"], timestep=torch.tensor([t]),
        added_cond_kwargs=NO_SIZE_CONDITION).sample


def render(tag, networks, sampler, args, noise, caption, negative):
    """Two forwards, every step's latents and the image, named `tag.…`; and the sampler's time grid."""
    transformer, vae, values = networks["transformer"], networks["vae"], {}
    values[f"{tag}.forward_t949"] = forward(transformer, noise, 949, caption)
    values[f"{tag}.forward_t0"] = forward(transformer, noise, 0, caption)
    sampler.set_timesteps(args.steps)
    values["timesteps"], values["sigmas"] = sampler.timesteps.clone(), sampler.sigmas.clone()
    x = noise.clone()
    for i, t in enumerate(sampler.timesteps):
        without = forward(transformer, x, int(t), negative)[:, :LATENT_CHANNELS]
        with_prompt = forward(transformer, x, int(t), caption)[:, :LATENT_CHANNELS]
        x = sampler.step(without + args.guidance * (with_prompt - without), t, x, return_dict=False)[0]
        values[f"{tag}.latents_step{i}"] = x.clone()
    values[f"{tag}.final_latents"] = x
    image = vae.decode(x / vae.config.scaling_factor).sample
    values[f"{tag}.image"] = (image / 2 + 0.5).clamp(0, 1)
    return values


def check_against_pipeline(image, networks, sampler, args, noise, caption, negative):
    """The packaged pipeline must give the image of the loop above."""
    pipeline = PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=networks["vae"], transformer=networks["transformer"], scheduler=sampler)
    pipeline.set_progress_bar_config(disable=True)
    packaged = pipeline(
        prompt=None, negative_prompt=None, prompt_embeds=caption["embeds"], prompt_attention_mask=caption["mask"],
        negative_prompt_embeds=negative["embeds"], negative_prompt_attention_mask=negative["mask"], latents=noise,
        height=args.height, width=args.width, num_inference_steps=args.steps, guidance_scale=args.guidance,
        use_resolution_binning=False, output_type="np").images[0]
    difference = np.abs(packaged.transpose(2, 0, 1) - image[0].numpy()).max()
    print("largest difference from the packaged pipeline:", difference)
    assert difference < 1e-4, "the loop and the packaged pipeline disagree"


def main():
    args = parse_arguments()
    dtype = STORAGE[args.dtype]
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.set_verbosity_error()
    plain_folder, compressed_folder = os.path.join(args.out, "model"), os.path.join(args.out, "model-kv")

    pieces = train_tokenizer(os.path.join(plain_folder, "tokenizer"))
    transformer, vae = build_transformer(args), build_vae(args)
    networks = {"transformer": transformer, "text_encoder": build_text_encoder(args, pieces.get_piece_size()), "vae": vae}
    sampler = build_sampler()
    generator = torch.Generator().manual_seed(args.seed + 1)
    randomise_transformer(transformer, generator)
    randomise_vae(vae, generator)
    randomise_text_encoder(networks["text_encoder"], generator)
    for network in networks.values():
        round_weights(network, dtype)
    caption, negative = (encode(text, pieces, networks["text_encoder"]) for text in (args.prompt, args.negative))
    fit_output_layer(transformer, caption, generator)
    round_weights(transformer, dtype)
    save_folder(plain_folder, networks, sampler, dtype)

    case = {
        "prompt": args.prompt, "negative": args.negative, "guidance": args.guidance, "steps": args.steps,
        "width": args.width, "height": args.height,
        "kv": {"scale_factor": args.ratio, "layers": args.kv_layers, "sampling": "conv"}, "noise_seed": args.noise_seed}
    write_json(os.path.join(args.out, "cases.json"), case)

    factor = 2 ** (len(args.vae) - 1)
    shape = (1, LATENT_CHANNELS, args.height // factor, args.width // factor)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(args.noise_seed))
    values = {
        "token_ids": caption["ids"], "token_mask": caption["mask"], "text_embeds": caption["embeds"],
        "negative_ids": negative["ids"], "negative_mask": negative["mask"], "negative_embeds": negative["embeds"],
        "initial_latents": noise}
    values.update(render("plain", networks, sampler, args, noise, caption, negative))
    check_against_pipeline(values["plain.image"], networks, sampler, args, noise, caption, negative)

    compressions = {}
    for layer in args.kv_layers:
        compression = KvCompression(args.heads * args.head_dim, args.ratio).eval()
        randomise_compression(compression, args.ratio, generator)
        round_weights(compression, dtype)
        compressions[layer] = compression
    tensors = save_compressed_folder(plain_folder, compressed_folder, compressions, case, dtype)
    for layer, compression in compressions.items():
        transformer.transformer_blocks[layer].attn1.set_processor(CompressedAttention(compression))
    values.update(render("kv", networks, sampler, args, noise, caption, negative))
    save_file({name: value.contiguous() for name, value in values.items()}, os.path.join(args.out, "golden.safetensors"))

    if args.original:
        state = original_names(tensors, args.layers, args.caption)
        torch.save({"state_dict": state, "epoch": 1}, os.path.join(args.out, "original.pth"))
    if args.shard > 1:
        for folder in (plain_folder, compressed_folder):
            split_into_shards(os.path.join(folder, "transformer", "diffusion_pytorch_model.safetensors"), args.shard)
            split_into_shards(os.path.join(folder, "text_encoder", "model.safetensors"), args.shard)

    moved = (values["kv.final_latents"] - values["plain.final_latents"]).abs().mean().item()
    print("compression moves the latents by", moved, "on average")
    for tag in ("plain", "kv"):
        spread = [values[f"{tag}.{name}"].std().item() for name in ("final_latents", "image")]
        print(f"{tag}: standard deviation of latents and image", spread)


if __name__ == "__main__":
    main()
