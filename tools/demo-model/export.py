"""Writes trained parts as a model folder: diffusers layout, fp16 safetensors, at most 16 MB.

    export.py VAE.pt TRANSFORMER.pt OUT

Keys and values that are compressed get the published names, `attn1.sr` and `attn1.sr_norm`, and the transformer's config
says which blocks have them.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import save_file

import networks
import tokenizer

NATURAL_SIZE = "512x512"
SCALING_FACTOR = 0.14138
MAX_BYTES = 16 * 1024 * 1024
PARTS = {
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZER_CONFIG = {"tokenizer_class": "T5TokenizerFast", "model_max_length": 300, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def is_compressed(weights):
    return any("kvc" in name for name in weights)


def export(vae_state, transformer_state, out, scaling_factor=SCALING_FACTOR, natural_size=NATURAL_SIZE):
    """Writes the moving averages of both checkpoints to the folder `out`."""
    vae = networks.build_vae()
    vae.load_state_dict(vae_state["ema"])
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.half().save_pretrained(out / "vae")

    text_encoder = networks.build_text_encoder()
    text_encoder.load_state_dict(transformer_state["ema_t5"])
    text_encoder.half().save_pretrained(out / "text_encoder")

    weights = transformer_state["ema_dit"]
    transformer = networks.build_transformer(is_compressed(weights))
    networks.load_transformer(transformer, weights)
    transformer.save_config(out / "transformer")
    renamed = {name.replace("kvc.sr.", "attn1.sr.").replace("kvc.norm.", "attn1.sr_norm."): tensor for name, tensor in weights.items()}
    halves = {name: tensor.half().contiguous() for name, tensor in renamed.items()}
    save_file(halves, out / "transformer/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    if is_compressed(weights):
        path = out / "transformer/config.json"
        config = json.loads(path.read_text())
        config["kv_compress"] = {"scale_factor": networks.RATIO, "layers": networks.COMPRESSED_BLOCKS, "sampling": "conv"}
        path.write_text(json.dumps(config, indent=2) + "\n")

    DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").save_pretrained(out / "scheduler")
    (out / "tokenizer").mkdir(exist_ok=True)
    tokenizer.build().save(str(out / "tokenizer/tokenizer.json"))
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=1) + "\n")
    index = {"_class_name": "PixArtSigmaPipeline", "_diffusers_version": "0.30.0", "_fresco_natural_size": natural_size} | PARTS
    (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")

    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > MAX_BYTES:
        raise ValueError(f"the folder has {size} bytes, more than {MAX_BYTES}")


def main():
    vae_path, transformer_path, out = map(Path, sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    export(torch.load(vae_path), torch.load(transformer_path), out)


if __name__ == "__main__":
    main()
