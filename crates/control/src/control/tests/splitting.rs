//! When rows are cut anew by measured speed, and when they are left in peace.

use super::*;

/// Every rank takes a step, `ms` being what each computes for a row of a branch.
fn step(farm: &mut Farm, job: &JobId, n: usize, ms: &[(&str, SessionId, f64)]) -> Vec<Output> {
    let epoch = farm.epoch(job, 0);
    let attempt = farm.control.attempt(epoch).expect("a running image has an attempt").clone();
    let mut outputs = Vec::new();
    for (rank, seat) in attempt.seats.iter().enumerate() {
        let rank = plan::Rank(rank as u16);
        let (_, session, ms) = *ms.iter().find(|(worker, ..)| *worker == seat.0).expect("all paces are given");
        let compute_ms = ms * (attempt.mesh.band(rank).n_rows() * attempt.mesh.branches(rank, true).len()) as f64;
        outputs.extend(farm.hear(Input::StepTaken { worker: seat.clone(), session, epoch, rank, compute_ms }));
    }
    outputs.extend(farm.hear(Input::StepKept { epoch, n_steps_done: n }));
    outputs
}

#[test]
fn a_worker_at_a_fifth_of_its_speed_gets_fewer_rows_and_then_there_is_peace() {
    let mut farm = Farm::new();
    let sessions = ["a", "b", "c"].map(|worker| (worker, farm.join(worker)));
    let job = farm.submit(1);
    let paces: Vec<(&str, SessionId, f64)> =
        sessions.iter().map(|(name, session)| (*name, *session, if *name == "c" { 5.0 } else { 1.0 })).collect();
    let mut n_stops = 0;
    for n in 1..20 {
        let outputs = step(&mut farm, &job, n, &paces);
        for (_, epoch) in stops(&outputs) {
            n_stops += 1;
            for worker in farm.seats(&job, 0) {
                let session = session_of(&farm, &worker);
                farm.stop(&worker, session, epoch);
            }
        }
        for (worker, session) in sessions {
            farm.hear(Input::Heartbeat { worker: id(worker), session, work: None });
        }
    }
    assert_eq!(n_stops, 1, "one split by what was measured, no more");
    let attempt = farm.control.attempt(farm.epoch(&job, 0)).expect("a running image has an attempt");
    let rows = |worker: &str| attempt.rank_of(&id(worker)).map_or(0, |rank| attempt.mesh.band(rank).n_rows());
    assert!(rows("c") < rows("a") && rows("a") == rows("b"), "{attempt:?}");
}

#[test]
fn speeds_that_jump_about_cost_fewer_and_fewer_stops() {
    let mut farm = Farm::new();
    let sessions = ["a", "b"].map(|worker| (worker, farm.join(worker)));
    let mut long = spec(1);
    long.request.steps = 200;
    let job = farm.ask("", long).expect("the job is fine");
    let mut at = Vec::new();
    for n in 1..200 {
        // Each is slow for ten steps, then the other is.
        let is_slow = |idx: usize| (n / 10 + idx).is_multiple_of(2);
        let ms = |idx| if is_slow(idx) { 4.0 } else { 1.0 };
        let outputs = step(&mut farm, &job, n, &[("a", sessions[0].1, ms(0)), ("b", sessions[1].1, ms(1))]);
        for (_, epoch) in stops(&outputs) {
            at.push(n);
            for (worker, session) in sessions {
                farm.stop(worker, session, epoch);
            }
        }
    }
    assert!((2..=7).contains(&at.len()), "stopped at {at:?}");
}

/// Numbers from 0 to 1 by a seed (splitmix64).
struct Noise(u64);

impl Noise {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0.8 to 1.2.
    fn even(&mut self) -> f64 {
        0.8 + 0.4 * self.draw()
    }

    /// About 1, with a standard deviation of a fifth and all its outliers.
    fn normal(&mut self) -> f64 {
        let normal = (0..12).map(|_| self.draw()).sum::<f64>() - 6.0;
        (1.0 + 0.2 * normal).max(0.3)
    }
}

/// Draws one picture of 20 steps, `ms` being what a worker computes for a row of a branch at a step. Says behind which
/// steps it was stopped to be split anew.
fn draw(farm: &mut Farm, workers: &[(&str, SessionId)], mut ms: impl FnMut(usize, &str) -> f64) -> Vec<usize> {
    let job = farm.submit(1);
    let mut at = Vec::new();
    for n in 1..=20 {
        let paces: Vec<_> = workers.iter().map(|(worker, session)| (*worker, *session, ms(n, worker))).collect();
        let outputs = step(farm, &job, n, &paces);
        for (_, epoch) in stops(&outputs) {
            at.push(n);
            for worker in farm.seats(&job, 0) {
                let session = session_of(farm, &worker);
                farm.stop(&worker, session, epoch);
            }
        }
    }
    let (epoch, first) = (farm.epoch(&job, 0), farm.seats(&job, 0).remove(0));
    let session = session_of(farm, &first);
    farm.finish(&first, session, epoch);
    at
}

const SEEDS: u64 = 1_000;
const PICTURES: usize = 5;

