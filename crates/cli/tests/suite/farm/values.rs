//! Values that are not finite, and disks that are full.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::{Farm, check_order, check_steps, is_running, says, step};
use crate::desk::{safetensors_file, tensors};

/// Takes a folder of the coordinator away while a picture is made, until it has said so, and gives it back.
fn check_without(folder: &str, seed: u64) {
    let farm = Farm::start();
    let [folder, aside] = [folder, "data/aside"].map(|name| farm.desk.path(name));
    let _worker = farm.worker("a");
    let job = farm.submit(seed);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 1));
    std::fs::rename(&folder, &aside).expect("a folder can be renamed");
    assert!(watch.until(|event| says(event, "free some space")));
    std::fs::rename(&aside, &folder).expect("a folder can be renamed");
    check_steps(watch.rest());
    farm.check_picture(&job, seed);
}

#[test]
fn a_picture_the_disk_has_no_room_for_is_kept_until_it_has() {
    check_without("data/pictures", 14);
}

#[test]
fn a_picture_whose_checkpoints_the_disk_has_no_room_for_waits_and_says_so() {
    check_without("data/checkpoints", 22);
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
const KEYS: &str = "transformer_blocks.1.attn1.to_k.weight";

/// Copies of a model of one name, one for each worker: the demo, with the keys of one block in f32.
fn models<const N: usize>(farm: &Farm) -> [PathBuf; N] {
    let copy = farm.desk.demo_copy();
    let mut entries = tensors(&std::fs::read(copy.join(WEIGHTS)).expect("the weights are there"));
    let keys = entries.iter_mut().find(|entry| entry.name == KEYS).expect("the tensor is there");
    let n = keys.shape.iter().product::<usize>();
    keys.dtype = Dtype::F32;
    keys.bytes = (0..n).flat_map(|idx| ((idx % 7) as f32 * 0.02 - 0.06).to_le_bytes()).collect();
    std::fs::write(copy.join(WEIGHTS), safetensors_file(&entries)).expect("they can be written");
    std::array::from_fn(|idx| {
        let dir = farm.desk.path(&format!("{idx}/copy"));
        crate::desk::copy_folder(&copy, &dir);
        dir
    })
}

/// Makes the keys so large that what they give is not finite. A worker that has joined has told the hash of its
/// weights and maps them, so this is what happens to it when memory or a disk goes bad behind its back.
fn poison(model: &Path) {
    let path = model.join(WEIGHTS);
    let bytes = std::fs::read(&path).expect("the weights are there");
    let file = SafeTensors::deserialize(&bytes).expect("is a safetensors file");
    let keys = file.tensor(KEYS).expect("the tensor is there").data();
    let offset = keys.as_ptr() as usize - bytes.as_ptr() as usize;
    let mut file = std::fs::File::options().write(true).open(&path).expect("can be opened");
    file.seek(SeekFrom::Start(offset as u64)).expect("is that long");
    file.write_all(&f32::MAX.to_le_bytes().repeat(keys.len() / 4)).expect("can be written");
}

fn submit(farm: &Farm, model: &Path, seed: &str) -> String {
    let model = model.to_str().expect("it is UTF-8");
    let run = farm.call(&[&["submit"], &super::PICTURE[..], &["--model", model, "--seed", seed]].concat());
    run.quiet().stdout.trim().to_owned()
}

#[test]
fn a_value_that_is_not_finite_on_one_rank_is_caught_in_its_step_and_the_picture_made_by_others() {
    let farm = Farm::start();
    let models: [PathBuf; 2] = models(&farm);
    let worker = |name: &str, idx: usize| {
        let worker = farm.worker_with(name, &["--model", models[idx].to_str().expect("it is UTF-8")]);
        worker.until_it_says("joined");
        worker
    };
    let _workers = [worker("good", 0), worker("bad", 1)];
    poison(&models[1]);
    let job = submit(&farm, &models[0], "20");
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| says(event, "not finite")), "the bad worker had no share");
    let caught = watch.seen.last().expect("it is there").clone();
    assert!(step(&caught) == 0 && says(&caught, "step 1, rank ") && says(&caught, "transformer_blocks.1"), "{caught}");
    assert!(watch.until(|event| is_running(event) && step(event) > 0));
    let again = watch.seen.last().expect("it is there").clone();
    let workers: Vec<&str> =
        again["workers"].as_array().expect("a list").iter().filter_map(|worker| worker.as_str()).collect();
    assert_eq!(workers, ["good"], "{again}");
    let events = watch.rest().to_vec();
    check_steps(&events);
    let n_caught = events.windows(2).filter(|pair| says(&pair[1], "not finite") && !says(&pair[0], "not finite"));
    assert_eq!(n_caught.count(), 1, "{events:?}");
    let model = models[0].to_str().expect("it is UTF-8");
    farm.check_picture_of(&job, &[&super::PICTURE[..], &["--model", model, "--seed", "20"]].concat());
}

#[test]
fn a_value_that_is_not_finite_again_elsewhere_fails_the_image_by_step_rank_and_worker() {
    let farm = Farm::start();
    let models: [PathBuf; 2] = models(&farm);
    let workers = [0, 1].map(|idx| {
        let model = models[idx].to_str().expect("it is UTF-8");
        let worker = farm.worker_with(&format!("bad-{idx}"), &["--model", model]);
        worker.until_it_says("joined");
        worker
    });
    models.iter().for_each(|model| poison(model));
    let job = submit(&farm, &models[0], "21");
    let mut watch = farm.watch(&job);
    let events = watch.rest().to_vec();
    check_order(&events);
    let last = events.last().expect("there were events");
    assert_eq!(last["state"], "FAILED", "{last}");
    for part in ["step 1, rank 0: ", "transformer_blocks.1", "not finite", "tried 2 times, last by worker bad-"] {
        assert!(says(last, part), "no `{part}` in {last}");
    }
    assert!(events.iter().all(|event| step(event) == 0), "{events:?}");
    assert_eq!(farm.call(&["wait", &job]).code, Some(4));
    farm.call(&["download", &job]).refused(3, &["no finished picture"]);
    drop(workers);
}
