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
    let good = json!({"d_model": 64, "num_layers": 2, "vocab_size": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4});
    for (key, value) in [
        ("relative_attention_num_buckets", json!(0)),
        ("relative_attention_num_buckets", json!(u64::MAX)),
        ("relative_attention_max_distance", json!(0)),
        ("num_heads", json!(0)),
        ("d_ff", json!(null)),
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
