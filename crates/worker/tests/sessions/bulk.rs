//! Pictures that are not read while heartbeats are, and what heartbeats say of them.

use wire::v1::session_request::Message as Report;

use super::fake::{Happened, Scene};

#[test]
fn heartbeats_pass_a_picture_that_nobody_reads_and_say_whether_it_moves() {
    const N_BEATS: usize = 30;
    let mut scene = Scene::start();
    // More bytes than a connection takes unread.
    let picture = (512, 1);
    let (mut n_beats, mut stalled, mut progress) = (0, None, Vec::new());
    loop {
        match scene.next() {
            Happened::Joined(join, orders) => {
                assert!(join.running.is_none() && join.value_bytes == 4, "{join:?}");
                scene.welcome(&orders, 30, picture);
            }
            Happened::Rows(_, reply) => reply.send(Ok(())).expect("the call is open"),
            Happened::Picture(reply) => stalled = Some(reply),
            Happened::Said(Report::Heartbeat(beat)) => {
                let Some(work) = beat.work else { continue };
                assert_eq!(work.epoch, 1);
                progress.push((work.progress, work.waits));
                n_beats += usize::from(stalled.is_some());
                if n_beats == N_BEATS {
                    break;
                }
            }
            Happened::Said(Report::StepTaken(_) | Report::Decoding(_)) => {}
            Happened::Said(report) => panic!("{report:?}"),
            Happened::Left => panic!("the session ended"),
        }
    }
    assert!(progress.is_sorted_by_key(|(n_moves, _)| *n_moves), "{progress:?}");
    let [.., before, last] = progress[..] else { panic!("{progress:?}") };
    assert_eq!(before, last, "nothing moves while nothing is read");
    // The coordinator is told that its rows and not its answer are waited for.
    stalled.expect("it began").send(Ok(())).expect("the call is open");
    loop {
        match scene.next() {
            Happened::Said(Report::Heartbeat(_)) => {}
            Happened::Said(Report::Finished(_)) => break,
            Happened::Said(report) => panic!("{report:?}"),
            _ => panic!("it had only to hand in its picture"),
        }
    }
}
