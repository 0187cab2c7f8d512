//! Images and the memory of workers.

use super::*;

const GIB: u64 = 1 << 30;

fn with_memory(name: &str, bytes: u64) -> Hello {
    Hello { memory_bytes: Some(bytes), flop_per_s: 1e12, ..hello(name) }
}

fn large() -> JobSpec {
    let mut spec = spec(1);
    spec.request.size = ImageSize { width_px: 4096, height_px: 4096 };
    spec
}

#[test]
fn an_image_goes_to_a_worker_that_has_room_for_it_though_another_is_faster() {
    let mut farm = Farm::new();
    farm.join_as("fast", Hello { flop_per_s: 1e13, ..with_memory("fast", GIB) });
    farm.join_as("large", with_memory("large", 64 * GIB));
    let job = farm.ask("", large()).expect("is taken");
    assert_eq!(farm.seats(&job, 0), ["large"]);
    let small = farm.submit(1);
    assert_eq!(farm.seats(&small, 0), ["fast"]);
}

#[test]
fn an_image_nobody_has_room_for_waits_and_says_what_it_needs_and_what_there_is() {
    let mut farm = Farm::new();
    farm.join_as("a", with_memory("a", 2 * GIB));
    let job = farm.ask("", large()).expect("is taken");
    let message = farm.image(&job, 0).message.clone();
    assert!(message.starts_with("needs 18.") || message.starts_with("needs 20."), "{message}");
    assert!(message.contains("the largest worker a offers 2.0 GiB"), "{message}");
    let small = farm.submit(1);
    assert_eq!(farm.seats(&small, 0), ["a"], "what is smaller does not wait for it");
    let revision = |farm: &Farm| farm.control.job(&job).map(|job| job.revision);
    let before = revision(&farm);
    farm.wait_alive(5_000);
    assert_eq!(revision(&farm), before, "it is said once");
    farm.join_as("b", with_memory("b", 64 * GIB));
    assert_eq!((farm.seats(&job, 0), farm.image(&job, 0).message.as_str()), (vec!["b".to_owned()], ""));
}

#[test]
fn an_image_nobody_has_room_for_alone_is_cut_among_as_few_as_have() {
    let mut farm = Farm::new();
    for name in ["a", "b", "c"] {
        farm.join_as(name, with_memory(name, 14 * GIB));
    }
    let job = farm.ask("", large()).expect("is taken");
    assert!(farm.seats(&job, 0).len() >= 2, "{:?}", farm.seats(&job, 0));
}
