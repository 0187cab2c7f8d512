//! Values no model has: each is refused under its key, and none gets as far as arithmetic.

use serde_json::json;

use super::*;

/// Reads `changed` over `good` with `read`; exactly one fault is expected, about `key`.
fn check<T>(good: &Value, changed: Value, key: &str, read: impl Fn(&mut Config<'_>) -> T) {
    let mut values = good.as_object().expect("an object").clone();
    let mut faults = Vec::new();
    read(&mut Config::new("part", values.clone(), &mut faults));
    assert_eq!(faults, Vec::<String>::new(), "as it was");
    values.extend(changed.as_object().expect("an object").clone());
    read(&mut Config::new("part", values, &mut faults));
    assert!(matches!(&faults[..], [fault] if fault.contains(&format!("`{key}`"))), "{changed}: {faults:?}");
}

#[test]
fn a_transformer_s_numbers_have_bounds() {
    let good = json!({"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "caption_channels": 4096});
    for (key, values) in [
        ("num_layers", vec![json!(0), json!(-1), json!(1.5), json!(null), json!("28"), json!(1 << 11), json!(1e300)]),
        ("num_attention_heads", vec![json!(0), json!(u64::MAX), json!([16])]),
        ("caption_channels", vec![json!(null), json!((1 << 20) + 1)]),
        ("sample_size", vec![json!(0), json!(1), json!(u64::MAX), json!("128")]),
        ("interpolation_scale", vec![json!(0), json!(-2.0), json!("2")]),
    ] {
        for value in values {
            check(&good, json!({ key: value }), key, |config| config.dit());
        }
    }
    for kv in
        [json!({}), json!({"scale_factor": 0, "layers": [1]}), json!({"scale_factor": 2, "layers": [28]}), json!(2)]
    {
        check(&good, json!({ "kv_compress": kv }), "kv_compress", |config| config.dit());
    }
}

#[test]
fn a_decoder_s_widths_are_four_numbers() {
    let good = json!({"block_out_channels": [128, 256, 512, 512]});
    for widths in [
        json!([128, 256, 512]),
        json!([128, 256, 512, 512, 512]),
        json!([128, "wide", 256, 512, 512]),
        json!([128, 256.5, 512, 512, 512]),
        json!([0, 256, 512, 512]),
        json!([128, 256, 512, 500]),
        json!([128, 256, 512, u64::MAX]),
        json!(null),
    ] {
        check(&good, json!({ "block_out_channels": widths }), "block_out_channels", |config| config.vae());
    }
    check(&good, json!({"scaling_factor": 0}), "scaling_factor", |config| config.vae());
}

#[test]
fn a_text_encoder_s_buckets_have_bounds() {
    let good = json!({
        "d_model": 64, "num_layers": 2, "vocab_size": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    });
    for (key, value) in [
        ("relative_attention_num_buckets", json!(0)),
        ("relative_attention_num_buckets", json!(u64::MAX)),
        ("relative_attention_max_distance", json!(0)),
        ("num_heads", json!(0)),
        ("d_ff", json!(null)),
        ("feed_forward_proj", json!(null)),
        ("feed_forward_proj", json!("gated-silu")),
        ("dense_act_fn", json!("relu")),
        ("layer_norm_epsilon", json!("NaN")),
        ("model_type", json!("umt5")),
        ("quantization_config", json!({"load_in_4bit": true})),
    ] {
        check(&good, json!({ key: value }), key, |config| config.text());
    }
}

#[test]
fn a_noise_schedule_leaves_some_picture_and_some_noise_at_every_timestep() {
    let good = json!({"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02});
    for (key, values) in [
        ("beta_start", vec![json!(0.0), json!(-1e-4), json!(1.0)]),
        ("beta_end", vec![json!(0.0), json!(2.0), json!("0.02"), json!(0.9999)]),
        ("num_train_timesteps", vec![json!(0), json!(1), json!(999), json!(1 << 21)]),
    ] {
        for value in values {
            check(&good, json!({ key: value }), key, |config| config.schedule());
        }
    }
}

#[test]
fn samplers_that_are_not_computed_here_are_refused_by_key() {
    let good = json!({"lambda_min_clipped": "-Infinity", "variance_type": null, "steps_offset": 1, "lower_order_final": false});
    for (key, value) in [
        ("algorithm_type", json!("sde-dpmsolver++")),
        ("solver_order", json!(3)),
        ("solver_type", json!("heun")),
        ("prediction_type", json!("v_prediction")),
        ("timestep_spacing", json!("trailing")),
        ("final_sigmas_type", json!("sigma_min")),
        ("beta_schedule", json!("squaredcos_cap_v2")),
        ("use_karras_sigmas", json!(true)),
        ("use_flow_sigmas", json!(true)),
        ("thresholding", json!(true)),
        ("rescale_betas_zero_snr", json!(true)),
        ("variance_type", json!("learned_range")),
        ("lambda_min_clipped", json!(-5.0)),
        ("lambda_min_clipped", json!("NaN")),
        ("trained_betas", json!(vec![0.01; 1000])),
        ("_class_name", json!("LCMScheduler")),
    ] {
        check(&good, json!({ key: value }), key, |config| config.schedule());
    }
    // No timestep is noisier.
    let mut faults = Vec::new();
    let values = json!({"lambda_min_clipped": -5.1});
    Config::new("part", values.as_object().expect("an object").clone(), &mut faults).schedule();
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn layers_that_are_not_computed_here_are_refused_by_key() {
    let good = json!({"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "caption_channels": 4096});
    for (key, value) in [
        ("activation_fn", json!("geglu")),
        ("norm_type", json!("layer_norm")),
        ("attention_type", json!("gated")),
        ("patch_size", json!(4)),
        ("qk_norm", json!("rms_norm")),
        ("only_cross_attention", json!(true)),
        ("num_vector_embeds", json!(8)),
        ("interpolation_scale", json!("Infinity")),
        ("quantization_config", json!({"quant_method": "bitsandbytes"})),
        ("_class_name", json!("SanaTransformer2DModel")),
    ] {
        check(&good, json!({ key: value }), key, |config| config.dit());
    }
    let good = json!({"block_out_channels": [128, 256, 512, 512]});
    for (key, value) in [
        ("up_block_types", json!(["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"])),
        ("act_fn", json!("gelu")),
        ("latents_mean", json!([0.1, 0.2, 0.3, 0.4])),
        ("shift_factor", json!(0.1)),
        ("scaling_factor", json!("NaN")),
        ("_class_name", json!("AutoencoderTiny")),
    ] {
        check(&good, json!({ key: value }), key, |config| config.vae());
    }
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let mut faults = Vec::new();
    let values = json!({"trained_betas": vec![0.01; 1000]});
    Config::new("scheduler", values.as_object().expect("an object").clone(), &mut faults).schedule();
    assert!(faults.len() == 1 && faults[0].len() < 200, "{faults:?}");
}