/// Farms of two to four workers that are one to five times as slow as each other, five pictures each. Counts the stops
/// of every picture.
fn count_stops(factor: impl Fn(&mut Noise) -> f64) -> Vec<(u64, [usize; PICTURES])> {
    let of_seed = |seed| {
        let (mut noise, mut farm) = (Noise(seed), Farm::new());
        let names = &["a", "b", "c", "d"][..2 + seed as usize % 3];
        let workers: Vec<_> = names.iter().map(|name| (*name, farm.join(name))).collect();
        let ms: Vec<f64> = names.iter().map(|_| 10.0 + 40.0 * noise.draw()).collect();
        let ms_of =
            |worker: &str| names.iter().zip(&ms).find(|(name, _)| **name == worker).map_or(f64::NAN, |(_, ms)| *ms);
        let stops =
            [(); PICTURES].map(|()| draw(&mut farm, &workers, |_, worker| ms_of(worker) * factor(&mut noise)).len());
        // What was learnt is right: no band takes half as long again as it must.
        let job = farm.submit(1);
        let attempt = farm.control.attempt(farm.epoch(&job, 0)).expect("a running image has an attempt");
        let speeds: Vec<f64> = attempt.seats.iter().map(|seat| 1.0 / ms_of(seat.0.as_str())).collect();
        let mut all: Vec<f64> = ms.iter().map(|ms| 1.0 / ms).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        let grid = plan::TokenGrid { rows: 16, cols: 16 };
        let (found, best) = (attempt.cost(true, &speeds), plan::Mesh::choose(grid, 1, true, &all).cost);
        assert!(found < 1.5 * best, "seed {seed}: {found} where {best} is possible");
        (seed, stops)
    };
    (0..SEEDS).map(of_seed).collect()
}

#[test]
fn steps_a_fifth_up_and_down_split_nothing_anew_once_the_speeds_are_known() {
    let stops = count_stops(Noise::even);
    for (seed, stops) in &stops {
        assert!(stops[0] <= 2 && stops[1..] == [0; PICTURES - 1], "seed {seed}: stops {stops:?}");
    }
    assert!(stops.iter().any(|(_, stops)| stops[0] > 0), "or nothing was worth a stop");
}

#[test]
fn wilder_steps_split_one_picture_of_a_thousand_anew() {
    let stops = count_stops(Noise::normal);
    let again: Vec<_> = stops.iter().filter(|(_, stops)| stops[1..].iter().sum::<usize>() > 0).collect();
    assert!(again.len() <= SEEDS as usize * (PICTURES - 1) / 1_000, "seeds and their stops: {again:?}");
}

#[test]
fn a_speed_that_drops_to_a_fifth_is_heeded_within_four_steps() {
    for seed in 0..SEEDS {
        let (mut noise, mut farm) = (Noise(seed), Farm::new());
        let workers = ["a", "b"].map(|name| (name, farm.join(name)));
        let at = draw(&mut farm, &workers, |n, worker| {
            let is_slow = worker == "b" && n > 6;
            noise.even() * if is_slow { 50.0 } else { 10.0 }
        });
        assert!(matches!(at[..], [8..=10]), "seed {seed}: stopped behind {at:?}");
        let after = draw(&mut farm, &workers, |_, worker| noise.even() * if worker == "b" { 50.0 } else { 10.0 });
        assert_eq!(after, [], "seed {seed}: the next picture begins with what was learnt");
    }
}

#[test]
fn a_time_that_comes_behind_its_step_is_heeded_at_once() {
    let mut farm = Farm::new();
    let workers = ["a", "b"].map(|name| (name, farm.join(name)));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    step(&mut farm, &job, 1, &[("a", workers[0].1, 10.0), ("b", workers[1].1, 50.0)]);
    let taken = |rank: usize, compute_ms| {
        let (worker, session) = workers[rank];
        Input::StepTaken { worker: id(worker), session, epoch, rank: plan::Rank(rank as u16), compute_ms }
    };
    assert_eq!(stops(&farm.hear(taken(0, 160.0))), []);
    assert_eq!(stops(&farm.keep(&job, 0, 2)), [], "b's second time is not known");
    assert_eq!(stops(&farm.hear(taken(1, 800.0))), [("a".to_owned(), epoch)]);
}

#[test]
fn a_single_slow_step_splits_nothing_anew() {
    for slow in 1..=20 {
        let mut farm = Farm::new();
        let workers = ["a", "b"].map(|name| (name, farm.join(name)));
        let is_slow = |n, worker: &str| n == slow && worker == "b";
        assert_eq!(draw(&mut farm, &workers, |n, worker| if is_slow(n, worker) { 200.0 } else { 10.0 }), []);
    }
}

#[test]
fn what_a_stop_would_save_must_be_more_than_it_costs() {
    for (ms, n_stops) in [(0.1, 0), (10.0, 1)] {
        let mut farm = Farm::new();
        let workers = ["a", "b"].map(|name| (name, farm.join(name)));
        let at = draw(&mut farm, &workers, |_, worker| if worker == "b" { 3.0 * ms } else { ms });
        assert_eq!(at.len(), n_stops, "{ms} ms a row: stopped behind {at:?}");
    }
    let mut farm = Farm::new();
    let workers = ["a", "b"].map(|name| (name, farm.join(name)));
    let at = draw(&mut farm, &workers, |n, worker| if worker == "b" && n > 16 { 50.0 } else { 10.0 });
    assert_eq!(at, [], "two steps before the end");
}

#[test]
fn a_member_too_slow_to_have_a_row_is_left_out_of_the_next_split() {
    let mut farm = Farm::new();
    let workers = ["a", "b"].map(|name| (name, farm.join(name)));
    let at = draw(&mut farm, &workers, |_, worker| if worker == "b" { 100.0 } else { 1.0 });
    assert_eq!(at.len(), 1, "stopped behind {at:?}");
    let job = farm.submit(1);
    assert_eq!(farm.seats(&job, 0), ["a"]);
}
