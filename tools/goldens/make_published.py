"""Writes what diffusers computes for small models with the configs of the published ones.

    make_published.py tests/goldens

Needs torch, diffusers, transformers, sentencepiece and safetensors. The weights are those of tests/goldens/a/model; only
configs differ, in the keys and values that the published folders have, but for widths and depths. Writes

    published/configs.json       for each model the pipeline's class and the configs of all parts
    published/golden.safetensors for each model the latents and the picture, `NAME.latents` and `NAME.image`, and with
                                 the weights rounded to fp16 `NAME.fp16.latents`

Everything is computed in float32 on one thread by diffusers' own pipelines.
"""

import json
import os
import shutil
import sys
import tempfile

import sentencepiece
import torch
from diffusers import (
    AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel)
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

CASE = {"prompt": "a snowy mountain at dusk", "negative": "fog", "seed": 5, "steps": 3, "guidance": 4.5, "width": 64, "height": 48}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

# As the converter of 2024 wrote them.
OLD_TRANSFORMER = {
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.27.0.dev0", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_type": "default", "double_self_attention": False, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000, "num_vector_embeds": None, "only_cross_attention": False, "out_channels": 8, "patch_size": 2,
    "upcast_attention": False, "use_linear_projection": False}
SAMPLER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.22.0.dev0", "algorithm_type": "dpmsolver++",
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False, "lambda_min_clipped": float("-inf"), "lower_order_final": True, "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0,
    "thresholding": False, "timestep_spacing": "linspace", "trained_betas": None, "use_karras_sigmas": False,
    "use_lu_lambdas": False, "variance_type": None}
TEXT = {
    "_name_or_path": "t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
    "num_decoder_layers": 24, "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "float32",
    "transformers_version": "4.21.1", "use_cache": True}
VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "out_channels": 3, "up_block_types": ["UpDecoderBlock2D"] * 4}
SIGMA_VAE = VAE | {
    "_diffusers_version": "0.25.0.dev0", "force_upcast": False, "latents_mean": None, "latents_std": None, "sample_size": 512,
    "scaling_factor": 0.13025}
ALPHA_VAE = VAE | {"_diffusers_version": "0.4.2", "sample_size": 256}  # older than the key for the scaling

# What the published transformers' configs say beside that.
MODELS = {
    "sigma-256": {"sample_size": 32, "interpolation_scale": 0.5, "use_additional_conditions": False},
    "sigma-512": {"sample_size": 64, "interpolation_scale": 1, "use_additional_conditions": False},
    "sigma-1024": {"sample_size": 128, "interpolation_scale": 2, "use_additional_conditions": False},
    "sigma-2k": {"sample_size": 256, "interpolation_scale": 4},
    "alpha-512": {"sample_size": 64},
    "alpha-1024": {"sample_size": 128},  # with embedders for the picture's size, which are not supported here
}


def read_json(path):
    with open(path) as file:
        return json.load(file)


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def configs(name, model):
    """All configs of one model: the published keys, with the widths of the weights in `model`."""
    def sized(part, values, keys):
        own = read_json(os.path.join(model, part, "config.json"))
        return values | {key: own[key] for key in keys}

    return {
        "pipeline": "PixArtSigmaPipeline" if name.startswith("sigma") else "PixArtAlphaPipeline",
        "transformer": sized("transformer", OLD_TRANSFORMER | MODELS[name], [
            "attention_head_dim", "caption_channels", "cross_attention_dim", "num_attention_heads", "num_layers"]),
        "vae": sized("vae", SIGMA_VAE if name.startswith("sigma") else ALPHA_VAE, [
            "block_out_channels", "layers_per_block", "norm_num_groups"]),
        "text_encoder": sized("text_encoder", TEXT, ["d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size"]),
        "scheduler": SAMPLER,
    }


def write_folder(folder, model, parts, dtype):
    for part, file in WEIGHTS.items():
        os.makedirs(os.path.join(folder, part))
        write_json(os.path.join(folder, part, "config.json"), parts[part])
        tensors = load_file(os.path.join(model, part, f"{file}.safetensors"))
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(tensors, os.path.join(folder, part, f"{file}.safetensors"), metadata={"format": "pt"})
    os.makedirs(os.path.join(folder, "scheduler"))
    write_json(os.path.join(folder, "scheduler", "scheduler_config.json"), parts["scheduler"])
    shutil.copytree(os.path.join(model, "tokenizer"), os.path.join(folder, "tokenizer"))


def encode(prompt, pieces, text_encoder, most_tokens):
    ids = pieces.encode(prompt)[: most_tokens - 1] + [1]
    mask = torch.tensor([[1] * len(ids) + [0] * (most_tokens - len(ids))])
    ids = torch.tensor([ids + [0] * (most_tokens - len(ids))])
    return text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def render(folder, pipeline):
    networks = {
        "transformer": PixArtTransformer2DModel.from_pretrained(os.path.join(folder, "transformer"), torch_dtype=torch.float32),
        "vae": AutoencoderKL.from_pretrained(os.path.join(folder, "vae"), torch_dtype=torch.float32),
        "scheduler": DPMSolverMultistepScheduler.from_pretrained(os.path.join(folder, "scheduler"))}
    text_encoder = T5EncoderModel.from_pretrained(os.path.join(folder, "text_encoder"), dtype=torch.float32).eval()
    pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer", "spiece.model"))
    is_sigma = pipeline == "PixArtSigmaPipeline"
    (prompt, mask), (negative, negative_mask) = (
        encode(CASE[key], pieces, text_encoder, 300 if is_sigma else 120) for key in ("prompt", "negative"))
    packaged = (PixArtSigmaPipeline if is_sigma else PixArtAlphaPipeline)(tokenizer=None, text_encoder=None, **networks)
    packaged.set_progress_bar_config(disable=True)
    latents = packaged(
        prompt=None, negative_prompt=None, prompt_embeds=prompt, prompt_attention_mask=mask, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask, generator=torch.Generator().manual_seed(CASE["seed"]),
        height=CASE["height"], width=CASE["width"], num_inference_steps=CASE["steps"], guidance_scale=CASE["guidance"],
        use_resolution_binning=False, output_type="latent").images
    vae = networks["vae"]
    return latents, (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def main():
    goldens = sys.argv[1]
    model, out = os.path.join(goldens, "a", "model"), os.path.join(goldens, "published")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.set_verbosity_error()
    os.makedirs(out, exist_ok=True)
    described, values = {name: configs(name, model) for name in MODELS}, {}
    for name, parts in described.items():
        if name == "alpha-1024":
            continue
        for dtype, tag in ((torch.float32, name), (torch.float16, f"{name}.fp16")):
            with tempfile.TemporaryDirectory() as folder:
                write_folder(folder, model, parts, dtype)
                latents, image = render(folder, parts["pipeline"])
            values[f"{tag}.latents"] = latents
            if dtype == torch.float32:
                values[f"{tag}.image"] = image
            print(tag, latents.std().item(), image.std().item())
    write_json(os.path.join(out, "configs.json"), {"case": CASE, "models": described})
    save_file({name: value.contiguous() for name, value in values.items()}, os.path.join(out, "golden.safetensors"))


if __name__ == "__main__":
    main()
