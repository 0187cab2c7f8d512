//! Rows that take their time to be kept.

use wire::v1::session_request::Message as Report;

use super::fake::{Happened, Reply, Scene};

#[test]
fn no_step_is_done_before_the_rows_behind_the_last_one_are_kept() {
    const STEPS: usize = 6;
    // A heartbeat every 10 ms; a step takes a few milliseconds.
    const LEASE_TTL_MS: u64 = 30;
    const N_BEATS_OF_AN_UPLOAD: u32 = 10;
    let mut scene = Scene::start();
    let (mut n_kept, mut n_taken) = (0, 0);
    let mut under_way: Option<(usize, Reply, u32)> = None;
    loop {
        match scene.next() {
            Happened::Joined(_, orders) => scene.welcome(&orders, LEASE_TTL_MS, (64, STEPS)),
            Happened::Rows(n, kept) => {
                assert_eq!(n, n_kept + 1, "rows are sent in order, one step at a time");
                under_way = Some((n, kept, 0));
            }
            Happened::Said(Report::Heartbeat(_)) => {
                if let Some((n, kept, n_beats)) = under_way.take() {
                    if n_beats < N_BEATS_OF_AN_UPLOAD {
                        under_way = Some((n, kept, n_beats + 1));
                    } else {
                        n_kept = n;
                        kept.send(Ok(())).expect("the call is open");
                    }
                }
            }
            Happened::Said(Report::StepTaken(taken)) => {
                n_taken = taken.n_steps_done as usize;
                assert!(n_taken <= n_kept + 1, "a kill now repeats {} steps", n_taken - n_kept);
            }
            Happened::Picture(reply) => reply.send(Ok(())).expect("the call is open"),
            Happened::Said(Report::Finished(_)) => break,
            Happened::Said(Report::Decoding(_)) => {}
            Happened::Said(report) => panic!("{report:?}"),
            Happened::Left => panic!("the session ended"),
        }
    }
    assert_eq!(n_taken, STEPS);
}
